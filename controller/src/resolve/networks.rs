//! Which networks and addresses are the cluster's own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use shared::ClusterNetworks;
use shared::address::usable;
use shared::config_map::{Decoded, NETWORKS, Rejected, decode_networks, network_keys};
use shared::crd::EgressMapperSpec;

use crate::model::Node;

/// The networks that the `EgressMapper` and the nodes name, and what cannot be used.
///
/// Where pods have their addresses is taken from the nodes for a family that the `EgressMapper`
/// names no pod subnet of.
pub(super) fn networks(
    spec: Option<&EgressMapperSpec>,
    nodes: &[Arc<Node>],
) -> Decoded<ClusterNetworks> {
    let mut decoded = spec.map_or_else(nothing, named);
    let named = decoded.entries.pod_subnets().to_vec();
    let is_missing = |net: &IpNet| !named.iter().any(|other| is_ipv4(other) == is_ipv4(net));
    let of_nodes = nodes.iter().flat_map(|node| &node.pod_cidrs).copied();
    let added = of_nodes.filter(is_missing).filter(|net| net.prefix_len() > 0);
    let pod_subnets: Vec<IpNet> = named.iter().copied().chain(added).collect();
    let addresses = nodes.iter().flat_map(|node| &node.addresses).copied();
    decoded.entries = decoded
        .entries
        .with_pod_subnets(pod_subnets)
        .with_node_addresses(addresses.filter(|addr: &IpAddr| usable(*addr).is_ok()));
    decoded
}

fn nothing() -> Decoded<ClusterNetworks> {
    Decoded { entries: ClusterNetworks::default(), rejected: Vec::new() }
}

/// Read as nodes will read them.
fn named(spec: &EgressMapperSpec) -> Decoded<ClusterNetworks> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let data = [
        (network_keys::POD_SUBNETS, text(&spec.pod_subnet)),
        (network_keys::SERVICE_SUBNETS, text(&spec.service_subnet)),
        (network_keys::EXCLUDED, spec.excluded_networks.join(",")),
    ];
    decode_networks(NETWORKS, &BTreeMap::from(data.map(|(key, value)| (key.to_owned(), value))))
}

/// What is wrong, in the words of the `EgressMapper`.
pub(super) fn complaint(rejected: &Rejected) -> String {
    let field = match rejected.key.as_str() {
        network_keys::POD_SUBNETS => "PodSubnet",
        network_keys::SERVICE_SUBNETS => "ServiceSubnet",
        _ => "excludedNetworks",
    };
    format!("{field} {:?}: {}", rejected.value, rejected.reason)
}

fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}
