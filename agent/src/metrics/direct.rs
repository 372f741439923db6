//! What becomes of VIPs on the direct path on this node.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shared::Vip;

/// Numbers of probes. Cheap to clone: clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ProofMetrics {
    sent: Counter,
    answered: Counter,
}

impl ProofMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("egress_agent_probes");
        registry.register(
            "sent",
            "Probes sent to see whether the direct path works from this node",
            metrics.sent.clone(),
        );
        registry.register("answered", "Those that were answered", metrics.answered.clone());
        metrics
    }

    /// A probe has left.
    pub fn sent(&self) {
        self.sent.inc();
    }

    /// Its answer has come.
    pub fn answered(&self) {
        self.answered.inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVip {
    vip: String,
}

/// What one VIP comes to on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPorts {
    /// New connections take the direct path.
    pub direct: bool,
    /// Ports in use towards the destination with the most.
    pub used: u16,
    /// Ports there are for each destination.
    pub available: u16,
}

/// All of them.
#[derive(Debug, Default)]
pub struct DirectMetrics {
    pub probes: ProofMetrics,
    vips: BTreeSet<Vip>,
    proven: Family<ByVip, Gauge>,
    used: Family<ByVip, Gauge>,
    available: Family<ByVip, Gauge>,
}

impl DirectMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { probes: ProofMetrics::register(registry), ..Self::default() };
        let registry = registry.sub_registry_with_prefix("egress_agent_direct");
        registry.register(
            "proven",
            "Whether new connections of pods here take the direct path of the VIP, which has been \
             proven; else they go via its holder",
            metrics.proven.clone(),
        );
        registry.register(
            "ports_used",
            "Ports of the VIP in use here towards the one destination with the most",
            metrics.used.clone(),
        );
        registry.register(
            "ports_available",
            "Ports of the VIP that are this node's own",
            metrics.available.clone(),
        );
        metrics
    }

    /// These VIPs have blocks here, and no others.
    pub fn set(&mut self, own: &BTreeMap<Vip, OwnPorts>) {
        let Self { probes: _, vips, proven, used, available } = self;
        for gone in vips.iter().filter(|vip| !own.contains_key(vip)) {
            let label = ByVip { vip: gone.to_string() };
            for family in [&*proven, used, available] {
                family.remove(&label);
            }
        }
        *vips = own.keys().copied().collect();
        for (vip, ports) in own {
            let label = ByVip { vip: vip.to_string() };
            proven.get_or_create(&label).set(ports.direct.into());
            used.get_or_create(&label).set(ports.used.into());
            available.get_or_create(&label).set(ports.available.into());
        }
    }
}
