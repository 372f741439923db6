//! The keepalived process: checks its configuration, starts it, has it reload, starts it again when it ends, and
//! stops it so that it lets its VIPs go.
//!
//! A keepalived whose launcher has died goes on, and is taken over by the next launcher: nothing moves. So what it
//! says goes to a named pipe that outlives us, and is lost, instead of holding keepalived up, while nobody reads it.

use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::process;

/// How long keepalived may take to look at its configuration.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);
/// It lets its VIPs go at once, and takes a second to end.
const STOPPED_WITHIN: Duration = Duration::from_secs(4);
/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// Before it is started again, at least: it doubles each time.
const SHORTEST_BACKOFF: Duration = Duration::from_secs(1);
/// Before it is started again, at most.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// How many adverts another node may take to have its VIPs, which it lets go as it starts.
const TAKEN_OVER_WITHIN: u32 = 10;
/// What ran for this long is started again after the shortest wait.
const GOOD_AFTER: Duration = Duration::from_mins(1);
/// How often one that is not our child is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// What went wrong with the process or its files.
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

/// What has happened to keepalived, or has to.
#[derive(Debug)]
pub enum Event {
    /// It has to be started.
    Due,
    /// It has been told of a new configuration.
    Reloaded,
    /// It may be started with a new configuration.
    Accepted,
    /// The configuration was refused.
    Refused,
    /// It has ended by itself: how.
    Ended(String),
}

/// keepalived, running or not.
pub struct Supervisor {
    program: String,
    directory: PathBuf,
    /// The configuration in the file: it was found good.
    accepted: Option<String>,
    check: Option<(String, JoinHandle<Result<(), SupervisorError>>)>,
    refusal: Option<SupervisorError>,
    running: Option<Running>,
    start_at: Instant,
    shortest_backoff: Duration,
    backoff: Duration,
}

struct Running {
    process: Process,
    since: Instant,
}

enum Process {
    Child(Child),
    /// The child of a launcher that is gone.
    Adopted(Pid),
}

impl Supervisor {
    /// Its files are in that directory, which is made. A keepalived that was started from there and still runs is
    /// taken over. Needs a tokio runtime.
    pub fn new(
        program: &str,
        directory: &Path,
        advert_interval: Duration,
    ) -> Result<Self, SupervisorError> {
        let write = |source| SupervisorError::Write { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(write)?;
        // keepalived knows nothing of where we were started.
        let directory = directory.canonicalize().map_err(write)?;
        let shortest_backoff = SHORTEST_BACKOFF.max(advert_interval * TAKEN_OVER_WITHIN);
        let mut supervisor = Self {
            program: program.to_owned(),
            directory,
            accepted: None,
            check: None,
            refusal: None,
            running: None,
            start_at: Instant::now(),
            shortest_backoff,
            backoff: shortest_backoff,
        };
        supervisor.listen()?;
        supervisor.accepted = std::fs::read_to_string(supervisor.configuration()).ok();
        if let Some(pid) =
            process::alive(&supervisor.file("keepalived.pid"), &supervisor.configuration())
        {
            info!(%pid, "keepalived runs already; it is taken over");
            let process = Process::Adopted(pid);
            supervisor.running = Some(Running { process, since: Instant::now() });
        }
        Ok(supervisor)
    }

    /// The configuration that keepalived has, or is to be started with.
    pub fn accepted(&self) -> Option<&str> {
        self.accepted.as_deref()
    }

    /// Why the last configuration was not taken.
    pub fn refusal(&self) -> Option<&SupervisorError> {
        self.refusal.as_ref()
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it can do its work: it is there, and nobody has frozen it.
    pub fn serves(&self) -> bool {
        let vrrp = process::alive(&self.file("vrrp.pid"), &self.configuration());
        self.running.is_some() && vrrp.is_some_and(process::runs)
    }

    /// Ends it at once, addresses stay. For one that is frozen: it would take itself for the holder when it goes on.
    pub fn kill(&self) {
        let Some(running) = &self.running else { return };
        if let Some(child) = process::alive(&self.file("vrrp.pid"), &self.configuration()) {
            process::end(child);
        }
        running.signal(Signal::SIGKILL);
    }

    /// Where keepalived's files are.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Has this configuration checked and taken, if it is new. The outcome is an `Event`.
    pub fn want(&mut self, text: String) -> Result<(), SupervisorError> {
        if self.check.is_some() {
            return Ok(());
        }
        if self.accepted.as_deref() == Some(&text) {
            self.refusal = None;
            return Ok(());
        }
        debug!("{text}");
        let new = self.file("keepalived.conf.new");
        std::fs::write(&new, &text)
            .map_err(|source| SupervisorError::Write { path: new.clone(), source })?;
        self.check = Some((text, tokio::spawn(check(self.program.clone(), new))));
        Ok(())
    }

    /// Waits until something happens. Cancel safe.
    pub async fn next(&mut self) -> Event {
        let Self { accepted, check, running, start_at, .. } = self;
        let checked = async {
            match check {
                Some((_, check)) => check.await,
                None => pending().await,
            }
        };
        let ended = async {
            match running {
                Some(Running { process: Process::Child(child), .. }) => match child.wait().await {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                },
                Some(Running { process: Process::Adopted(pid), .. }) => {
                    gone(*pid).await;
                    "not our child".to_owned()
                }
                None if accepted.is_some() => {
                    sleep_until(*start_at).await;
                    String::new()
                }
                None => pending().await,
            }
        };
        tokio::select! {
            outcome = checked => {
                let outcome = outcome.unwrap_or(Err(SupervisorError::Slow));
                self.checked(outcome)
            }
            how = ended => {
                if self.running.is_none() {
                    return Event::Due;
                }
                self.ended();
                Event::Ended(how)
            }
        }
    }

    fn checked(&mut self, outcome: Result<(), SupervisorError>) -> Event {
        let Some((text, _)) = self.check.take() else { return Event::Refused };
        let path = self.configuration();
        let outcome = outcome.and_then(|()| {
            std::fs::rename(self.file("keepalived.conf.new"), &path)
                .map_err(|source| SupervisorError::Write { path, source })
        });
        if let Err(error) = outcome {
            self.refusal = Some(error);
            return Event::Refused;
        }
        self.refusal = None;
        self.accepted = Some(text);
        match &self.running {
            Some(running) => {
                running.signal(Signal::SIGHUP);
                Event::Reloaded
            }
            None => Event::Accepted,
        }
    }

    fn ended(&mut self) {
        if self.running.take().is_some_and(|running| running.since.elapsed() >= GOOD_AFTER) {
            self.backoff = self.shortest_backoff;
        }
        self.start_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    /// When it will be started again, if it does not run.
    pub fn start_at(&self) -> Instant {
        self.start_at
    }

    /// Starts it, in the foreground, VRRP alone. `-G`: without a syslog it would write to the console. `-R`: a child
    /// that dies is not started again, for it would let the VIPs go before another node has them.
    pub async fn start(&mut self) -> Result<(), SupervisorError> {
        self.start_at = Instant::now() + self.backoff;
        self.clear_remains().await;
        let output = self.output()?;
        let process = Command::new(&self.program)
            .args(["-P", "-n", "-l", "-G", "-e", "-R", "-f"])
            .arg(self.configuration())
            .arg("-p")
            .arg(self.file("keepalived.pid"))
            .arg("-r")
            .arg(self.file("vrrp.pid"))
            .stdin(Stdio::null())
            .stdout(output.0)
            .stderr(output.1)
            .spawn()
            .map_err(|source| SupervisorError::Run { program: self.program.clone(), source })?;
        info!("keepalived started");
        self.running = Some(Running { process: Process::Child(process), since: Instant::now() });
        Ok(())
    }

    /// Has it let its VIPs go and end; it is not started again before something new is wanted.
    pub async fn stop(&mut self) {
        self.accepted = None;
        if let Some((_, check)) = self.check.take() {
            check.abort();
        }
        let Some(mut running) = self.running.take() else { return };
        info!("keepalived stops and lets its VIPs go");
        running.signal(Signal::SIGTERM);
        if timeout(STOPPED_WITHIN, running.wait()).await.is_err() {
            warn!("keepalived does not stop; it is killed");
            running.signal(Signal::SIGKILL);
            // It is gone when this is over.
            let _ = timeout(GONE_WITHIN, running.wait()).await;
        }
        self.clear_remains().await;
        // A launcher that comes after us starts anew.
        let _ = std::fs::remove_file(self.configuration());
    }

    /// Ends what is left of a keepalived that is gone, and removes its files: another would take a process of that
    /// number for itself, and end at once.
    async fn clear_remains(&self) {
        for name in ["keepalived.pid", "vrrp.pid"] {
            let path = self.file(name);
            if let Some(pid) = process::alive(&path, &self.configuration()) {
                process::end(pid);
                // It holds nobody up: a new one starts in any case.
                let _ = timeout(GONE_WITHIN, gone(pid)).await;
                process::end(pid);
            }
            let _ = std::fs::remove_file(path);
        }
    }

    fn configuration(&self) -> PathBuf {
        self.file("keepalived.conf")
    }

    /// What keepalived says becomes a part of our log.
    fn listen(&self) -> Result<(), SupervisorError> {
        let path = self.file("log");
        let write = |source| SupervisorError::Write { path: path.clone(), source };
        match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(write(errno.into())),
        }
        // Also for writing: so it has no end, whoever writes comes and goes.
        let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(&path).map_err(write)?;
        let mut lines = BufReader::new(pipe).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                info!(target: "keepalived", "{}", without_time(&line));
            }
        });
        Ok(())
    }

    fn output(&self) -> Result<(Stdio, Stdio), SupervisorError> {
        let path = self.file("log");
        let open = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path);
        let both = open().and_then(|file| Ok((file.try_clone()?.into(), file.into())));
        both.map_err(|source| SupervisorError::Write { path: path.clone(), source })
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = match &self.process {
            Process::Child(child) => child.id().and_then(|id| i32::try_from(id).ok()),
            Process::Adopted(pid) => Some(pid.as_raw()),
        };
        if let Some(pid) = pid {
            // It has ended by itself, then.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    async fn wait(&mut self) {
        match &mut self.process {
            Process::Child(child) => drop(child.wait().await),
            Process::Adopted(pid) => gone(*pid).await,
        }
    }
}

async fn check(program: String, file: PathBuf) -> Result<(), SupervisorError> {
    let check = Command::new(&program)
        .args(["-t", "-P", "-G", "-e", "-f"])
        .arg(&file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(CHECKED_WITHIN, check)
        .await
        .map_err(|_| SupervisorError::Slow)?
        .map_err(|source| SupervisorError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let output_text = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    Err(SupervisorError::Refused { status: output.status, output: output_text })
}

async fn gone(pid: Pid) {
    while process::runs_or_is_stopped(pid) {
        sleep(LOOK).await;
    }
}

/// The line without the time in front of it: our log has one.
fn without_time(line: &str) -> &str {
    line.split_once(": ").map_or(line, |(_, said)| said)
}
