//! The `ConfigMaps` between the controller and the nodes: names, keys, values, and what is wrong
//! with an entry.
//!
//! Keys are addresses or, for a pod whose addresses are not known yet, its UID with what it will get.
//! IPv6 has `-` for `:`, which no key may contain. Readers also take `:`, for
//! directories whose files may be named so. One address spelled by two keys: the spelling that
//! [`key`] gives wins, otherwise the lower key.

mod blocks;
mod candidates;
mod decode;
mod encode;
mod node_report;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write};
use std::net::IpAddr;

pub use self::blocks::{NodeBlocks, VipBlocks, blocks_of_vip, decode_blocks, encode_blocks};
pub use self::candidates::{decode_candidates, encode_candidates};
pub use self::decode::{
    Decoded, decode_covered, decode_expected, decode_networks, decode_pods, decode_route_ids,
};
pub(crate) use self::decode::{
    PodKey, expected_value, pod_addresses, pod_key, pod_value, route_id_entries,
};
pub use self::encode::{
    encode_addresses, encode_expected, encode_gone, encode_networks, encode_pods, encode_route_ids,
    encode_uncovered,
};
pub use self::node_report::{
    BlockUse, NodeReport, decode_node_report, encode_node_report, label_of_node, report_of_node,
};
use crate::Vip;
use crate::address::{Unusable, shortened};
use crate::mappings::Violation;

/// VIP → nothing: the form kube-keepalived-vip reads.
pub const VIPS: &str = "vip-configmap";
/// VIP → route id.
pub const ROUTE_IDS: &str = "vip-routeid-mappings";
/// Pod IP → VIP of the whole cluster.
pub const PODS: &str = "podip-vip-mappings";
/// Before the node's name: pod IP → VIP of the pods on one node, and pod UID → VIPs (separated by
/// commas, at most one of each family) of those whose addresses are not known yet.
pub const PODS_OF_NODE_PREFIX: &str = "podip-vip-mappings-";
/// The label with the node's name on the objects of [`PODS_OF_NODE_PREFIX`].
pub const NODE_LABEL: &str = "egress.mapper.com/node";
/// The cluster's own networks.
pub const NETWORKS: &str = "egress-networks";
/// VIP → names of nodes, best first.
pub const CANDIDATES: &str = "vip-candidates";
/// Before a VIP's [`key`]: the name of a node → the blocks of the VIP's ports that are the node's own.
/// There is one for each VIP on the direct path, and as long as connections of one may go on there.
pub const BLOCKS_PREFIX: &str = "vip-blocks-";
/// The label on the objects of [`BLOCKS_PREFIX`].
pub const BLOCKS_LABEL: &str = "egress.mapper.com/blocks";
/// Before the [`label_of_node`]: the label on those of the objects of [`BLOCKS_PREFIX`] that name the
/// node, so that it reads no others.
pub const BLOCKS_OF_NODE_PREFIX: &str = "blocks.egress.mapper.com/";
/// Before the node's name: what that node reports.
pub const NODE_REPORT_PREFIX: &str = "egress-node-";
/// The label with the node's name on the objects of [`NODE_REPORT_PREFIX`]; not
/// [`NODE_LABEL`], which selects pods.
pub const REPORT_LABEL: &str = "egress.mapper.com/report-of";

/// The label of a Node whose VIPs are to move to other gateways: `kubectl label node NAME
/// egress.mapper.com/drain=true`. Any value but `false` counts.
pub const DRAIN_LABEL: &str = "egress.mapper.com/drain";

/// What follows a pod's UID in the key under which one node's object lists that pod's addresses.
pub const ADDRESSES_OF: &str = ".addresses";
/// The value of a pod's UID in one node's object when no mapping is for that pod, and it was asked.
pub const UNCOVERED: &str = "uncovered";
/// The value of a pod's UID in one node's object when that pod was covered and the API server knows it
/// no longer: it is held where it still has an address.
pub const GONE: &str = "gone";

/// The keys of [`NETWORKS`].
pub mod network_keys {
    pub const POD_SUBNETS: &str = "pod-subnets";
    pub const SERVICE_SUBNETS: &str = "service-subnets";
    pub const NODE_ADDRESSES: &str = "node-addresses";
    pub const EXCLUDED: &str = "excluded";
    /// Where the nodes are that may hold VIPs: one address of each family for each of them.
    pub const GATEWAY_ADDRESSES: &str = "gateway-addresses";
}

/// The keys of a node's report.
pub mod report_keys {
    /// Lines, each a VIP and since when the node holds it.
    pub const HOLDS: &str = "holds";
    pub const SYNCED: &str = "synced";
    /// Lines, each the UID of a pod and its addresses, separated by commas.
    pub const PODS: &str = "pods";
    pub const MESSAGE: &str = "message";
    pub const VERSION: &str = "version";
    /// Lines, each a VIP and what was seen of others that use it; left out when there are none.
    pub const CONFLICTS: &str = "conflicts";
    /// Lines, each a VIP and what the node makes of its blocks; left out when there are none.
    pub const BLOCKS: &str = "blocks";
}

/// An object that [`Mappings`](crate::Mappings) are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object<'a> {
    /// [`ROUTE_IDS`].
    RouteIds,
    /// [`NETWORKS`].
    Networks,
    /// [`PODS`].
    Pods,
    /// The pods of the node with this name, never empty.
    PodsOfNode(&'a str),
    /// What the node with this name, never empty, says of itself.
    ReportOfNode(&'a str),
    /// Which nodes have which blocks of this VIP.
    BlocksOfVip(Vip),
}

impl<'a> Object<'a> {
    /// What the object of that name is; `None` if mappings are not made of it.
    pub fn of_name(name: &'a str) -> Option<Self> {
        match name {
            ROUTE_IDS => Some(Self::RouteIds),
            NETWORKS => Some(Self::Networks),
            PODS => Some(Self::Pods),
            _ => {
                if let Some(rest) = name.strip_prefix(BLOCKS_PREFIX) {
                    return blocks::vip_of_name(rest).map(Self::BlocksOfVip);
                }
                let pods = name.strip_prefix(PODS_OF_NODE_PREFIX).map(Self::PodsOfNode);
                let report = || name.strip_prefix(NODE_REPORT_PREFIX).map(Self::ReportOfNode);
                pods.or_else(report)
                    .filter(|of| !matches!(of, Self::PodsOfNode("") | Self::ReportOfNode("")))
            }
        }
    }
}

/// The name of the object with the pods of that node.
pub fn pods_of_node(node: &str) -> String {
    format!("{PODS_OF_NODE_PREFIX}{node}")
}

/// The key of an address: `fd00--1` for `fd00::1`, an IPv4 address as it is.
pub fn key(addr: IpAddr) -> String {
    addr.to_string().replace(':', "-")
}

/// Whether `text` is the [`key`] of the address, without making one.
pub(crate) fn is_key_of(text: &str, addr: IpAddr) -> bool {
    let mut rest = Rest(text);
    write!(rest, "{addr}").is_ok() && rest.0.is_empty()
}

/// What of a key was not yet compared. Writing to it fails at the first difference.
struct Rest<'a>(&'a str);

impl fmt::Write for Rest<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let (start, rest) = self.0.split_at_checked(part.len()).ok_or(fmt::Error)?;
        let as_in_key = part.bytes().map(|byte| if byte == b':' { b'-' } else { byte });
        self.0 = rest;
        start.bytes().eq(as_in_key).then_some(()).ok_or(fmt::Error)
    }
}

/// The address that a key stands for.
pub fn addr_of_key(key: &str) -> Result<IpAddr, Unusable> {
    const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
    let mut buffer = [0; LONGEST];
    let text = buffer.get_mut(..key.len()).ok_or(Unusable::NotAnAddress)?;
    for (byte, of_key) in text.iter_mut().zip(key.bytes()) {
        *byte = if of_key == b'-' { b':' } else { of_key };
    }
    let text = std::str::from_utf8(text).map_err(|_| Unusable::NotAnAddress)?;
    text.parse().map_err(|_| Unusable::NotAnAddress)
}

/// An entry that is not used, or not as it was meant, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejected {
    /// The name of the object.
    pub object: String,
    /// The key, shortened if long.
    pub key: String,
    /// The value, or the one item of a list; shortened if long.
    pub value: String,
    /// What is wrong, and what to do.
    pub reason: Reason,
}

impl Rejected {
    pub(crate) fn new(object: &str, key: &str, value: &str, reason: Reason) -> Self {
        Self { object: object.to_owned(), key: shortened(key), value: shortened(value), reason }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, key, value, reason } = self;
        write!(f, "{object}, key {key:?}, value {value:?}: {reason}")
    }
}

/// Why an entry is rejected; the text ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    #[error("the key is not a VIP: {0} (in IPv6 '-' stands for ':')")]
    KeyIsNoVip(Unusable),
    #[error("the key is not a pod IP: {0} (in IPv6 '-' stands for ':')")]
    KeyIsNoPodIp(Unusable),
    #[error("the value is not a route id; use a whole number from 1 to 252")]
    NoRouteId,
    #[error("the pod is held because the value is not a VIP: {0}")]
    NoVip(Unusable),
    #[error("the pod is held in that family because it names two VIPs of it; remove one")]
    TwoVips,
    #[error("it does not begin with the UID of a pod, or no address follows; write UID ADDRESS")]
    NoPod,
    #[error("it is not the address of a pod: {0}")]
    NoPodAddress(Unusable),
    #[error("it is not a network; write a CIDR such as 10.244.0.0/16, or one address")]
    NoNetwork,
    #[error("it is an IPv4 network in IPv6 form; write it as IPv4")]
    Ipv4NetworkInIpv6,
    #[error("it is every destination, so nothing would be egress traffic; name smaller networks")]
    DefaultRoute,
    #[error("the value is not a node's address: {0}")]
    NoNodeAddress(Unusable),
    #[error(
        "the key is unknown; use pod-subnets, service-subnets, node-addresses, excluded or \
         gateway-addresses"
    )]
    UnknownKey,
    #[error(
        "it is not the name of a node; write names as kubectl get nodes shows them, separated by \
         commas"
    )]
    NoNodeName,
    #[error(
        "it does not say which blocks a node has; write BLOCKS via ADDRESS, such as 1,2 via \
         192.0.2.11 (blocks are 1 to 47)"
    )]
    NoBlocks,
    #[error(
        "the node's address is not of the VIP's family; give the one that the node has in the VIP's \
         network"
    )]
    NodeOfOtherFamily,
    #[error("the block is nobody's because {others} has it, too; leave it to one node")]
    BlockShared { others: blocks::Names },
    #[error("it does not say what a node makes of its blocks; write VIP BLOCKS PATH USED")]
    NoUseOfBlocks,
    #[error("it does not begin with a VIP: {0}")]
    NoHeldVip(Unusable),
    #[error("it does not end with a time; write one as 2026-01-31T12:00:00Z")]
    NoTime,
    #[error("it is neither true nor false; write one of the two")]
    NoTruth,
    #[error(
        "the same address has another value in {object} under key {key:?}, which counts; remove one \
         of the two"
    )]
    Contradicted {
        /// The object whose entry is used.
        object: String,
        /// The key of that entry.
        key: String,
    },
    #[error(transparent)]
    Violation(#[from] Violation),
}
