//! The programs of Kubernetes as processes.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::host::Host;
use crate::wait::wait_until;

/// Lines of a log that are shown in an error.
const SHOWN_LINES: usize = 15;

const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// Variables that would lead programs away from the test bed.
const NOT_INHERITED: [&str; 7] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "KUBECONFIG",
];

/// One that runs; killed when dropped.
#[derive(Debug)]
pub(super) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it on `host`; it writes to `<name>.log` in `logs`, after what is there already.
    pub(super) fn start(host: &Host, logs: &Path, mut command: Command) -> Result<Self> {
        let path = PathBuf::from(command.get_program());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = logs.join(format!("{name}.log"));
        let file = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Ctrl-C in a terminal is for who started it; it ends in order, or stays when it is kept.
        command.process_group(0);
        let child = host.spawn(&mut command)?;
        Ok(Self { name, child, log })
    }

    /// The number of its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Stops it, and returns when none of its threads runs any more: they stop one by one.
    pub(super) fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let stopped = || self.states().is_ok_and(|states| states.iter().all(|state| state == "T"));
        ensure!(wait_until(STOPPED_WITHIN, stopped), "{} does not stop", self.name);
        Ok(())
    }

    /// The state of each thread, a letter as in `ps`.
    fn states(&self) -> Result<Vec<String>> {
        let mut states = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let text = fs::read_to_string(thread?.path().join("stat"))?;
            // After the name, which is in parentheses and may hold anything.
            let (_, rest) = text.rsplit_once(") ").context("no state")?;
            states.push(rest.chars().take(1).collect());
        }
        Ok(states)
    }

    /// Waits until it has ended.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.child.wait().map(drop).with_context(|| format!("cannot wait for {}", self.name))
    }

    /// # Errors
    /// When it has ended; with the end of its log.
    pub(super) fn check_running(&mut self) -> Result<()> {
        let status = self.child.try_wait()?;
        ensure!(status.is_none(), "{} ended ({status:?}):\n{}", self.name, self.log_end());
        Ok(())
    }

    /// The last lines it wrote.
    pub(super) fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of Kubernetes, by its name, that goes nowhere but to the test bed.
pub(super) fn kubernetes(name: &str) -> Result<Command> {
    let mut command = Command::new(path_of(name)?);
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    Ok(command)
}

/// The program of that name: in `KUBERNETES_BIN`, or in `target/kubernetes/bin`.
pub(super) fn path_of(name: &str) -> Result<PathBuf> {
    let directory = if let Some(directory) = env::var_os("KUBERNETES_BIN") {
        PathBuf::from(directory)
    } else {
        let this = env::current_exe().context("cannot tell which program this is")?;
        let found = this
            .ancestors()
            .map(|directory| directory.join("kubernetes/bin"))
            .find(|directory| directory.is_dir());
        found.context("there is no target/kubernetes/bin: run tests/kubernetes/build.sh")?
    };
    let path = directory.join(name);
    ensure!(path.is_file(), "there is no {}: run tests/kubernetes/build.sh", path.display());
    Ok(path)
}
