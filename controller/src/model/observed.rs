//! What is known of the cluster, reduced to what decides.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use shared::config_map::NodeReport;
use shared::crd::{self, Kind};
use shared::{PodIp, RouteId, Vip};

/// Everything that a decision depends on. The order within the lists does not matter.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// When it was observed.
    pub now: Timestamp,
    /// The namespace the controller runs in.
    pub namespace: String,
    /// The Vips of all namespaces.
    pub vips: Vec<Arc<crd::Vip>>,
    /// The Egresses of all namespaces.
    pub egresses: Vec<Arc<crd::Egress>>,
    /// The `EgressMapper`s of all namespaces.
    pub mappers: Vec<Arc<crd::EgressMapper>>,
    /// The pods of all namespaces.
    pub pods: Vec<Arc<Pod>>,
    /// The `ReplicaSet`s and Jobs of all namespaces.
    pub owned: Vec<Arc<Owned>>,
    /// The cluster's nodes.
    pub nodes: Vec<Arc<Node>>,
    /// What the nodes report, by the node's name.
    pub reports: BTreeMap<String, NodeReport>,
    /// The route ids that are published now.
    pub published_route_ids: BTreeMap<Vip, RouteId>,
    /// The candidates that are published now, best first.
    pub published_candidates: BTreeMap<Vip, Vec<String>>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Shared, because the pods of one owner have the same.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its controller, if it has one that an Egress can name or that can have one.
    pub owner: Option<Owner>,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Its own addresses; those of the node if it is on the host network.
    pub ips: Vec<PodIp>,
    pub host_network: bool,
    /// Its phase is Succeeded or Failed: it sends nothing any more.
    pub finished: bool,
    /// It is being deleted; it may send until it is finished or gone.
    pub terminating: bool,
    pub created: Timestamp,
}

/// The controller of a pod, or of what controls a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub kind: Kind,
    pub name: String,
    pub uid: String,
}

impl Owner {
    /// The controller among these references, if it is of a kind that an Egress can name.
    pub fn of(references: &[OwnerReference]) -> Option<Self> {
        let controller = references.iter().find(|owner| owner.controller == Some(true))?;
        let group = controller.api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = match (group, controller.kind.as_str()) {
            ("", "ReplicationController") => Kind::ReplicationController,
            ("apps", "ReplicaSet") => Kind::ReplicaSet,
            ("apps", "Deployment") => Kind::Deployment,
            ("apps", "StatefulSet") => Kind::StatefulSet,
            ("apps", "DaemonSet") => Kind::DaemonSet,
            ("batch", "Job") => Kind::Job,
            ("batch", "CronJob") => Kind::CronJob,
            _ => return None,
        };
        Some(Self { kind, name: controller.name.clone(), uid: controller.uid.clone() })
    }
}

/// A `ReplicaSet` or Job: the middle of a chain of owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub uid: String,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    /// Its controller: a Deployment or `CronJob`.
    pub owner: Option<Owner>,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// All its addresses (`status.addresses` that are IP addresses).
    pub addresses: Vec<IpAddr>,
    /// Those of the nodes' own network (type `InternalIP`), in the order they have there.
    pub internal: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub ready: bool,
    pub unschedulable: bool,
    /// Since when it is that, if that is known.
    pub cordoned: Option<Timestamp>,
    /// Where its pods have their addresses.
    pub pod_cidrs: Vec<IpNet>,
}

impl Node {
    /// Where other nodes reach it: the first internal address of each family.
    pub fn reached_at(&self) -> impl Iterator<Item = IpAddr> {
        let of_family =
            |ipv4| self.internal.iter().copied().find(move |addr| addr.is_ipv4() == ipv4);
        [true, false].into_iter().filter_map(of_family)
    }
}
