//! Pods of a cluster.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;

use super::cluster::KubeCluster;
use super::node_files::BUSYBOX;
use crate::command::run;
use crate::host::Host;
use crate::lab::Family;
use crate::wait::wait_until;

const RUNS_WITHIN: Duration = Duration::from_mins(1);

/// A pod that runs; it stays when this is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The name of its node.
    pub node: String,
    /// Its addresses, that of the API's `podIP` first.
    pub ips: Vec<IpAddr>,
}

impl RunningPod {
    /// Its address of that family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

impl KubeCluster {
    /// Runs a pod on each node as [`run_pod`](Self::run_pod) does, `<app>-1` and so on, each with the
    /// label `app`; where their networks are.
    pub fn pod_on_each_node(&self, app: &str) -> Result<Vec<Host>> {
        let labels = format!("{{app: {app}}}");
        let run = |node| {
            let pod = self.run_pod("default", &format!("{app}-{node}"), Some(node), &labels)?;
            self.pod_host(&pod)
        };
        (1..=self.nodes().len()).map(run).collect()
    }

    /// Runs a pod of busybox that waits, and returns when it is ready. `node`: counted from 1, or
    /// wherever the scheduler puts it. `labels`: as in YAML, such as `{app: web}`.
    pub fn run_pod(
        &self,
        namespace: &str,
        name: &str,
        node: Option<usize>,
        labels: &str,
    ) -> Result<RunningPod> {
        let selector = node
            .map(|number| {
                format!(
                    "  nodeSelector: {{kubernetes.io/hostname: {}}}\n",
                    self.node(number).host().name
                )
            })
            .unwrap_or_default();
        self.server().apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}, labels: {labels}}}
spec:
{selector}  containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never}}]
"
        ))?;
        self.await_pod(namespace, name)
    }

    /// Waits until a pod is ready.
    pub fn await_pod(&self, namespace: &str, name: &str) -> Result<RunningPod> {
        let timeout = format!("--timeout={}s", RUNS_WITHIN.as_secs());
        let what = format!("pod/{name}");
        self.server()
            .kubectl_within(
                RUNS_WITHIN + Duration::from_secs(5),
                &["wait", "--for=condition=Ready", &what, "-n", namespace, &timeout],
                "",
            )
            .with_context(|| format!("the pod {namespace}/{name} is not ready"))?;
        let text = self.server().kubectl(&["get", &what, "-n", namespace, "-o", "json"])?;
        let pod: Pod = serde_json::from_str(&text).context("cannot read the pod")?;
        running(pod).with_context(|| format!("the pod {namespace}/{name} has no node or address"))
    }

    /// Deletes a pod and waits until it is gone.
    pub fn delete_pod(&self, pod: &RunningPod) -> Result<()> {
        self.server().kubectl_within(
            RUNS_WITHIN,
            &["delete", "pod", &pod.name, "-n", &pod.namespace],
            "",
        )?;
        Ok(())
    }

    /// Runs a program in a pod's first container.
    pub fn exec(&self, pod: &RunningPod, command: &[&str]) -> Result<String> {
        let before = ["exec", "-n", &pod.namespace, &pod.name, "--"];
        self.server().kubectl(&[&before, command].concat())
    }

    /// The pod as a host of the laboratory, for all that runs on hosts: traffic, captures, `ping`.
    ///
    /// Its network lives until the cluster is removed, though nothing of Kubernetes is in it when
    /// the pod is gone.
    pub fn pod_host(&self, pod: &RunningPod) -> Result<Host> {
        let mut process = None;
        let found = wait_until(RUNS_WITHIN, || {
            process = process_of_pod(&pod.uid);
            process.is_some()
        });
        ensure!(found, "no process of the pod {} runs", pod.name);
        let netns = format!("{}p-{}", self.lab().prefix(), pod.uid);
        let process = process.unwrap_or_default().to_string();
        if !crate::sweep::leftovers_of(&netns).contains(&netns) {
            run(&["ip", "netns", "attach", &netns, &process])?;
        }
        let (Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))) = (pod.ip(Family::V4), pod.ip(Family::V6))
        else {
            anyhow::bail!("the pod {} does not have an address of each family", pod.name);
        };
        Ok(Host { name: pod.name.clone(), netns, v4, v6 })
    }
}

fn running(pod: Pod) -> Option<RunningPod> {
    let status = pod.status?;
    Some(RunningPod {
        namespace: pod.metadata.namespace?,
        name: pod.metadata.name?,
        uid: pod.metadata.uid?,
        node: pod.spec?.node_name?,
        ips: status.pod_ips?.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
    })
}

/// Any process in the pod's control group.
fn process_of_pod(uid: &str) -> Option<u32> {
    let wanted = format!("pod{uid}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        groups.contains(&wanted).then_some(pid)
    })
}
