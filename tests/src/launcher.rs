//! The built launcher of keepalived as a process on a node.

use std::fs;
use std::net::IpAddr;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::host::Host;
use crate::lab::Lab;
use crate::mappings_dir::MappingsDir;
use crate::process::Process;

/// The port of the launcher's `/healthz`, `/readyz` and `/metrics`.
const PORT: u16 = 9799;
/// What the place of a candidate that holds a VIP adds, at least, while its agent is ready; more than any other place.
const LEAST_OF_HOLDER: i16 = 197;

/// `agent keepalived` on a node, and the keepalived it runs; asked to stop when dropped.
#[derive(Debug)]
pub struct Launcher {
    node: Host,
    process: Option<Process>,
    files: TempDir,
    arguments: Vec<String>,
}

impl Launcher {
    /// Starts it with `--mappings-dir` and further arguments.
    pub fn start(node: &Host, mappings: &MappingsDir, arguments: &[&str]) -> Result<Self> {
        let files = tempfile::tempdir().context("cannot make a directory")?;
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let mut all = vec!["keepalived".to_owned(), "--mappings-dir".to_owned()];
        all.extend([
            path(mappings.path()),
            "--run-dir".to_owned(),
            path(&files.path().join("run")),
        ]);
        all.extend(["--node-name".to_owned(), node.name.clone()]);
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let mut launcher = Self { node: node.clone(), process: None, files, arguments: all };
        launcher.start_again()?;
        Ok(launcher)
    }

    /// Starts it with the same arguments and files, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new(Agent::program()?);
        command.args(&self.arguments);
        let what = format!("the launcher on {}", self.node.name);
        let log = self.files.path().join("log");
        self.process = Some(Process::start(what, &self.node, PORT, log, &mut command)?);
        Ok(())
    }

    /// What it and keepalived have said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// The process numbers of keepalived: the parent's, and that of its child.
    pub fn keepalived(&self) -> Option<[Pid; 2]> {
        let read = |name: &str| {
            let text = fs::read_to_string(self.files.path().join("run").join(name)).ok()?;
            let pid = text.trim().parse().ok()?;
            fs::exists(format!("/proc/{pid}")).ok()?.then(|| Pid::from_raw(pid))
        };
        Some([read("keepalived.pid")?, read("vrrp.pid")?])
    }

    /// The launcher's process number.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(|process| process.pid().cast_signed())
    }

    /// Whether holding counts for a VIP here: one that comes back takes nothing from it.
    pub fn holds_for_good(&self) -> bool {
        let read = || -> Option<bool> {
            let mut found = false;
            for entry in fs::read_dir(self.files.path().join("run/priorities")).ok()?.flatten() {
                let text = fs::read_to_string(entry.path()).ok()?;
                let number: i16 = text.trim().parse().ok()?;
                let of_vip = entry.file_name().to_string_lossy().starts_with("vip-");
                found |= of_vip && number >= LEAST_OF_HOLDER;
            }
            Some(found)
        };
        read().unwrap_or_default()
    }

    /// Sends keepalived a signal, parent and child.
    pub fn signal_keepalived(&self, signal: Signal) -> Result<()> {
        let processes = self.keepalived().context("keepalived does not run")?;
        for pid in processes {
            signal::kill(pid, signal)?;
        }
        Ok(())
    }

    /// Sends the launcher a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running()?.kill(signal)
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().context("the launcher does not run")
    }

    /// Kills the launcher alone; keepalived goes on.
    pub fn kill_alone(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// Kills the launcher and keepalived at once, as when the machine loses power.
    pub fn kill_all(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.signal_keepalived(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.process.as_mut().context("the launcher does not run")?.wait()?;
        self.process = None;
        Ok(status)
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "the launcher ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Asks its HTTP server and returns status and body.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        self.running()?.http(path)
    }

    /// The value of a metric, by its name after `egress_keepalived_`.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.running()?.metric(&format!("egress_keepalived_{name}"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Before the launcher, which would see to them.
        for pid in self.keepalived().into_iter().flatten() {
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
    }
}

impl Lab {
    /// The numbers of the nodes that have this address.
    pub fn holders(&self, vip: IpAddr) -> Vec<usize> {
        let has = |node: &Host| {
            node.sh("ip -o address").is_ok_and(|text| text.contains(&format!(" {vip}/")))
        };
        (1..=self.nodes().len()).filter(|number| has(self.node(*number))).collect()
    }

    /// How many single addresses (VIPs) each node has, in order.
    pub fn held(&self) -> Vec<usize> {
        let count = |node: &Host| {
            let text = node.sh("ip -o address show dev eth0").unwrap_or_default();
            text.lines().filter(|line| line.contains("/32 ") || line.contains("/128 ")).count()
        };
        self.nodes().iter().map(count).collect()
    }
}
