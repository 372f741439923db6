//! The built controller as a process beside an API server, and a small cluster made of objects.

mod cluster;

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

pub use self::cluster::ObjectCluster;
use crate::ApiServer;
use crate::process::{Process, given_or_built, log_filter};
use crate::wait::wait_until;

const READY_WITHIN: Duration = Duration::from_secs(30);
/// Several controllers may run on one host.
static NEXT_PORT: AtomicU16 = AtomicU16::new(19_800);

/// A controller in the network of an API server; see [`Process`].
#[derive(Debug)]
pub struct Controller {
    process: Process,
    _logs: TempDir,
}

impl Controller {
    /// The program: `CONTROLLER_BIN`, or `controller` beside this program or its directory.
    pub fn program() -> Result<PathBuf> {
        given_or_built("controller", "CONTROLLER_BIN")
    }

    /// Starts a controller called `name`, with the rights that it is deployed with; see
    /// [`Controller::wait_ready`] and [`ObjectCluster::prepare`].
    pub fn start(server: &ApiServer, namespace: &str, name: &str) -> Result<Self> {
        // Times for tests: a lead passes on in seconds.
        let lease = ["--lease-duration=4", "--renew-deadline=3", "--retry-period=1"];
        Self::start_with(server, namespace, name, &lease)
    }

    /// As [`Controller::start`], with other arguments.
    pub fn start_with(
        server: &ApiServer,
        namespace: &str,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let logs = tempfile::tempdir().context("cannot make a directory for logs")?;
        // Asked for once: a controller may be started while the server is away.
        let kubeconfig = server.kubeconfig().with_file_name("controller.conf");
        if !kubeconfig.exists() {
            server.kubeconfig_of("controller", &server.token("default", "egress-mapper", None)?)?;
        }
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(Self::program()?);
        command
            .args(["--namespace", namespace, "--listen", &format!("127.0.0.1:{port}")])
            .args(["--identity", name])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env_remove("HTTPS_PROXY")
            .env("RUST_LOG", log_filter("controller=debug,info"));
        let log = logs.path().join("controller.log");
        let what = "the controller".to_owned();
        let process = Process::start(what, server.host(), port, log, &mut command)?;
        Ok(Self { process, _logs: logs })
    }

    /// Waits until `/readyz` says yes: it knows the cluster.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.process.ready_within(READY_WITHIN)
    }

    /// Waits until it is the one that writes.
    pub fn wait_leads(&self) -> Result<()> {
        let leads = wait_until(READY_WITHIN, || self.leads());
        ensure!(leads, "the controller did not lead within {READY_WITHIN:?}:\n{}", self.log());
        Ok(())
    }

    /// Whether it says that it is the one that writes.
    pub fn leads(&self) -> bool {
        self.metric("egress_controller_leads").is_ok_and(|leads| leads > 0.5)
    }
}

impl Deref for Controller {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Controller {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
