//! The built agent as a process on a node.

use std::env;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::host::Host;
use crate::kubernetes::PodIdentity;
use crate::process::{Process, given_or_built, log_filter};

/// The port of the agent's `/healthz`, `/readyz` and `/metrics`; every node has its own network.
pub const HEALTH_PORT: u16 = 9797;
const READY_WITHIN: Duration = Duration::from_secs(10);

/// An agent running on a node; see [`Process`].
#[derive(Debug)]
pub struct Agent {
    process: Process,
    _logs: TempDir,
}

impl Agent {
    /// The program: `AGENT_BIN`, or `agent` beside this program or its directory.
    pub fn program() -> Result<PathBuf> {
        given_or_built("agent", "AGENT_BIN")
    }

    /// Builds the agent as it is delivered, unless `AGENT_BIN` names one.
    pub fn build_release() -> Result<()> {
        if env::var_os("AGENT_BIN").is_some() {
            return Ok(());
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "-p", "agent"])
            .status()
            .context("cannot start cargo; set AGENT_BIN to an agent built with --release")?;
        ensure!(status.success(), "cannot build the agent ({status})");
        Ok(())
    }

    /// Starts an agent with `--mappings-dir` and further arguments; see [`Agent::wait_ready`].
    pub fn start(node: &Host, mappings: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_logging("debug", node, mappings, arguments)
    }

    /// As [`Agent::start`], but it is not told the uplink of VIPs: it finds each by itself.
    pub fn start_finding_uplinks(node: &Host, mappings: &Path, arguments: &[&str]) -> Result<Self> {
        Self::launch("debug", node, Self::reading(node, mappings, arguments)?)
    }

    /// As [`Agent::start`], logging at that level where `RUST_LOG` does not say otherwise.
    pub fn start_logging(
        level: &str,
        node: &Host,
        mappings: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = Self::reading(node, mappings, arguments)?;
        command.args(["--interface", "eth0"]);
        Self::launch(level, node, command)
    }

    fn reading(node: &Host, mappings: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(Self::program()?);
        command.arg("--mappings-dir").arg(mappings).args(["--node-name", &node.name]);
        command.args(arguments);
        Ok(command)
    }

    /// Starts an agent as in a pod on that node, with these arguments; it reads the API server.
    pub fn start_in_pod(node: &Host, pod: &PodIdentity, arguments: &[&str]) -> Result<Self> {
        let mut command = pod.command(&Self::program()?);
        command.args(arguments);
        Self::launch("info,agent=debug", node, command)
    }

    fn launch(level: &str, node: &Host, mut command: Command) -> Result<Self> {
        let logs = tempfile::tempdir().context("cannot make a directory for logs")?;
        command.env("RUST_LOG", log_filter(level));
        let (what, log) = (format!("the agent on {}", node.name), logs.path().join("agent.log"));
        let process = Process::start(what, node, HEALTH_PORT, log, &mut command)?;
        Ok(Self { process, _logs: logs })
    }

    /// Runs the agent's program on a node to its end, as with `--dump-rules`, and returns what it prints.
    pub fn run(node: &Host, arguments: &[&str]) -> Result<String> {
        let program = Self::program()?;
        let program = program.to_string_lossy();
        node.run(&[&[program.as_ref()], arguments].concat())
    }

    /// The node it runs on.
    pub fn node(&self) -> &Host {
        self.process.host()
    }

    /// Waits until `/readyz` says yes: the first complete sync is done.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.process.ready_within(READY_WITHIN)
    }
}

impl Deref for Agent {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
