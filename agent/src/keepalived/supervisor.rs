//! The keepalived process: checks its configuration, starts it, has it reload, starts it again when it ends, and
//! stops it so that it lets its VIPs go.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

/// How long keepalived may take to look at its configuration.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);
/// It lets its VIPs go at once, and takes a second to end.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// Before it is started again: it doubles each time. One that was killed needs a moment to make place.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What ran for this long is started again after the shortest wait.
const GOOD_AFTER: Duration = Duration::from_mins(1);

/// Where keepalived writes the numbers of its two processes.
const PID: &str = "keepalived.pid";
const VRRP_PID: &str = "vrrp.pid";

/// What went wrong with the process or its file.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot run {program}; install keepalived, or name it with --keepalived")]
    Run { program: String, source: io::Error },
    #[error("keepalived refuses the configuration, the one before stays ({status}): {output}")]
    Refused { status: ExitStatus, output: String },
    #[error("keepalived took too long to look at its configuration; the one before stays")]
    Slow,
}

/// keepalived, running or not.
pub struct Supervisor {
    program: String,
    directory: PathBuf,
    /// The configuration in the file: it was found good.
    accepted: Option<String>,
    running: Option<Running>,
    start_at: Instant,
    backoff: Duration,
}

struct Running {
    process: Child,
    since: Instant,
}

impl Supervisor {
    /// Not running. Its files are in that directory, which is made.
    pub fn new(program: &str, directory: &Path) -> Result<Self, SupervisorError> {
        let path = directory.to_owned();
        std::fs::create_dir_all(directory)
            .map_err(|source| SupervisorError::Write { path, source })?;
        Ok(Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            accepted: None,
            running: None,
            start_at: Instant::now(),
            backoff: BACKOFF.0,
        })
    }

    /// Has it run with this configuration, if that is a good one. Without VIPs it does not run.
    pub async fn bring_in_line(&mut self, text: Option<&str>) -> Result<(), SupervisorError> {
        let Some(text) = text else {
            self.accepted = None;
            self.stop().await;
            return Ok(());
        };
        let (mut new, mut refusal) = (self.accepted.as_deref() != Some(text), None);
        if new {
            refusal = self.accept(text).await.err();
            new = refusal.is_none();
        }
        match &self.running {
            Some(running) if new => {
                info!("keepalived reloads its configuration");
                signal(&running.process, Signal::SIGHUP);
            }
            None if self.accepted.is_some() && Instant::now() >= self.start_at => self.start()?,
            Some(_) | None => {}
        }
        refusal.map_or(Ok(()), Err)
    }

    /// When there is something to do without any news.
    pub fn due(&self) -> Option<Instant> {
        (self.running.is_none() && self.accepted.is_some()).then_some(self.start_at)
    }

    /// Waits until it has ended by itself; for ever, if it does not run. Cancel safe.
    pub async fn ended(&mut self) {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let outcome = running.process.wait().await;
        if running.since.elapsed() >= GOOD_AFTER {
            self.backoff = BACKOFF.0;
        }
        let seconds = self.backoff.as_secs();
        match outcome {
            // It says that another one runs, and calls that a success.
            Ok(status) => error!("keepalived ended ({status}); started again in {seconds} s"),
            Err(error) => error!("cannot wait for keepalived ({error}); started in {seconds} s"),
        }
        self.running = None;
        self.start_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// Has it let its VIPs go and end.
    pub async fn stop(&mut self) {
        let Some(Running { mut process, .. }) = self.running.take() else { return };
        info!("keepalived stops and lets its VIPs go");
        signal(&process, Signal::SIGTERM);
        if timeout(STOPPED_WITHIN, process.wait()).await.is_err() {
            warn!("keepalived does not stop; it is killed");
            // It has ended by itself, then.
            let _ = process.kill().await;
        }
    }

    async fn accept(&mut self, text: &str) -> Result<(), SupervisorError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| SupervisorError::Write { path, source }
        };
        let (new, path) = (self.file("keepalived.conf.new"), self.file("keepalived.conf"));
        std::fs::write(&new, text).map_err(write(&new))?;
        let check = Command::new(&self.program)
            .args(["-t", "-P", "-G", "-e", "-f"])
            .arg(&new)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(CHECKED_WITHIN, check)
            .await
            .map_err(|_| SupervisorError::Slow)?
            .map_err(|source| SupervisorError::Run { program: self.program.clone(), source })?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let output_text = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            return Err(SupervisorError::Refused { status: output.status, output: output_text });
        }
        std::fs::rename(&new, &path).map_err(write(&path))?;
        self.accepted = Some(text.to_owned());
        Ok(())
    }

    /// In the foreground, VRRP alone. `-G`: without a syslog it would write to the console.
    fn start(&mut self) -> Result<(), SupervisorError> {
        self.start_at = Instant::now() + self.backoff;
        // Whatever has the number in such a file counts as keepalived for it: after a restart of
        // the container anybody, and for the first process of one also its own dead children.
        for file in [self.file(PID), self.file(VRRP_PID)] {
            if is_keepalived(&file) {
                info!("a keepalived that lost its launcher has not ended yet; tried again");
                return Ok(());
            }
            // There is none, then.
            let _ = std::fs::remove_file(&file);
        }
        let mut process = Command::new(&self.program)
            .args(["-P", "-n", "-l", "-G", "-e", "-f"])
            .arg(self.file("keepalived.conf"))
            .arg("-p")
            .arg(self.file(PID))
            .arg("-r")
            .arg(self.file(VRRP_PID))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| SupervisorError::Run { program: self.program.clone(), source })?;
        info!("keepalived started");
        forward(process.stdout.take());
        forward(process.stderr.take());
        self.running = Some(Running { process, since: Instant::now() });
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Whether the file has the number of a keepalived that lives.
fn is_keepalived(file: &Path) -> bool {
    let stat = std::fs::read_to_string(file)
        .and_then(|number| std::fs::read_to_string(format!("/proc/{}/stat", number.trim())));
    // As in `7 (keepalived) S 1 ...`; Z is one that nobody has waited for.
    stat.is_ok_and(|stat| stat.contains(" (keepalived) ") && !stat.contains(") Z "))
}

fn signal(process: &Child, signal: Signal) {
    let pid = process.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid {
        // It has ended by itself, then.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// What keepalived says becomes a part of our log.
fn forward(output: Option<impl AsyncRead + Send + Unpin + 'static>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            info!(target: "keepalived", "{}", without_time(&line));
        }
    });
}

/// The line without the time in front of it: our log has one.
fn without_time(line: &str) -> &str {
    line.split_once(": ").map_or(line, |(_, said)| said)
}
