//! Pure: from the API's objects to what decisions are made of.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use shared::PodIp;
use shared::crd::Kind;

use super::SeenDaemonSet;
use crate::daemon_sets::DIGEST;
use crate::model::{Node, Owned, Owner, Pod};
use crate::publish::matters;
use crate::watch::objects::{ConfigMapObject, DaemonSetObject, NodeObject, PodObject};

/// The taint that Kubernetes puts on a node when it is cordoned.
const CORDON: &str = "node.kubernetes.io/unschedulable";

/// A pod; addresses that no pod can have are left out.
pub fn pod(object: PodObject) -> Option<Pod> {
    let PodObject { metadata, spec, status } = object;
    let mut texts: Vec<String> =
        status.pod_ips.unwrap_or_default().into_iter().map(|entry| entry.ip).collect();
    texts.extend(status.pod_ip.filter(|ip| !texts.contains(ip)));
    let mut ips: Vec<PodIp> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    ips.shrink_to_fit();
    Some(Pod {
        owner: Owner::of(metadata.owner_references.as_deref().unwrap_or_default()),
        terminating: metadata.deletion_timestamp.is_some(),
        created: created(&metadata),
        namespace: metadata.namespace?,
        name: metadata.name?,
        uid: metadata.uid.unwrap_or_default(),
        labels: Arc::new(metadata.labels.unwrap_or_default()),
        node: spec.node_name.filter(|node| !node.is_empty()),
        ips,
        host_network: spec.host_network,
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
    })
}

/// A node.
pub fn node(object: NodeObject) -> Option<Node> {
    let NodeObject { metadata, spec, status } = object;
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.iter().filter(|entry| entry.type_ == "InternalIP");
    let conditions = status.conditions.unwrap_or_default();
    let mut cidrs = spec.pod_cidrs.unwrap_or_default();
    cidrs.extend(spec.pod_cidr.filter(|cidr| !cidrs.contains(cidr)));
    let network = |cidr: &String| cidr.parse::<IpNet>().ok().map(|net| net.trunc());
    let taints = spec.taints.unwrap_or_default();
    let cordon = taints.into_iter().find(|taint| taint.key == CORDON).and_then(|of| of.time_added);
    Some(Node {
        name: metadata.name?,
        internal: internal.filter_map(|entry| entry.address.parse().ok()).collect(),
        addresses: addresses.iter().filter_map(|entry| entry.address.parse().ok()).collect(),
        labels: metadata.labels.unwrap_or_default(),
        ready: conditions.iter().any(|is| is.type_ == "Ready" && is.status == "True"),
        unschedulable: spec.unschedulable,
        cordoned: cordon.filter(|_| spec.unschedulable).map(|time| time.0),
        pod_cidrs: cidrs.iter().filter_map(network).collect(),
    })
}

/// A `ReplicaSet` or Job.
pub fn owned(kind: Kind, metadata: ObjectMeta) -> Option<Owned> {
    Some(Owned {
        kind,
        owner: Owner::of(metadata.owner_references.as_deref().unwrap_or_default()),
        uid: metadata.uid?,
        namespace: metadata.namespace?,
        name: metadata.name?,
    })
}

/// A `ConfigMap`, if it is one of those that matter.
pub fn config_map(object: ConfigMapObject) -> Option<ConfigMapObject> {
    object.metadata.name.as_deref().is_some_and(matters).then_some(object)
}

/// What matters of a `DaemonSet`.
pub fn daemon_set(object: DaemonSetObject) -> Option<SeenDaemonSet> {
    let DaemonSetObject { metadata, status } = object;
    let owners = metadata.owner_references.unwrap_or_default();
    Some(SeenDaemonSet {
        name: metadata.name?,
        uid: metadata.uid?,
        generation: metadata.generation.unwrap_or_default(),
        digest: metadata.annotations.and_then(|mut notes| notes.remove(DIGEST)),
        owner: owners
            .into_iter()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid),
        terminating: metadata.deletion_timestamp.is_some(),
        observed_generation: status.observed_generation,
        desired_pods: status.desired_number_scheduled,
        ready_pods: status.number_ready,
        updated_pods: status.updated_number_scheduled,
    })
}

/// One of our own resources, without the API server's notes on who wrote which field.
pub fn crd_object<K: Resource>(mut object: K) -> Option<K> {
    object.meta_mut().managed_fields = None;
    Some(object)
}

fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}
