//! egress-mapper on a real Kubernetes, installed as users install it.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::agent::Agent;
use crate::command::run_within;
use crate::kubernetes::{KubeCluster, KubeNode};
use crate::shell::{Shell, repository};

const IMAGES: [&str; 3] = ["egress-mapper", "kube-egress", "kube-keepalived-vip"];
const BUILT_WITHIN: Duration = Duration::from_mins(3);
const MAPPED_WITHIN: Duration = Duration::from_mins(1);

/// A cluster with egress-mapper in namespace `default`; removed with it when dropped.
#[derive(Debug)]
pub struct Installation {
    shell: Shell,
    cluster: KubeCluster,
}

impl Installation {
    /// Starts a cluster of three workers, builds the images from the built programs, and deploys.
    pub fn start() -> Result<Self> {
        let this = Self::prepare()?;
        this.sh("deploy/deploy.sh")?;
        Ok(this)
    }

    /// As [`Installation::start`], but nothing is deployed yet.
    pub fn prepare() -> Result<Self> {
        let archives = build_images()?;
        let cluster = KubeCluster::start()?;
        for archive in archives {
            cluster.import_image(&archive)?;
        }
        Ok(Self { shell: cluster.server().shell()?, cluster })
    }

    /// The one that all tests of this process share; see [`Installation::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Installation>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(|error| anyhow!("{error:#}"))
    }

    /// Its machines.
    pub fn cluster(&self) -> &KubeCluster {
        &self.cluster
    }

    /// Runs a line of shell with `kubectl`, in the directory of this repository.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.shell.run(line)
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.cluster.server().apply(yaml)
    }

    /// Makes a Vip in namespace `default` and waits until a node holds it. Its name is `name`.
    pub fn create_vip(&self, name: &str, ip: &str) -> Result<()> {
        self.create_vip_of(name, &format!("{{ip: \"{ip}\"}}"))
    }

    /// As [`Installation::create_vip`], with a `spec` as in YAML.
    pub fn create_vip_of(&self, name: &str, spec: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: egress.mapper.com/v1alpha1
kind: Vip
metadata: {{namespace: default, name: {name}}}
spec: {spec}
"
        ))?;
        self.wait_for("default", &format!("vip/{name}"), "condition=Held")
    }

    /// Makes an Egress, or changes it; `spec` as in YAML, such as `{ip: …, kind: pod, name: one}`.
    pub fn create_egress(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: egress.mapper.com/v1alpha1
kind: Egress
metadata: {{namespace: {namespace}, name: {name}}}
spec: {spec}
"
        ))
        .map(drop)
    }

    /// Waits for what `kubectl wait --for` understands.
    pub fn wait_for(&self, namespace: &str, object: &str, what: &str) -> Result<()> {
        let line = format!(
            "kubectl wait -n {namespace} --for={what} --timeout={}s {object}",
            MAPPED_WITHIN.as_secs()
        );
        self.sh(&line).map(drop).with_context(|| {
            let seen = self.sh(&format!("kubectl get -n {namespace} {object} -o yaml"));
            format!("{object} did not become {what}:\n{}", seen.unwrap_or_default())
        })
    }

    /// The running container of a pod in namespace `default` that has one.
    pub fn container_of(&self, pod: &str) -> Result<Container<'_>> {
        let text = self.sh(&format!(
            "kubectl get pod {pod} -o jsonpath='{{.spec.nodeName}} {{.status.containerStatuses[0].containerID}}'"
        ))?;
        let (name, id) = text
            .trim()
            .split_once(" containerd://")
            .with_context(|| format!("the pod {pod} has no container: {text}"))?;
        let node = self.cluster.nodes().iter().find(|node| node.host().name == name);
        let node = node.with_context(|| format!("there is no node {name}"))?;
        Ok(Container { node, pod: pod.to_owned(), id: id.to_owned() })
    }

    /// Names of the pods with that label.
    pub fn pods_of(&self, label: &str) -> Result<Vec<String>> {
        let text = self.sh(&format!("kubectl get pods -l {label} -o name"))?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("pod/")).map(str::to_owned).collect())
    }
}

/// What a node's kernel holds of ours, one thing a line; empty when nothing is left.
pub fn left_on(node: &KubeNode) -> Result<String> {
    let mut left = Vec::new();
    let mut keep = |text: String, ours: &str| {
        left.extend(text.lines().filter(|line| line.contains(ours)).map(str::to_owned));
    };
    keep(node.run(&["nft", "list", "tables"])?, "egress");
    for family in ["-4", "-6"] {
        keep(node.run(&["ip", family, "rule", "list"])?, "proto 69");
        keep(node.run(&["ip", family, "route", "list", "table", "all"])?, "proto 69");
    }
    Ok(left.join("\n"))
}

/// A container as its node's containerd knows it: it can be asked for without the API server.
#[derive(Debug)]
pub struct Container<'a> {
    node: &'a KubeNode,
    pod: String,
    id: String,
}

impl Container<'_> {
    /// Kills its process, as a crash does; kubelet starts another container.
    pub fn kill(&self) -> Result<()> {
        self.ctr(&["tasks", "kill", "-s", "SIGKILL", &self.id]).map(drop)
    }

    /// Stops its process where it is; kubelet ends it when it notices.
    pub fn freeze(&self) -> Result<()> {
        self.ctr(&["tasks", "kill", "-s", "SIGSTOP", &self.id]).map(drop)
    }

    /// Kills the process that keeps the pod's network; kubelet makes another sandbox, with another
    /// address.
    pub fn kill_sandbox(&self) -> Result<()> {
        let sandboxes = self.of_pod("sandbox")?;
        ensure!(!sandboxes.is_empty(), "the pod {} has no sandbox", self.pod);
        sandboxes
            .lines()
            .try_for_each(|id| self.ctr(&["tasks", "kill", "-s", "SIGKILL", id]).map(drop))
    }

    /// The ids of all containers of that kind that the pod has.
    fn of_pod(&self, kind: &str) -> Result<String> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.name\"=={},labels.\"io.cri-containerd.kind\"=={kind}",
            self.pod
        );
        self.ctr(&["containers", "list", "-q", &filter])
    }

    /// Whether another container of the same pod runs.
    pub fn has_successor(&self) -> Result<bool> {
        let containers = self.of_pod("container")?;
        let tasks = self.ctr(&["tasks", "list"])?;
        let runs = |id: &str| tasks.lines().any(|t| t.starts_with(id) && t.contains("RUNNING"));
        Ok(containers.lines().any(|id| id != self.id && runs(id)))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.node.run(&[&["ctr", "-n", "k8s.io"], arguments].concat())
    }
}

/// Builds the images from the programs beside this one, unless they are up to date.
fn build_images() -> Result<Vec<PathBuf>> {
    let agent = Agent::program()?;
    let programs = agent.parent().context("the agent is in no directory")?;
    let archives = programs.parent().context("the programs are in no directory")?.join("images");
    let script = repository().join("deploy/images/build.sh");
    let command = [&*script.to_string_lossy(), "--engine", "buildah", "--programs"]
        .map(str::to_owned)
        .into_iter()
        .chain([programs.display().to_string(), "--archives".to_owned()])
        .chain([archives.display().to_string()])
        .collect::<Vec<_>>();
    run_within(BUILT_WITHIN, &command, "")?;
    let archives = IMAGES.map(|image| archives.join(format!("{image}.tar")));
    for archive in &archives {
        ensure!(archive.is_file(), "there is no {}", archive.display());
    }
    Ok(archives.into())
}
