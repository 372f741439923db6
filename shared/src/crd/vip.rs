//! `Vip`: an address that pods may leave the cluster with.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
use crate::VipPath;

/// The conditions of a Vip's status.
pub mod condition {
    pub const ACCEPTED: &str = "Accepted";
    pub const HELD: &str = "Held";
    pub const IN_USE: &str = "InUse";
    pub const PLACED: &str = "Placed";
    pub const UNIQUE: &str = "Unique";
    pub const DIRECT_PATH: &str = "DirectPath";
}

/// The finalizer that keeps a Vip while Egresses use it.
pub const FINALIZER: &str = "egress.mapper.com/in-use";

/// An entry of `spec.namespaces` that stands for every namespace.
pub const ANY_NAMESPACE: &str = "*";

/// What a Vip is to be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, CustomResource, KubeSchema)]
#[kube(
    group = "egress.mapper.com",
    version = "v1alpha1",
    kind = "Vip",
    plural = "vips",
    namespaced,
    status = "VipStatus",
    derive = "Default",
    derive = "PartialEq",
    category = "egress-mapper",
    doc = "An address that pods may leave the cluster with. One node at a time holds it.",
    printcolumn(name = "IP", type_ = "string", json_path = ".spec.ip"),
    printcolumn(name = "RouteID", type_ = "integer", json_path = ".status.routeid"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Egresses",
        type_ = "integer",
        json_path = ".status.egresses",
        priority = 1
    ),
    printcolumn(
        name = "Preferred",
        type_ = "string",
        json_path = ".spec.preferredNode",
        priority = 1
    ),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("required" = ["ip"]))]
pub struct VipSpec {
    /// The address: one IPv4 or IPv6 address of the nodes' network that no host has. It cannot be
    /// changed.
    #[serde(default)]
    #[schemars(length(max = rules::LONGEST_ADDRESS), transform = rules::without_default)]
    #[x_kube(
        validation = rules::address("ip"),
        validation = rules::reachable("ip"),
        validation = rules::rule("self == oldSelf", "ip cannot be changed; create another Vip and let the Egresses name it")
    )]
    pub ip: String,
    /// The number of the VIP, 1 to 252, unique among VIPs: routing table, packet mark and VRRP id
    /// in one. When it is left out, a free one is chosen (see status.routeid).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::rule("self >= 1 && self <= 252", "routeid must be from 1 to 252; leave it out to have a free one chosen"))]
    pub routeid: Option<i64>,
    /// The namespaces whose Egresses may use the VIP; "*" stands for all. When it is left out, only
    /// those of the Vip's own namespace may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = rules::rule("size(self) > 0", "namespaces must name at least one namespace, or be left out for the Vip's own"),
        validation = rules::rule("self.all(ns, ns == '*' || ns.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))", "namespaces must hold names of namespaces, or \"*\" for all")
    )]
    pub namespaces: Option<Vec<String>>,
    /// The node that is to hold the VIP while it can. The VIP moves there, also away from a node
    /// where it is fine; when this is taken out again, the VIP stays where it is.
    #[serde(rename = "preferredNode", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::rule("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')", "preferredNode must be the name of a node as kubectl get nodes shows it, or be left out"))]
    pub preferred_node: Option<String>,
    /// How packets of its pods leave; by default as the EgressMapper's defaultPath says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<VipPath>,
}

/// How packets of the pods leave now: ViaHolder, Direct, or Mixed when nodes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathTaken {
    /// All nodes with pods of it send new connections over the node that holds the VIP.
    ViaHolder,
    /// All of them translate on their own.
    Direct,
    /// Some do the one, some the other.
    Mixed,
}

/// The blocks of 1024 of a VIP's ports that nodes have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct BlocksStatus {
    /// How many nodes have blocks.
    #[serde(default)]
    pub nodes: i64,
    /// How many blocks they have.
    #[serde(default)]
    pub given: i64,
    /// How many of these are to be given back and still have connections.
    #[serde(default)]
    pub draining: i64,
    /// How many blocks are nobody's.
    #[serde(default)]
    pub free: i64,
}

/// What is known of a Vip.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VipStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The route id of an accepted Vip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routeid: Option<i64>,
    /// The node that holds the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How many Egresses use the VIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egresses: Option<i64>,
    /// How many pods leave with the VIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<i64>,
    /// How packets of its pods leave now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathTaken>,
    /// Who has how many blocks of its ports, if any node has some or may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlocksStatus>,
    /// Accepted, Held, InUse, Placed (it is on the node it should be on), Unique (no other machine
    /// uses it) and, where it is or was to be so, DirectPath (nodes translate on their own), each
    /// with reason and message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
