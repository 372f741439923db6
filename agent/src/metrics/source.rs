//! How well the agent hears of changes, by what it watches.

use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::sources::api::Watch;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByObject {
    object: Watch,
}

impl EncodeLabelValue for Watch {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.label())
    }
}

/// Numbers of all watches. Cheap to clone: clones share their values.
#[derive(Clone, Debug, Default)]
pub struct SourceMetrics {
    connected: Family<ByObject, Gauge>,
    good: Family<ByObject, Gauge<f64, AtomicU64>>,
    watches: Family<ByObject, Counter>,
}

/// Numbers of one watch.
#[derive(Clone, Debug)]
pub struct WatchMetrics {
    connected: Gauge,
    good: Gauge<f64, AtomicU64>,
    watches: Counter,
}

impl SourceMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("egress_agent_source");
        registry.register(
            "connected",
            "Whether the API server answers: 0 means that what was last read counts",
            metrics.connected.clone(),
        );
        registry.register_with_unit(
            "last_good_timestamp",
            "When what was read was last known to be the latest, since the epoch; renewed at least \
             each 90 seconds while connected",
            Unit::Seconds,
            metrics.good.clone(),
        );
        registry.register(
            "watches",
            "Watches begun; each is begun anew after some minutes or an interruption",
            metrics.watches.clone(),
        );
        metrics
    }

    /// Those of one watch, which is not connected.
    pub fn of(&self, object: Watch) -> WatchMetrics {
        let by = ByObject { object };
        WatchMetrics {
            connected: self.connected.get_or_create_owned(&by),
            good: self.good.get_or_create_owned(&by),
            watches: self.watches.get_or_create_owned(&by),
        }
    }
}

impl WatchMetrics {
    /// The server has just told the latest, or that nothing is new.
    pub fn good(&self) {
        self.connected.set(1);
        // A clock before 1970 has nothing to tell.
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            self.good.set(now.as_secs_f64());
        }
    }

    /// The server does not answer.
    pub fn lost(&self) {
        self.connected.set(0);
    }

    /// A watch begins.
    pub fn started(&self) {
        self.watches.inc();
    }
}
