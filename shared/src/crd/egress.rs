//! `Egress`: which pods leave with which VIP.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, rules};

/// The conditions of an Egress's status.
pub mod condition {
    pub const READY: &str = "Ready";
}

/// What an Egress is to be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, CustomResource, KubeSchema)]
#[kube(
    group = "egress.mapper.com",
    version = "v1alpha1",
    kind = "Egress",
    plural = "egresses",
    shortname = "eg",
    namespaced,
    status = "EgressStatus",
    derive = "Default",
    derive = "PartialEq",
    category = "egress-mapper",
    doc = "Lets pods leave the cluster with the address of a Vip.",
    printcolumn(name = "IP", type_ = "string", json_path = ".spec.ip"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.namespace"),
    printcolumn(name = "Name", type_ = "string", json_path = ".spec.name"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Mapped", type_ = "integer", json_path = ".status.mapped", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = names_something(),
    validation = selects_pods(),
    validation = selects_or_names()
)]
#[schemars(extend("required" = ["ip", "kind"]))]
pub struct EgressSpec {
    /// The address of the Vip that the pods leave with.
    #[serde(default)]
    #[schemars(length(max = rules::LONGEST_ADDRESS), transform = rules::without_default)]
    #[x_kube(validation = rules::address("ip"), validation = rules::reachable("ip"))]
    pub ip: String,
    /// The kind of object whose pods these are: pod, replicationcontroller, replicaset, deployment,
    /// statefulset, daemonset, job, cronjob or namespace; in any case, plurals and kubectl's short
    /// names too.
    #[serde(default)]
    #[schemars(length(max = 32), transform = rules::without_default)]
    #[x_kube(validation = known_kind())]
    pub kind: String,
    /// The namespace of the object; by default the Egress's own. Another one may be named only in
    /// the namespace that the controller runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::namespace("namespace"))]
    pub namespace: Option<String>,
    /// The name of the object. With kind namespace it names the namespace, and namespace is used
    /// when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("name"))]
    pub name: Option<String>,
    /// Which pods of the namespace, by their labels; with kind pod and without name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// What the pods do while the VIP does not exist, is not accepted or is on no node: their
    /// external traffic is dropped (Drop), or leaves with the node's address (NodeAddress).
    #[serde(default)]
    pub when_unavailable: WhenUnavailable,
}

/// What pods do while their VIP cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WhenUnavailable {
    #[default]
    Drop,
    NodeAddress,
}

/// What is known of an Egress.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many live pods match, apart from those on the host network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<i64>,
    /// How many of them leave with the VIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<i64>,
    /// How many matching pods are left out: on the host network, or finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<i64>,
    /// Ready, with reason and message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A kind of object that pods belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Pod,
    ReplicationController,
    ReplicaSet,
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    CronJob,
    Namespace,
}

impl Kind {
    /// Every kind, with what it may be called in lower case: singular, plural, kubectl's short name.
    const NAMES: [(Self, &[&str]); 9] = [
        (Self::Pod, &["pod", "pods", "po"]),
        (Self::ReplicationController, &["replicationcontroller", "replicationcontrollers", "rc"]),
        (Self::ReplicaSet, &["replicaset", "replicasets", "rs"]),
        (Self::Deployment, &["deployment", "deployments", "deploy"]),
        (Self::StatefulSet, &["statefulset", "statefulsets", "sts"]),
        (Self::DaemonSet, &["daemonset", "daemonsets", "ds"]),
        (Self::Job, &["job", "jobs"]),
        (Self::CronJob, &["cronjob", "cronjobs", "cj"]),
        (Self::Namespace, &["namespace", "namespaces", "ns"]),
    ];

    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ReplicationController => "ReplicationController",
            Self::ReplicaSet => "ReplicaSet",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::Namespace => "Namespace",
        }
    }
}

/// The text names no kind that an Egress can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kind {0:?} is unknown; use {KINDS}")]
pub struct UnknownKind(pub String);

/// All kinds, for messages.
const KINDS: &str = "pod, replicationcontroller, replicaset, deployment, statefulset, daemonset, \
                     job, cronjob or namespace";

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let called = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(text));
        let found = Self::NAMES.into_iter().find(|(_, names)| called(names));
        found.map(|(kind, _)| kind).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A CEL list of what the kinds for which `wanted` holds may be called.
fn called(wanted: impl Fn(Kind) -> bool) -> String {
    let kinds = Kind::NAMES.into_iter().filter(|&(kind, _)| wanted(kind));
    let names: Vec<String> =
        kinds.flat_map(|(_, names)| names).map(|name| format!("'{name}'")).collect();
    format!("[{}]", names.join(", "))
}

fn known_kind() -> Rule {
    rules::rule(
        format!("self.lowerAscii() in {}", called(|_| true)),
        format!("kind must be {KINDS}; plurals and kubectl's short names do, too"),
    )
}

fn names_something() -> Rule {
    rules::rule(
        format!(
            "has(self.selector) || (has(self.name) && self.name != '') || self.kind.lowerAscii() in {}",
            called(|kind| kind == Kind::Namespace)
        ),
        "name is missing: name the object whose pods are meant; with kind pod, selector may stand \
         instead",
    )
}

fn selects_pods() -> Rule {
    rules::rule(
        format!(
            "!has(self.selector) || self.kind.lowerAscii() in {}",
            called(|kind| kind == Kind::Pod)
        ),
        "selector is for kind pod only; remove it, or use kind pod",
    )
}

fn selects_or_names() -> Rule {
    rules::rule(
        "!has(self.selector) || !has(self.name) || self.name == ''",
        "selector and name exclude each other; remove one of them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_names() {
        for (kind, names) in Kind::NAMES {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            for name in names {
                assert_eq!(name.parse(), Ok(kind));
                assert_eq!(name.to_uppercase().parse(), Ok(kind));
            }
            assert!(KINDS.contains(names[0]));
        }
        assert_eq!(
            "service".parse::<Kind>().unwrap_err().to_string(),
            "kind \"service\" is unknown; use pod, replicationcontroller, replicaset, deployment, \
             statefulset, daemonset, job, cronjob or namespace"
        );
    }

    #[test]
    fn an_object_without_fields_can_be_read() {
        let spec: EgressSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(spec, EgressSpec::default());
    }
}
