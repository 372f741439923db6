//! Pure: from an `EgressMapper` to the two `DaemonSets` that run on the nodes.
//!
//! Everything that matters for what the pods may do is stated, also where it is the default: what
//! is applied wins over what a hand or an older version has set, what is left out does not.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shared::crd::egress_mapper::Adverts;
use shared::crd::selector::Operator;
use shared::crd::{EgressMapper, EgressMapperSpec, LabelSelector};

use crate::publish::patch::MANAGED_BY;

/// The agents' `DaemonSet`, and the service account that its pods have.
pub const AGENT: &str = "kube-egress";
/// The `DaemonSet` of keepalived, and the service account that its pods have.
pub const KEEPALIVED: &str = "kube-keepalived-vip";
/// The annotation with a digest of what was applied.
pub const DIGEST: &str = "egress.mapper.com/applied";

/// Where the agent serves probes.
const AGENT_PORT: u16 = 9797;
/// Where libcni keeps what CNI plugins answer; the agent looks there by itself.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// The longest interval that the agent accepts, in seconds.
const LONGEST_INTERVAL: u32 = 3600;

/// A `DaemonSet` to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonSet {
    pub name: &'static str,
    /// All that is ours of it.
    pub object: Value,
    /// A digest of the object; the same for the same object in every version of this program.
    pub digest: String,
}

/// Why a `DaemonSet` is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("{field} is not set; name the image of {daemon_set}")]
    NoImage { field: &'static str, daemon_set: &'static str },
    #[error(
        "{field} is {image}, which reads other objects, knows nothing of nodes' shares and needs \
         iptables; use the kube-egress image of this project"
    )]
    Predecessor { field: &'static str, image: String },
}

/// The `DaemonSets` that `mapper` asks for, as far as it can be done.
pub fn daemon_sets(mapper: &EgressMapper, namespace: &str) -> Vec<Result<DaemonSet, Unusable>> {
    let spec = &mapper.spec;
    let agent = image(spec.kube_egress_image.as_deref(), "KubeEgressImage", AGENT)
        .and_then(|image| works_here(image, "KubeEgressImage"))
        .map(|image| (AGENT, agent(spec, image)));
    let keepalived = image(spec.keepalived_vip_image.as_deref(), "KeepalivedVIPImage", KEEPALIVED)
        .map(|image| (KEEPALIVED, keepalived(spec, image, namespace)));
    let complete = |(name, parts)| complete(mapper, namespace, name, parts);
    [agent, keepalived].into_iter().map(|parts| parts.map(complete)).collect()
}

fn image<'a>(
    given: Option<&'a str>,
    field: &'static str,
    daemon_set: &'static str,
) -> Result<&'a str, Unusable> {
    let image = given.map(str::trim).filter(|image| !image.is_empty());
    image.ok_or(Unusable::NoImage { field, daemon_set })
}

/// The images of the predecessor of the agent are known by their repositories.
fn works_here<'a>(image: &'a str, field: &'static str) -> Result<&'a str, Unusable> {
    let repository = image.split('@').next().unwrap_or(image);
    let repository = match repository.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => repository,
    };
    let unusable = ["ssheehy/kube-egress", "steven-sheehy/kube-egress", "mkimuram/kube-egress"];
    let is = |known: &&str| {
        repository.strip_suffix(*known).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    };
    if unusable.iter().any(is) {
        Err(Unusable::Predecessor { field, image: image.to_owned() })
    } else {
        Ok(image)
    }
}

/// What differs between the two.
struct Parts {
    /// The pods' label, as published: never to be changed, as selectors cannot be.
    label: (&'static str, &'static str),
    container: Value,
    volumes: Value,
    affinity: Option<Value>,
    /// How long a pod has to be ready before the next one is replaced, in seconds.
    min_ready: u32,
    /// How long a pod may take to stop, in seconds.
    grace: u32,
}

fn agent(spec: &EgressMapperSpec, image: &str) -> Parts {
    let interface = text(spec.interface_name.as_deref());
    let interval = text(spec.update_interval.as_deref()).and_then(interval);
    let args: Vec<String> = [
        interface.map(|interface| format!("--interface={interface}")),
        interval.map(|seconds| format!("--update-interval={seconds}s")),
        spec.strict_pods.filter(|strict| *strict).map(|_| "--strict-pods".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let probe = |path: &str| json!({ "path": path, "port": AGENT_PORT, "scheme": "HTTP" });
    let container = json!({
        "name": AGENT,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "env": environment(),
        "livenessProbe": {
            "httpGet": probe("/healthz"),
            "initialDelaySeconds": 5, "periodSeconds": 10, "timeoutSeconds": 3, "failureThreshold": 6,
        },
        // Ready is: the kernel holds all that is mapped. A rolling update waits for it.
        "readinessProbe": {
            "httpGet": probe("/readyz"),
            "periodSeconds": 2, "timeoutSeconds": 3, "failureThreshold": 3,
        },
        // No limits: a throttled agent is a slow first packet. The request is its share of a node that is busy.
        "resources": { "requests": { "cpu": "100m", "memory": "32Mi" } },
        "securityContext": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            // Files below /proc/sys belong to root.
            "runAsUser": 0,
            "runAsNonRoot": false,
            // NET_ADMIN: policy rules, routes, nft tables, conntrack, all over netlink. NET_RAW: probes
            // with the address of a VIP.
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            // rp_filter has to be loosened on uplinks; a container's own /proc/sys is read-only.
            // Only net of it, and as the node's network namespace has it, for the pod is in that.
            { "name": "sysctl", "mountPath": "/host/proc/sys/net" },
            // Where container runtimes leave what CNI plugins answer: the addresses of new pods.
            { "name": "cni-results", "mountPath": CNI_RESULTS, "readOnly": true },
        ],
    });
    Parts {
        label: ("app", AGENT),
        container,
        volumes: json!([
            { "name": "sysctl", "hostPath": { "path": "/proc/sys/net", "type": "Directory" } },
            // Made where there is none: a directory that a runtime makes later would not be seen.
            { "name": "cni-results", "hostPath": { "path": CNI_RESULTS, "type": "DirectoryOrCreate" } },
        ]),
        affinity: None,
        min_ready: 0,
        // When the DaemonSet is deleted, an agent removes all that is ours before it ends.
        grace: 30,
    }
}

fn keepalived(spec: &EgressMapperSpec, image: &str, namespace: &str) -> Parts {
    // kube-keepalived-vip images of others know no flags of ours, and pass over the environment.
    let mut env = environment();
    let interface = text(spec.interface_name.as_deref()).map(str::to_owned);
    // keepalived counts in hundredths of a second.
    let advert = spec.advert_interval_millis.map(|millis| (millis / 10 * 10).clamp(10, 40_950));
    let advert = advert.map(|millis| millis.to_string());
    let adverts = (spec.adverts == Some(Adverts::Unicast)).then(|| "unicast".to_owned());
    for (name, value) in
        [("INTERFACE_NAME", interface), ("ADVERT_INTERVAL_MS", advert), ("ADVERTS", adverts)]
    {
        env.extend(value.map(|value| json!({ "name": name, "value": value })));
    }
    let dev = spec.need_mount_dev.unwrap_or_default();
    let scratch = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
    let mut mounts = vec![
        // Process ids, notifications, and locks of iptables.
        scratch("run", "/run"),
        // The configuration that is rendered.
        scratch("keepalived", "/etc/keepalived"),
        scratch("tmp", "/tmp"),
    ];
    let mut volumes: Vec<Value> = ["run", "keepalived", "tmp"]
        .map(
            |name| json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }),
        )
        .into();
    let security = if dev {
        // The node's devices are of use to a privileged container only. Images that ask for them
        // load the kernel's ip_vs as well.
        mounts.push(json!({ "name": "dev", "mountPath": "/dev" }));
        mounts.push(json!({ "name": "modules", "mountPath": "/lib/modules", "readOnly": true }));
        volumes.push(json!({ "name": "dev", "hostPath": { "path": "/dev", "type": "Directory" } }));
        volumes
            .push(json!({ "name": "modules", "hostPath": { "path": "/lib/modules", "type": "" } }));
        json!({ "privileged": true, "readOnlyRootFilesystem": true })
    } else {
        json!({
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            // Raw sockets need more than a user's rights.
            "runAsUser": 0,
            "runAsNonRoot": false,
            // NET_ADMIN: the VIPs' addresses. NET_RAW: VRRP is a protocol of its own, and ARP.
            // SYS_NICE: adverts are to be sent on time on a busy node. KILL, SETUID, SETGID: its
            // own children.
            "capabilities": {
                "drop": ["ALL"],
                "add": ["KILL", "NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SETGID", "SETUID", "SYS_NICE"],
            },
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    };
    // No probes: nothing tells our image from others, which would fail them. Without a launcher keepalived goes on, and
    // agents take off what a container has left.
    let container = json!({
        "name": KEEPALIVED,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": [format!("--services-configmap={namespace}/{}", shared::config_map::VIPS)],
        "env": env,
        "resources": { "requests": { "cpu": "100m", "memory": "24Mi" } },
        "securityContext": security,
        "volumeMounts": mounts,
    });
    Parts {
        label: ("name", KEEPALIVED),
        container,
        volumes: Value::Array(volumes),
        affinity: spec.gateway_selector.as_ref().and_then(affinity),
        // The next node is taken only when the VIPs have settled after the one before.
        min_ready: 5,
        // VIPs are handed over first, which takes some adverts; then keepalived takes a second to end, or some when
        // it hangs.
        grace: 20,
    }
}

fn complete(mapper: &EgressMapper, namespace: &str, name: &'static str, parts: Parts) -> DaemonSet {
    let Parts { label: (key, value), container, volumes, affinity, min_ready, grace } = parts;
    let selector = json!({ key: value });
    let mut pod = json!({
        "serviceAccountName": name,
        // Rules and VIPs are the node's.
        "hostNetwork": true,
        // They look up no names of services, and must start before the cluster's DNS does.
        "dnsPolicy": "Default",
        // A mapped pod may run wherever pods do, also where the node is not ready or tainted.
        "tolerations": [{ "operator": "Exists" }],
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": grace,
        "containers": [container],
        "volumes": volumes,
    });
    if let (Some(affinity), Some(pod)) = (affinity, pod.as_object_mut()) {
        pod.insert("affinity".to_owned(), affinity);
    }
    let owner = json!({
        "apiVersion": "egress.mapper.com/v1alpha1",
        "kind": "EgressMapper",
        "name": mapper.metadata.name,
        "uid": mapper.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    });
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { MANAGED_BY.0: MANAGED_BY.1, key: value },
            "ownerReferences": [owner],
        },
        "spec": {
            "selector": { "matchLabels": selector },
            // One node at a time. A new agent cannot run beside the old one (they share the node's
            // port and kernel), and rules stay meanwhile. keepalived hands its VIPs over when it
            // stops: with one node at a time there is always another to take them.
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 },
            },
            "minReadySeconds": min_ready,
            "template": { "metadata": { "labels": selector }, "spec": pod },
        },
    });
    let digest = digest(&object.to_string());
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({ DIGEST: digest }));
    }
    DaemonSet { name, object, digest }
}

fn environment() -> Vec<Value> {
    let fields = [
        ("NODE_NAME", "spec.nodeName"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
    ];
    let variable = |(name, path): (&str, &str)| {
        let field = json!({ "apiVersion": "v1", "fieldPath": path });
        json!({ "name": name, "valueFrom": { "fieldRef": field } })
    };
    fields.map(variable).into()
}

/// The nodes that a selector means, as pods ask for them; `None`: all.
fn affinity(selector: &LabelSelector) -> Option<Value> {
    let labels: BTreeMap<_, _> = selector.match_labels.iter().collect();
    let mut expressions: Vec<Value> = labels
        .into_iter()
        .map(|(key, value)| json!({ "key": key, "operator": "In", "values": [value] }))
        .collect();
    expressions.extend(selector.match_expressions.iter().map(|requirement| {
        let operator = match requirement.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
        };
        json!({ "key": requirement.key, "operator": operator, "values": requirement.values })
    }));
    let required = json!({ "nodeSelectorTerms": [{ "matchExpressions": expressions }] });
    (!expressions.is_empty()).then(|| {
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } })
    })
}

/// Nothing where the text is empty.
fn text(given: Option<&str>) -> Option<&str> {
    given.map(str::trim).filter(|text| !text.is_empty())
}

/// Seconds from text; what is longer than the agent accepts is cut, what is no number left out.
fn interval(text: &str) -> Option<u32> {
    let seconds: u32 = text.strip_suffix('s').unwrap_or(text).parse().ok()?;
    (seconds > 0).then_some(seconds.min(LONGEST_INTERVAL))
}

/// FNV-1a: a change is to be noticed, not an attack.
fn digest(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests;
