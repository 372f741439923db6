//! What the agent tells Prometheus.

mod direct;
mod results;
mod source;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::fmt::{self, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::direct::{DirectMetrics, OwnPorts, ProofMetrics};
pub use self::results::ResultMetrics;
pub use self::source::{SourceMetrics, WatchMetrics};

/// A part of a synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Reading what the kernel holds.
    Observe,
    /// Reverse path filters, policy rules and routes.
    Routing,
    /// The nft tables' chains, rules and declarations.
    Tables,
    /// The tables' pods.
    Pods,
    /// Tracked connections that have to be decided anew.
    Connections,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPart {
    part: Part,
}

/// How a pod is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PodState {
    Mapped,
    Held,
    Expected,
}

impl Part {
    const ALL: [Self; 5] =
        [Self::Observe, Self::Routing, Self::Tables, Self::Pods, Self::Connections];
}

impl EncodeLabelValue for Part {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Observe => "observe",
            Self::Routing => "routing",
            Self::Tables => "tables",
            Self::Pods => "pods",
            Self::Connections => "connections",
        })
    }
}

impl EncodeLabelValue for PodState {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Mapped => "mapped",
            Self::Held => "held",
            Self::Expected => "expected",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: PodState,
}

/// The agent's metrics. Cheap to clone: clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Family<ByPart, Histogram>,
    failures: Family<ByPart, Counter>,
    pods: Family<ByState, Gauge>,
    vips: Gauge,
    vips_here: Gauge,
    rejected: Gauge,
    missing: Gauge,
    unknown_held: Gauge,
    known: Gauge,
    repairs: Counter,
    last_success: Gauge<f64, AtomicU64>,
}

/// From 0.1 ms, a change of one pod, to some 3 s, a first look at a very large node.
fn durations() -> Histogram {
    Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            duration: Family::new_with_constructor(durations),
            failures: Family::default(),
            pods: Family::default(),
            vips: Gauge::default(),
            vips_here: Gauge::default(),
            rejected: Gauge::default(),
            missing: Gauge::default(),
            unknown_held: Gauge::default(),
            known: Gauge::default(),
            repairs: Counter::default(),
            last_success: Gauge::default(),
        };
        // Alerts on an increase need the zero before it.
        for part in Part::ALL {
            drop(metrics.failures.get_or_create(&ByPart { part }));
        }
        metrics.mapped(&Counts::default());
        let registry = registry.sub_registry_with_prefix("egress_agent");
        registry.register(
            "build",
            "What runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_with_unit(
            "sync_part_duration",
            "How long the parts of a synchronisation with the kernel took",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "sync_failures",
            "Parts of a synchronisation that failed; it is tried again",
            metrics.failures.clone(),
        );
        registry.register(
            "pods",
            "Pods in the mappings: mapped to a VIP, held for want of one, or expected: their addresses \
             are not known",
            metrics.pods.clone(),
        );
        registry.register("vips", "VIPs in the mappings", metrics.vips.clone());
        registry.register(
            "vips_here",
            "VIPs that are an address of this node",
            metrics.vips_here.clone(),
        );
        registry.register(
            "rejected_entries",
            "Entries of the mappings that cannot be used; the log names them",
            metrics.rejected.clone(),
        );
        registry.register(
            "missing_objects",
            "Objects that were there and are gone; their last content counts",
            metrics.missing.clone(),
        );
        registry.register(
            "unknown_pods_held",
            "1 while new connections to outside are dropped of pods on this node that nobody knows: a pod \
             with a VIP is expected, and its address is not known",
            metrics.unknown_held.clone(),
        );
        registry.register(
            "known_addresses",
            "Addresses of other pods on this node, as CNI plugins' results tell them",
            metrics.known.clone(),
        );
        registry.register(
            "repairs",
            "Steps taken because somebody else had changed what is ours",
            metrics.repairs.clone(),
        );
        registry.register_with_unit(
            "last_sync_timestamp",
            "When the kernel was last known to hold all that is desired, since the epoch",
            Unit::Seconds,
            metrics.last_success.clone(),
        );
        metrics
    }

    /// A part of a synchronisation has taken this long.
    pub fn took(&self, part: Part, time: Duration) {
        self.duration.get_or_create(&ByPart { part }).observe(time.as_secs_f64());
    }

    /// A part of a synchronisation has failed.
    pub fn failed(&self, part: Part) {
        self.failures.get_or_create(&ByPart { part }).inc();
    }

    /// Steps were taken for no change of what is desired.
    pub fn repaired(&self, steps: usize) {
        self.repairs.inc_by(steps as u64);
    }

    /// What the mappings amount to.
    pub fn mapped(&self, counts: &Counts) {
        let Counts {
            mapped,
            held,
            expected,
            vips,
            vips_here,
            rejected,
            missing,
            unknown_held,
            known,
        } = *counts;
        self.pods.get_or_create(&ByState { state: PodState::Mapped }).set(gauge(mapped));
        self.pods.get_or_create(&ByState { state: PodState::Held }).set(gauge(held));
        self.pods.get_or_create(&ByState { state: PodState::Expected }).set(gauge(expected));
        self.vips.set(gauge(vips));
        self.vips_here.set(gauge(vips_here));
        self.rejected.set(gauge(rejected));
        self.missing.set(gauge(missing));
        self.unknown_held.set(unknown_held.into());
        self.known.set(gauge(known));
    }

    /// The kernel holds all that is desired.
    pub fn succeeded(&self) {
        // A clock before 1970 has nothing to tell.
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            self.last_success.set(now.as_secs_f64());
        }
    }
}

/// Numbers of things.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub mapped: usize,
    pub held: usize,
    /// Pods of this node whose addresses are not known yet.
    pub expected: usize,
    pub vips: usize,
    pub vips_here: usize,
    pub rejected: usize,
    pub missing: usize,
    /// New connections of pods that nobody knows are dropped.
    pub unknown_held: bool,
    /// Addresses of pods of this node that are known and not expected.
    pub known: usize,
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
