//! What the controller tells Prometheus.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use shared::Vip;

use crate::model::{PathVerdict, Reason};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// The `ConfigMaps` that all nodes read.
    Common,
    /// The pods of one node.
    Shard,
    /// Which nodes have which blocks of a VIP's ports.
    Blocks,
    /// The object with all pods.
    Aggregate,
    /// The status of one of our resources.
    Status,
    /// A finalizer on a Vip.
    Finalizer,
    /// A `DaemonSet`.
    DaemonSet,
    /// An Event.
    Event,
}

/// A part of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// From the objects to who gets which VIP.
    Resolve,
    /// Writing what nodes read.
    Publish,
    /// From the first news of a pass until everything of it was written.
    NewsToWritten,
}

/// What there are verdicts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Vip,
    Egress,
    EgressMapper,
}

/// How a pod is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PodState {
    Mapped,
    Held,
}

/// What is the matter with blocks of a VIP's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum BlockState {
    /// A node translates with them.
    Open,
    /// They wait for their connections to end.
    Draining,
    /// They are nobody's.
    Free,
}

impl Written {
    const ALL: [Self; 8] = [
        Self::Common,
        Self::Shard,
        Self::Blocks,
        Self::Aggregate,
        Self::Status,
        Self::Finalizer,
        Self::DaemonSet,
        Self::Event,
    ];
}

macro_rules! label {
    ($type:ty { $($variant:ident => $text:literal),* $(,)? }) => {
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(match self { $(Self::$variant => $text),* })
            }
        }
    };
}

label!(Written {
    Common => "common", Shard => "shard", Blocks => "blocks", Aggregate => "aggregate", Status => "status",
    Finalizer => "finalizer", DaemonSet => "daemonset", Event => "event",
});
label!(Part {
    Resolve => "resolve", Publish => "publish", NewsToWritten => "news_to_written",
});
label!(Kind { Vip => "vip", Egress => "egress", EgressMapper => "egressmapper" });
label!(BlockState { Open => "open", Draining => "draining", Free => "free" });
label!(PodState { Mapped => "mapped", Held => "held" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWritten {
    object: Written,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPart {
    part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: PodState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBlockState {
    vip: String,
    state: BlockState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPath {
    vip: String,
    reason: &'static str,
}

/// A verdict's reason is one of a few names that conditions may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVerdict {
    kind: Kind,
    reason: String,
}

/// The controller's metrics. Cheap to clone: clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Family<ByPart, Histogram>,
    writes: Family<ByWritten, Counter>,
    bytes: Family<ByWritten, Counter>,
    failures: Family<ByWritten, Counter>,
    objects: Family<ByVerdict, Gauge>,
    pods: Family<ByState, Gauge>,
    blocks: Family<ByBlockState, Gauge>,
    direct: Family<ByPath, Gauge>,
    backlog: Gauge,
    status_backlog: Gauge,
    leads: Gauge,
    vip_moves: Counter,
    not_held: Gauge,
    conflicts: Gauge,
    gateways_ready: Gauge,
}

/// From 0.3 ms, a small cluster, to some seconds, a first look at a very large one.
fn durations() -> Histogram {
    Histogram::new([0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            duration: Family::new_with_constructor(durations),
            writes: Family::default(),
            bytes: Family::default(),
            failures: Family::default(),
            objects: Family::default(),
            pods: Family::default(),
            blocks: Family::default(),
            direct: Family::default(),
            backlog: Gauge::default(),
            status_backlog: Gauge::default(),
            leads: Gauge::default(),
            vip_moves: Counter::default(),
            not_held: Gauge::default(),
            conflicts: Gauge::default(),
            gateways_ready: Gauge::default(),
        };
        // Alerts on an increase need the zero before it.
        for object in Written::ALL {
            drop(metrics.writes.get_or_create(&ByWritten { object }));
            drop(metrics.bytes.get_or_create(&ByWritten { object }));
            drop(metrics.failures.get_or_create(&ByWritten { object }));
        }
        metrics.mapped(0, 0);
        let registry = registry.sub_registry_with_prefix("egress_controller");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", version);
        registry.register_with_unit(
            "part_duration",
            "How long the parts of a pass took",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register("writes", "Objects written", metrics.writes.clone());
        registry.register_with_unit(
            "written",
            "What was sent to write objects, without headers",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register(
            "write_failures",
            "Writes that were refused or not answered; they are tried again",
            metrics.failures.clone(),
        );
        registry.register(
            "objects",
            "Vips, Egresses and EgressMappers by the reason of their verdict",
            metrics.objects.clone(),
        );
        registry.register(
            "pod_addresses",
            "Addresses of pods: mapped to a VIP, or held for want of one",
            metrics.pods.clone(),
        );
        registry.register(
            "vip_blocks",
            "Blocks of 1024 ports of the VIPs whose path is or was Direct, by what is the matter with them",
            metrics.blocks.clone(),
        );
        registry.register(
            "vip_direct_path",
            "1 for each of these VIPs, with the reason of its condition DirectPath",
            metrics.direct.clone(),
        );
        registry.register(
            "news_backlog",
            "News of the cluster that were waiting when the last pass began",
            metrics.backlog.clone(),
        );
        registry.register(
            "status_backlog",
            "Status that is to be written and is not yet",
            metrics.status_backlog.clone(),
        );
        registry.register(
            "leads",
            "1 if this replica is the one that writes",
            metrics.leads.clone(),
        );
        registry.register(
            "vip_moves",
            "VIPs that were seen on another node than before",
            metrics.vip_moves.clone(),
        );
        registry.register(
            "vips_not_held",
            "Accepted Vips that no node reports to hold",
            metrics.not_held.clone(),
        );
        registry.register(
            "vips_in_conflict",
            "Accepted Vips that another machine uses, too, or that several nodes hold",
            metrics.conflicts.clone(),
        );
        registry.register(
            "gateways_ready",
            "Nodes that take VIPs now",
            metrics.gateways_ready.clone(),
        );
        metrics
    }

    /// A part of a pass has taken this long.
    pub fn took(&self, part: Part, time: Duration) {
        self.duration.get_or_create(&ByPart { part }).observe(time.as_secs_f64());
    }

    /// An object was written with a request of that many bytes.
    pub fn wrote(&self, object: Written, bytes: usize) {
        self.writes.get_or_create(&ByWritten { object }).inc();
        self.bytes.get_or_create(&ByWritten { object }).inc_by(bytes as u64);
    }

    /// An object could not be written.
    pub fn failed(&self, object: Written) {
        self.failures.get_or_create(&ByWritten { object }).inc();
    }

    /// How many addresses of pods are mapped and held.
    pub fn mapped(&self, mapped: usize, held: usize) {
        self.pods.get_or_create(&ByState { state: PodState::Mapped }).set(gauge(mapped));
        self.pods.get_or_create(&ByState { state: PodState::Held }).set(gauge(held));
    }

    /// How the blocks of each VIP are that has any, and what is said of its path.
    pub fn paths<'a>(&self, vips: impl IntoIterator<Item = (Vip, &'a PathVerdict)>) {
        self.blocks.clear();
        self.direct.clear();
        for (vip, verdict) in vips {
            if let Some(direct) = &verdict.direct {
                let labels = ByPath { vip: vip.to_string(), reason: direct.reason.as_str() };
                self.direct.get_or_create(&labels).set(1);
            }
            let Some(of) = verdict.blocks else { continue };
            let counts = [
                (BlockState::Open, of.given - of.draining),
                (BlockState::Draining, of.draining),
                (BlockState::Free, of.free),
            ];
            for (state, count) in counts {
                let labels = ByBlockState { vip: vip.to_string(), state };
                self.blocks.get_or_create(&labels).set(count);
            }
        }
    }

    /// How many objects there are of each verdict.
    pub fn verdicts(&self, verdicts: impl IntoIterator<Item = (Kind, &'static str)>) {
        let mut counts: HashMap<ByVerdict, i64> = HashMap::new();
        for (kind, reason) in verdicts {
            *counts.entry(ByVerdict { kind, reason: reason.to_owned() }).or_default() += 1;
        }
        self.objects.clear();
        for (verdict, count) in counts {
            self.objects.get_or_create(&verdict).set(count);
        }
    }

    /// A VIP is on another node than before.
    pub fn vip_moved(&self) {
        self.vip_moves.inc();
    }

    /// How many VIPs nobody holds, how many are in conflict, and how many nodes take VIPs.
    pub fn held(&self, not_held: usize, conflicts: usize, gateways_ready: usize) {
        self.not_held.set(gauge(not_held));
        self.conflicts.set(gauge(conflicts));
        self.gateways_ready.set(gauge(gateways_ready));
    }

    /// How many news waited.
    pub fn backlog(&self, news: usize) {
        self.backlog.set(gauge(news));
    }

    /// How many status are to be written.
    pub fn status_backlog(&self, count: usize) {
        self.status_backlog.set(gauge(count));
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
