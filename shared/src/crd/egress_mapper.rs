//! `EgressMapper`: how the programs on the nodes run, and which networks are the cluster's own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, rules};
use crate::VipPath;

/// The conditions of an `EgressMapper`'s status.
pub mod condition {
    pub const ACCEPTED: &str = "Accepted";
    pub const READY: &str = "Ready";
}

/// What an EgressMapper is to be. The oldest one of the controller's namespace counts.
///
/// The fields in capitals are spelled as they were published first.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, CustomResource, KubeSchema)]
#[kube(
    group = "egress.mapper.com",
    version = "v1alpha1",
    kind = "EgressMapper",
    plural = "egressmappers",
    shortname = "egm",
    namespaced,
    status = "EgressMapperStatus",
    derive = "Default",
    derive = "PartialEq",
    category = "egress-mapper",
    doc = "How the programs on the nodes run, and which networks are the cluster's own. The oldest \
           one of the controller's namespace counts.",
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.InterfaceName"),
    printcolumn(name = "Gateways", type_ = "integer", json_path = ".status.gateways"),
    printcolumn(
        name = "ReadyGateways",
        type_ = "integer",
        json_path = ".status.readyGateways",
        priority = 1
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "InSync", type_ = "integer", json_path = ".status.inSync"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "PodSubnet", type_ = "string", json_path = ".spec.PodSubnet", priority = 1),
    printcolumn(
        name = "ServiceSubnet",
        type_ = "string",
        json_path = ".spec.ServiceSubnet",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressMapperSpec {
    /// The image of the pods that decide which node holds a VIP (DaemonSet kube-keepalived-vip).
    #[serde(rename = "KeepalivedVIPImage", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub keepalived_vip_image: Option<String>,
    /// Whether those pods get the nodes' /dev.
    #[serde(rename = "NeedMountDev", default, skip_serializing_if = "Option::is_none")]
    pub need_mount_dev: Option<bool>,
    /// The image of the pods that set up the nodes (DaemonSet kube-egress).
    #[serde(rename = "KubeEgressImage", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub kube_egress_image: Option<String>,
    /// Where pods have their addresses: networks in CIDR form, separated by commas. By default
    /// what the nodes say (spec.podCIDRs).
    #[serde(rename = "PodSubnet", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = rules::networks_in_text("PodSubnet"),
        validation = rules::no_default_route_in_text("PodSubnet")
    )]
    pub pod_subnet: Option<String>,
    /// Where services have their cluster addresses: networks in CIDR form, separated by commas.
    #[serde(rename = "ServiceSubnet", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = rules::networks_in_text("ServiceSubnet"),
        validation = rules::no_default_route_in_text("ServiceSubnet")
    )]
    pub service_subnet: Option<String>,
    /// The nodes' interface that VIPs are on. By default the one of the default route.
    #[serde(rename = "InterfaceName", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(validation = rules::rule("self.matches('^([A-Za-z0-9_][-A-Za-z0-9_.+]*)?$')", "InterfaceName must be the name of one network interface, such as eth0"))]
    pub interface_name: Option<String>,
    /// How often each node's rules are looked at as a whole, in seconds: "5" or "5s".
    #[serde(rename = "UpdateInterval", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::rule("self == '' || self.matches('^[1-9][0-9]{0,4}s?$')", "UpdateInterval must be whole seconds from 1 to 99999 as text, such as \"5\" or \"5s\""))]
    pub update_interval: Option<String>,
    /// Which nodes may hold VIPs, by their labels; by default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_selector: Option<LabelSelector>,
    /// Whether VIPs that are fine where they are move so that every gateway holds as many: Never
    /// (the default; only VIPs that no Egress uses move) or Always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<Rebalance>,
    /// How packets of pods leave with Vips that do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_path: Option<VipPath>,
    /// How often the holder of a VIP says that it is there, in milliseconds, 10 to 40950.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::rule("self >= 10 && self <= 40950", "advertIntervalMillis must be from 10 to 40950; leave it out for the default"))]
    pub advert_interval_millis: Option<i64>,
    /// How the holder of a VIP says that it is there: Multicast (the default), or Unicast, to each
    /// other node that may hold VIPs, where the network has no multicast. A change of it interrupts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adverts: Option<Adverts>,
    /// Whether pods without a VIP are kept from the outside until it is known that none is for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_pods: Option<bool>,
    /// Networks in CIDR form that mapped pods reach with the node's address, as if not mapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 49)))]
    #[x_kube(
        validation = rules::networks_in_list("excludedNetworks"),
        validation = rules::no_default_route_in_list("excludedNetworks")
    )]
    pub excluded_networks: Vec<String>,
}

/// Whether VIPs that are fine where they are move for the sake of an even spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Rebalance {
    /// Only those that no Egress uses.
    #[default]
    Never,
    /// All but those with a preferred node; each move costs at most a few packets.
    Always,
}

/// To whom VRRP adverts are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Adverts {
    /// To VRRP's group.
    #[default]
    Multicast,
    /// To each node that may hold VIPs.
    Unicast,
}

/// What is known of an EgressMapper.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressMapperStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many nodes may hold VIPs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<i64>,
    /// How many of them take VIPs now: they are ready, their agents are in sync, and they are neither
    /// cordoned nor being drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_gateways: Option<i64>,
    /// How many nodes there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// How many nodes' agents report that they are in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_sync: Option<i64>,
    /// Accepted and Ready, each with reason and message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
