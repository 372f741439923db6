//! The tables' own counters, read from the kernel whenever somebody asks for metrics.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::MetricType;

use crate::kernel::TableNames;
use crate::kernel::tables::Tables;

/// Reads counters over a socket of its own, so that a scrape never waits for a synchronisation.
#[derive(Debug)]
pub(super) struct KernelCounters {
    names: TableNames,
}
