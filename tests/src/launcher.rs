//! The built launcher of keepalived as a process on a node.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::host::Host;
use crate::lab::Lab;
use crate::mappings_dir::MappingsDir;
use crate::wait::wait_until;

/// The port of the launcher's `/healthz`, `/readyz` and `/metrics`.
const PORT: u16 = 9799;
/// What the place of a candidate that holds a VIP adds, at least, while its agent is ready; more than any other place.
const LEAST_OF_HOLDER: i16 = 197;
const ENDED_WITHIN: Duration = Duration::from_secs(15);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// `agent keepalived` on a node, and the keepalived it runs; asked to stop when dropped.
#[derive(Debug)]
pub struct Launcher {
    node: Host,
    process: Option<Child>,
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
        let path = self.files.path().join("log");
        let log = File::options().create(true).append(true).open(path)?;
        let mut command = Command::new(Agent::program()?);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(self.node.spawn(&mut command)?);
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
        self.process.as_ref().map(|process| process.id().cast_signed())
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
        let process = self.process.as_ref().context("the launcher does not run")?;
        Ok(signal::kill(Pid::from_raw(process.id().cast_signed()), signal)?)
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
        let process = self.process.as_mut().context("the launcher does not run")?;
        let mut status = None;
        let ended = wait_until(ENDED_WITHIN, || {
            status = process.try_wait().ok().flatten();
            status.is_some()
        });
        ensure!(ended, "the launcher does not end:\n{}", self.log());
        self.process = None;
        status.context("no exit status")
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
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let answer = self.node.enter(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("no HTTP status")?, body.to_owned()))
    }

    /// The value of a metric, by its name after `egress_keepalived_`.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.http("/metrics")?;
        let name = format!("egress_keepalived_{name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&name)?.parse().ok())
            .with_context(|| format!("no metric {name} in:\n{text}"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if thread::panicking() {
            show(&format!("log of the launcher on {}:\n{}", self.node.name, self.log()));
        }
        if let Ok(keepalived) = self.keepalived().context("") {
            for pid in keepalived {
                let _ = signal::kill(pid, Signal::SIGKILL);
            }
        }
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test runner with the failed test")]
fn show(text: &str) {
    eprintln!("{text}");
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
