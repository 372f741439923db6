//! The tables' own counters, read from the kernel whenever somebody asks for metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use crate::kernel::tables::{Counters, Tables};
use crate::ruleset::TableNames;

/// Reads counters over a socket of its own, so that a scrape never waits for a synchronisation.
#[derive(Debug)]
pub(super) struct KernelCounters {
    names: TableNames,
}

/// Which counter a value is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    table: String,
    reason: String,
}

impl KernelCounters {
    /// Of the tables called so, in the network namespace of whoever scrapes.
    pub(super) const fn of(names: TableNames) -> Self {
        Self { names }
    }

    fn read(&self) -> Option<Counters> {
        // A scrape without these metrics says that they could not be read; the agent's own
        // failures are counted and logged where they happen.
        Tables::open(self.names.clone()).ok()?.counters().ok()
    }
}

impl Collector for KernelCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(Counters { main, guard, ingress }) = self.read() else { return Ok(()) };
        let counts: Vec<_> = [(&self.names.main, main), (&self.names.guard, guard)]
            .into_iter()
            .flat_map(|(table, counters)| {
                counters
                    .into_iter()
                    .map(move |(reason, count)| (Labels { table: table.clone(), reason }, count))
            })
            .collect();
        let mut packets = encoder.encode_descriptor(
            "egress_dropped_packets",
            "Packets that the tables dropped rather than let leave with a wrong address",
            None,
            MetricType::Counter,
        )?;
        for (labels, count) in &counts {
            let one = packets.encode_family(labels)?;
            ConstCounter::new(count.packets).encode(one)?;
        }
        let mut bytes = encoder.encode_descriptor(
            "egress_dropped",
            "What those packets held, headers from the network layer on included",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for (labels, count) in &counts {
            let one = bytes.encode_family(labels)?;
            ConstCounter::new(count.bytes).encode(one)?;
        }
        let passed_on = ingress.values().map(|count| count.packets).sum::<u64>();
        let packets = encoder.encode_descriptor(
            "egress_passed_on_packets",
            "Packets for ports of other nodes that were passed on to them",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(passed_on).encode(packets)
    }
}
