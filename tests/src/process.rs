//! A built program as a process on a host: what it says and serves, and how it ends.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::host::Host;
use crate::wait::wait_until;

const ENDED_WITHIN: Duration = Duration::from_secs(15);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A program that runs. Killed when dropped; when that happens in a panic, its log is shown.
#[derive(Debug)]
pub struct Process {
    /// What errors call it.
    what: String,
    host: Host,
    child: Child,
    log: PathBuf,
    /// Of its `/healthz`, `/readyz` and `/metrics`.
    port: u16,
}

/// The program that the variable names, or the one that was built.
pub(crate) fn given_or_built(name: &str, variable: &str) -> Result<PathBuf> {
    match env::var_os(variable) {
        Some(program) => Ok(program.into()),
        None => built(name, name).with_context(|| format!("{variable} names none")),
    }
}

/// The built program of that name and package: beside this program or, as test programs are one
/// directory below the others, beside its directory.
pub(crate) fn built(name: &str, package: &str) -> Result<PathBuf> {
    let this = env::current_exe().context("cannot tell which program this is")?;
    let mut places = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    places.find(|program| program.is_file()).with_context(|| {
        format!(
            "there is no program {name} beside {}: build it with `cargo build -p {package}`",
            this.display()
        )
    })
}

/// What is logged: as `RUST_LOG` says here, else so.
pub(crate) fn log_filter(otherwise: &str) -> OsString {
    env::var_os("RUST_LOG").unwrap_or_else(|| otherwise.into())
}

impl Process {
    /// Starts it; it writes to `log`, after what is there already.
    pub(crate) fn start(
        what: String,
        host: &Host,
        port: u16,
        log: PathBuf,
        command: &mut Command,
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = host.spawn(command)?;
        Ok(Self { what, host: host.clone(), child, log, port })
    }

    /// The host that it runs on.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged up to now.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `/readyz` says yes.
    pub(crate) fn ready_within(&mut self, time: Duration) -> Result<()> {
        let mut ended = None;
        let ready = wait_until(time, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || self.http("/readyz").is_ok_and(|(status, _)| status == 200)
        });
        if let Some(status) = ended {
            bail!("{} ended ({status}):\n{}", self.what, self.log());
        }
        ensure!(ready, "{} was not ready within {time:?}:\n{}", self.what, self.log());
        Ok(())
    }

    /// Asks its HTTP server and returns status and body.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let answer = self.host.enter(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let answer = answer.with_context(|| format!("cannot get {path} of {}", self.what))?;
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

    /// All metrics, by name with labels as printed.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let (_, text) = self.http("/metrics")?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(lines.filter_map(value).collect())
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Waits until it has ended by itself or by a signal.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = wait_until(ENDED_WITHIN, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        ensure!(ended, "{} did not end within {ENDED_WITHIN:?}:\n{}", self.what, self.log());
        status.with_context(|| format!("{} has no exit status", self.what))
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.kill(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.what, self.log());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            show(&format!("log of {}:\n{}", self.what, self.log()));
        }
    }
}

/// Past the capture of test output a direct write would appear in the middle of others.
#[expect(clippy::print_stderr, reason = "shown by the test runner with the failed test")]
fn show(text: &str) {
    eprintln!("{text}");
}
