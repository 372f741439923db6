//! What the launcher of keepalived tells Prometheus.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The launcher's metrics. Cheap to clone: clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) vips: Gauge,
    pub(super) held: Gauge,
    pub(super) gained: Counter,
    pub(super) lost: Counter,
    pub(super) released: Counter,
    pub(super) starts: Counter,
    pub(super) reloads: Counter,
    pub(super) refusals: Counter,
    pub(super) faults: Gauge,
    pub(super) conflicts: Gauge,
    pub(super) agent_ready: Gauge,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("egress_keepalived");
        registry.register("vips", "VIPs that this node may hold", metrics.vips.clone());
        registry.register("vips_held", "VIPs that this node holds", metrics.held.clone());
        registry.register("vips_gained", "VIPs that came to this node", metrics.gained.clone());
        registry.register("vips_lost", "VIPs that left this node", metrics.lost.clone());
        registry.register(
            "vips_released",
            "VIPs taken off this node because another one serves them and keepalived here does not",
            metrics.released.clone(),
        );
        registry.register("starts", "Starts of keepalived", metrics.starts.clone());
        registry.register("reloads", "Reloads of its configuration", metrics.reloads.clone());
        registry.register(
            "refused_configurations",
            "Configurations that keepalived refused; the one before stays",
            metrics.refusals.clone(),
        );
        registry.register(
            "faults",
            "What is wrong with the VIPs asked for, or with keepalived; the log names it",
            metrics.faults.clone(),
        );
        registry.register(
            "conflicts",
            "Other machines that use a route id or VIP of ours on this network; the log names them",
            metrics.conflicts.clone(),
        );
        registry.register(
            "agent_ready",
            "Whether the agent of this node does its work; if not, VIPs go to other nodes",
            metrics.agent_ready.clone(),
        );
        metrics
    }
}
