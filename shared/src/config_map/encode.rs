//! How mappings are written into the objects.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::{ADDRESSES_OF, GONE, UNCOVERED, key, network_keys};
use crate::mappings::Expected;
use crate::{ClusterNetworks, PodIp, PodUid, RouteId, Vip};

/// The data of [`ROUTE_IDS`](super::ROUTE_IDS).
pub fn encode_route_ids<'a>(
    vips: impl IntoIterator<Item = (&'a Vip, &'a RouteId)>,
) -> BTreeMap<String, String> {
    let entry = |(vip, id): (&Vip, &RouteId)| (key(vip.addr()), id.to_string());
    vips.into_iter().map(entry).collect()
}

/// The data of [`PODS`](super::PODS) or of one node's object.
pub fn encode_pods<'a>(
    pods: impl IntoIterator<Item = (&'a PodIp, &'a Option<Vip>)>,
) -> BTreeMap<String, String> {
    let value = |vip: &Option<Vip>| vip.map_or_else(String::new, |vip| vip.to_string());
    pods.into_iter().map(|(pod, vip)| (key(pod.addr()), value(vip))).collect()
}

/// What one node's object has besides [`encode_pods`]: what pods will get whose addresses are not
/// known yet.
pub fn encode_expected<'a>(
    pods: impl IntoIterator<Item = (&'a PodUid, &'a Expected)>,
) -> BTreeMap<String, String> {
    let entry = |(uid, expected): (&PodUid, &Expected)| (uid.to_string(), list(expected.vips()));
    pods.into_iter().map(entry).collect()
}

/// What one node's object has besides [`encode_pods`]: whose those addresses are.
pub fn encode_addresses<'a>(
    pods: impl IntoIterator<Item = (&'a PodUid, &'a Vec<PodIp>)>,
) -> BTreeMap<String, String> {
    let entry = |(uid, ips): (&PodUid, &Vec<PodIp>)| (format!("{uid}{ADDRESSES_OF}"), list(ips));
    pods.into_iter().map(entry).collect()
}

/// What one node's object says of pods that it asked about and that no mapping is for.
pub fn encode_uncovered<'a>(
    pods: impl IntoIterator<Item = &'a PodUid>,
) -> BTreeMap<String, String> {
    pods.into_iter().map(|uid| (uid.to_string(), UNCOVERED.to_owned())).collect()
}

/// What one node's object says of pods that were covered and do not exist any more.
pub fn encode_gone<'a>(pods: impl IntoIterator<Item = &'a PodUid>) -> BTreeMap<String, String> {
    pods.into_iter().map(|uid| (uid.to_string(), GONE.to_owned())).collect()
}

/// The data of [`NETWORKS`](super::NETWORKS): always all five keys, separated by commas.
pub fn encode_networks(networks: &ClusterNetworks) -> BTreeMap<String, String> {
    [
        (network_keys::POD_SUBNETS, list(networks.pod_subnets())),
        (network_keys::SERVICE_SUBNETS, list(networks.service_subnets())),
        (network_keys::NODE_ADDRESSES, list(networks.node_addresses())),
        (network_keys::EXCLUDED, list(networks.excluded())),
        (network_keys::GATEWAY_ADDRESSES, list(networks.gateway_addresses())),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}
