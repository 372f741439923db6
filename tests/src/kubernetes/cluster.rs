//! A whole cluster: control plane, workers, and the laboratory's hosts outside.

use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::api_server::ApiServer;
use super::node::KubeNode;
use super::node_files::{self, BUSYBOX};
use crate::capture::Capture;
use crate::command::run;
use crate::guard::Guard;
use crate::lab::{Lab, LabBuilder};
use crate::wait::wait_until;

const IMAGE_SCRIPT: &str = include_str!("busybox-image.sh");
/// `True` for every node that is ready and takes pods.
const READINESS: &str = "jsonpath={range .items[*]}\
    {.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints[*].key} {end}";
const READY_WITHIN: Duration = Duration::from_secs(90);
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// How kube-proxy makes Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// In an nftables table of its own.
    Nftables,
    /// By `iptables`, the default of most clusters.
    Iptables,
}

impl ProxyMode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// A real Kubernetes on the machines of a [`Lab`]: node `n<i>` is `lab().node(i)`, and the control
/// plane is one more machine of the LAN. Pods and Services have addresses of both families.
///
/// Removed when dropped, or when the process has ended, however it did.
#[derive(Debug)]
pub struct KubeCluster {
    nodes: Vec<KubeNode>,
    server: ApiServer,
    lab: Lab,
}

impl KubeCluster {
    /// Starts one with three workers and waits until all are ready.
    pub fn start() -> Result<Self> {
        Self::start_on(Lab::builder(), ProxyMode::Nftables)
    }

    /// Starts one on such a laboratory, with kube-proxy in that mode. The laboratory masquerades as
    /// flannel does; its own pods and Service are left out.
    pub fn start_on(lab: LabBuilder, proxy_mode: ProxyMode) -> Result<Self> {
        let guard = Guard::start()?;
        let lab = lab.for_kubernetes().build_named(guard.prefix())?;
        let server = ApiServer::start_in(Some(&lab), guard)?;
        server.start_controller_manager()?;
        server.start_scheduler()?;
        let image = server.files().join("busybox.tar");
        run(&["bash", "-c", IMAGE_SCRIPT, &image.to_string_lossy(), BUSYBOX])
            .context("cannot make the image of busybox")?;
        let numbers = 1..=lab.nodes().len();
        let objects: String = numbers
            .clone()
            .map(|number| node_files::object(&lab.node(number).name, number))
            .chain([node_files::PROXY_ROLE_BINDING.to_owned()])
            .collect();
        server.apply(&objects)?;
        let nodes = numbers
            .map(|number| KubeNode::start(&lab, &server, number, proxy_mode))
            .collect::<Result<_>>()?;
        let cluster = Self { nodes, server, lab };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// The one that all tests of this process share; see [`KubeCluster::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<KubeCluster>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(|error| anyhow!("{error:#}"))
    }

    /// Its API.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Its machines, and those outside of it.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Worker `number`, counted from 1.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, number: usize) -> &KubeNode {
        &self.nodes[number - 1]
    }

    /// All workers, in order.
    pub fn nodes(&self) -> &[KubeNode] {
        &self.nodes
    }

    /// Captures what reaches the hosts outside; see [`Capture::start`].
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.lab)
    }

    /// Imports an image archive on every node.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let imports: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(move || node.import_image(archive)))
                .collect();
            imports
                .into_iter()
                .try_for_each(|import| import.join().map_err(|_| anyhow!("an import panicked"))?)
        })
    }

    /// Waits until a `deployment/…` or `daemonset/…` is rolled out; returns what kubectl prints.
    pub fn wait_rollout(&self, namespace: &str, what: &str, within: Duration) -> Result<String> {
        let timeout = format!("--timeout={}s", within.as_secs());
        self.server.kubectl_within(
            within + Duration::from_secs(5),
            &["rollout", "status", what, "-n", namespace, &timeout],
            "",
        )
    }

    /// Lets it run on when the process has ended; a SIGTERM to the process of the returned number
    /// removes it.
    pub fn keep(self) -> Result<u32> {
        let Self { nodes, server, lab } = self;
        let guard = server.keep()?;
        for node in nodes {
            std::mem::forget(node);
        }
        std::mem::forget(lab);
        Ok(guard)
    }

    fn wait_ready(&self) -> Result<()> {
        let mut answer = Err(anyhow!("nobody asked"));
        let ready = wait_until(READY_WITHIN, || {
            answer = self.nodes.iter().try_for_each(KubeNode::check_running);
            if answer.is_err() {
                return true;
            }
            let ready = self.server.kubectl(&["get", "nodes", "-o", READINESS]);
            ready.is_ok_and(|text| text == "True ".repeat(self.nodes.len()))
        });
        answer?;
        ensure!(
            ready,
            "the nodes were not ready within {READY_WITHIN:?}:\n{}\n{}",
            self.server.kubectl(&["describe", "nodes"]).unwrap_or_default(),
            self.nodes.iter().map(KubeNode::log_ends).collect::<String>()
        );
        // Pods are refused until it is there.
        let account = || self.server.kubectl(&["get", "serviceaccount", "default"]).is_ok();
        ensure!(wait_until(SETTLED_WITHIN, account), "nothing makes service accounts");
        Ok(())
    }
}
