//! The built agent as a process on a node.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::Host;
use crate::kubernetes::PodIdentity;
use crate::wait::wait_until;

/// The port of the agent's `/healthz`, `/readyz` and `/metrics`; every node has its own network.
pub const HEALTH_PORT: u16 = 9797;
const READY_WITHIN: Duration = Duration::from_secs(10);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// An agent running on a node. Killed when dropped; when that happens in a panic, its log is shown.
#[derive(Debug)]
pub struct Agent {
    node: Host,
    child: Child,
    logs: TempDir,
}

impl Agent {
    /// The program: `AGENT_BIN`, or `agent` beside this program or its directory.
    pub fn program() -> Result<PathBuf> {
        if let Some(program) = env::var_os("AGENT_BIN") {
            return Ok(program.into());
        }
        let this = env::current_exe().context("cannot tell which program this is")?;
        // Test programs are one directory below the others.
        let built = this.ancestors().skip(1).take(2).map(|directory| directory.join("agent"));
        built.clone().find(|program| program.is_file()).with_context(|| {
            let places: Vec<_> = built.map(|program| program.display().to_string()).collect();
            format!(
                "there is no {}: build it with `cargo build -p agent` or set AGENT_BIN",
                places.join(" or ")
            )
        })
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
        let log = File::create(logs.path().join("agent.log"))?;
        let child = node.spawn(
            command
                .env("RUST_LOG", env::var_os("RUST_LOG").unwrap_or_else(|| level.into()))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        Ok(Self { node: node.clone(), child, logs })
    }

    /// Runs the agent's program on a node to its end, as with `--dump-rules`, and returns what it prints.
    pub fn run(node: &Host, arguments: &[&str]) -> Result<String> {
        let program = Self::program()?;
        let program = program.to_string_lossy();
        node.run(&[&[program.as_ref()], arguments].concat())
    }

    /// The node it runs on.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged up to now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.logs.path().join("agent.log")).unwrap_or_default()
    }

    /// Waits until `/readyz` says yes: the first complete sync is done.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut ended = None;
        let ready = wait_until(READY_WITHIN, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || self.http("/readyz").is_ok_and(|(status, _)| status == 200)
        });
        if let Some(status) = ended {
            bail!("the agent on {} ended ({status}):\n{}", self.node.name, self.log());
        }
        ensure!(
            ready,
            "the agent on {} was not ready within {READY_WITHIN:?}:\n{}",
            self.node.name,
            self.log()
        );
        Ok(())
    }

    /// Asks its HTTP server on the node and returns status and body.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT));
        let answer = self.node.enter(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let answer = answer.with_context(|| format!("cannot get {path} of {}", self.node.name))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no HTTP status in {head:?}"))?, body.to_owned()))
    }

    /// The value of a metric in `/metrics`, by its name with labels as printed.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.http("/metrics")?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .with_context(|| format!("no metric {name} in:\n{text}"))
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to the agent"))
    }

    /// Waits until it has ended by itself or by a signal.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = wait_until(STOPPED_WITHIN, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        ensure!(ended, "the agent did not end within {STOPPED_WITHIN:?}:\n{}", self.log());
        status.context("the agent has no exit status")
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.kill(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Past the capture of test output a direct write would appear in the middle of others.
            let log = format!("log of the agent on {}:\n{}", self.node.name, self.log());
            show(&log);
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test runner with the failed test")]
fn show(text: &str) {
    eprintln!("{text}");
}
