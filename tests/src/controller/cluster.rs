//! A cluster that consists of objects only: what kubelets and controllers would have written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use shared::crd;
use tokio::runtime::Runtime;

use crate::ApiServer;
use crate::wait::wait_until;

const SOON: Duration = Duration::from_secs(15);
/// The controller's account and what it may do, as it is deployed.
const RIGHTS: [&str; 5] = [
    "service_account.yaml",
    "role.yaml",
    "role_binding.yaml",
    "cluster_role.yaml",
    "cluster_role_binding.yaml",
];

/// Objects of an API server, made and changed by a blocking client.
pub struct ObjectCluster {
    client: Client,
    runtime: Runtime,
}

/// API version, kind and plural of what is called like that.
const KINDS: [(&str, &str, &str, &str); 13] = [
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "Node", "nodes"),
    ("", "v1", "Pod", "pods"),
    ("", "v1", "ReplicationController", "replicationcontrollers"),
    ("apps", "v1", "DaemonSet", "daemonsets"),
    ("apps", "v1", "ReplicaSet", "replicasets"),
    ("batch", "v1", "Job", "jobs"),
    ("coordination.k8s.io", "v1", "Lease", "leases"),
    ("events.k8s.io", "v1", "Event", "events"),
    ("egress.mapper.com", "v1alpha1", "Vip", "vips"),
    ("egress.mapper.com", "v1alpha1", "Egress", "egresses"),
    ("egress.mapper.com", "v1alpha1", "EgressMapper", "egressmappers"),
];

fn resource(kind: &str) -> Result<ApiResource> {
    let found = KINDS.into_iter().find(|known| known.2 == kind);
    let (group, version, kind, plural) = found.with_context(|| format!("unknown kind {kind}"))?;
    let kind = GroupVersionKind::gvk(group, version, kind);
    Ok(ApiResource::from_gvk_with_plural(&kind, plural))
}

impl ObjectCluster {
    /// Makes the three resources known to the server, and gives the controller the rights that it
    /// is deployed with.
    pub fn prepare(server: &ApiServer) -> Result<Self> {
        let definitions = crd::definitions().map(|(_, definition)| definition);
        server.apply(
            &json!({ "apiVersion": "v1", "kind": "List", "items": definitions }).to_string(),
        )?;
        server.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=15s",
        ])?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for file in RIGHTS {
            let path = deploy.join(file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            server.apply(&text)?;
        }
        // Without a controller manager nobody else makes it, and pods are refused.
        server.apply(
            "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: default, name: default}}",
        )?;
        Self::of(server)
    }

    /// A client of a server that was prepared before.
    pub fn of(server: &ApiServer) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let client = runtime.block_on(server.client())?;
        Ok(Self { client, runtime })
    }

    /// The runtime and client, for what is not offered here.
    pub fn client(&self) -> (&Runtime, Client) {
        (&self.runtime, self.client.clone())
    }

    fn api(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let resource = resource(kind)?;
        Ok(if namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        })
    }

    /// Makes an object or changes it to be like that, and returns it.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let api = self.api(text("/kind"), text("/metadata/namespace"))?;
        let params = PatchParams::apply("tests").force();
        let patch = Patch::Apply(object);
        let applied = self.runtime.block_on(api.patch(text("/metadata/name"), &params, &patch));
        serde_json::to_value(applied.with_context(|| format!("cannot apply {object}"))?)
            .context("no JSON")
    }

    /// Changes parts of an object.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        let api = self.api(kind, namespace)?;
        let params = PatchParams { field_manager: Some("hand".into()), ..PatchParams::default() };
        let patch = Patch::Merge(patch);
        let request = api.patch(name, &params, &patch);
        self.runtime.block_on(request).map(drop).with_context(|| format!("cannot patch {name}"))
    }

    /// Changes parts of an object's status.
    pub fn patch_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<()> {
        let api = self.api(kind, namespace)?;
        let params = PatchParams { field_manager: Some("hand".into()), ..PatchParams::default() };
        let patch = Patch::Merge(patch);
        let request = api.patch_status(name, &params, &patch);
        self.runtime
            .block_on(request)
            .map(drop)
            .with_context(|| format!("cannot patch the status of {name}"))
    }

    /// Deletes an object at once.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let api = self.api(kind, namespace)?;
        let params = DeleteParams::default().grace_period(0);
        self.runtime
            .block_on(api.delete(name, &params))
            .map(drop)
            .with_context(|| format!("cannot delete {name}"))
    }

    /// An object as it is; `None` if there is none, or no answer.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let object = self.runtime.block_on(self.api(kind, namespace).ok()?.get(name)).ok()?;
        serde_json::to_value(object).ok()
    }

    /// All objects of a kind in a namespace.
    pub fn list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let api = self.api(kind, namespace)?;
        let list = self.runtime.block_on(api.list(&ListParams::default()))?;
        list.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// The pods in the share of that node, but for which addresses are whose and who is gone.
    pub fn share(&self, node: &str) -> Option<BTreeMap<String, String>> {
        let mut data = self.data(&format!("podip-vip-mappings-{node}"))?;
        data.retain(|key, value| !key.ends_with(".addresses") && value != "gone");
        Some(data)
    }

    /// The data of a `ConfigMap` in `default`; `None` if there is no such object.
    pub fn data(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let object = self.get("ConfigMap", "default", name)?;
        let data = object.get("data").cloned().unwrap_or_else(|| json!({}));
        serde_json::from_value(data).ok()
    }

    /// The value of a key in a `ConfigMap` in `default`.
    pub fn entry(&self, object: &str, key: &str) -> Option<String> {
        self.data(object)?.remove(key)
    }

    /// The version of an object, which changes with every write.
    pub fn version(&self, kind: &str, namespace: &str, name: &str) -> Option<String> {
        let object = self.get(kind, namespace, name)?;
        Some(object.pointer("/metadata/resourceVersion")?.as_str()?.to_owned())
    }

    /// Status, reason and message of an object's condition.
    pub fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<[String; 3]> {
        let object = self.get(kind, "default", name)?;
        let all = object.pointer("/status/conditions")?.as_array()?;
        let found = all.iter().find(|is| is["type"] == condition)?;
        Some(
            ["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or("").to_owned()),
        )
    }

    /// A node that is ready.
    pub fn node(&self, name: &str, address: &str, pods: &str) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { "name": name } },
            "spec": { "podCIDR": pods, "podCIDRs": [pods] },
        }))?;
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        self.patch_status("Node", "", name, &status)
    }

    /// A pod that is bound to a node, without an address yet.
    pub fn pod(&self, name: &str, node: &str, metadata: &Value) -> Result<Value> {
        let mut metadata = metadata.clone();
        metadata["name"] = name.into();
        metadata["namespace"] = "default".into();
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": metadata,
            "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "localhost/none" }] },
        }))
    }

    /// Gives a pod its addresses, as its kubelet would.
    pub fn address(&self, pod: &str, addresses: &[&str]) -> Result<()> {
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let first = addresses.first().copied().unwrap_or_default();
        let status = json!({ "phase": "Running", "podIP": first, "podIPs": ips });
        self.patch_status("Pod", "default", pod, &json!({ "status": status }))
    }

    /// A Vip in `default`.
    pub fn vip(&self, name: &str, spec: &Value) -> Result<Value> {
        self.ours("Vip", name, spec)
    }

    /// An Egress in `default`.
    pub fn egress(&self, name: &str, spec: &Value) -> Result<Value> {
        self.ours("Egress", name, spec)
    }

    /// One of our own resources in `default`.
    pub fn ours(&self, kind: &str, name: &str, spec: &Value) -> Result<Value> {
        self.apply(&json!({
            "apiVersion": "egress.mapper.com/v1alpha1", "kind": kind,
            "metadata": { "name": name, "namespace": "default" },
            "spec": spec,
        }))
    }

    /// Asks until it is so, for at most 15 seconds.
    ///
    /// # Panics
    /// When it does not come to that.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        assert!(wait_until(SOON, || holds(self)), "did not come true within {SOON:?}: {what}");
    }
}
