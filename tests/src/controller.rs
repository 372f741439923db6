//! The built controller as a process beside an API server, and a small cluster made of objects.

mod cluster;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

pub use self::cluster::ObjectCluster;
use crate::ApiServer;
use crate::host::Host;
use crate::wait::wait_until;

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Several controllers may run on one host.
static NEXT_PORT: AtomicU16 = AtomicU16::new(19_800);

/// A controller in the network of an API server. Killed when dropped; when that happens in a panic,
/// its log is shown.
#[derive(Debug)]
pub struct Controller {
    host: Host,
    port: u16,
    child: Child,
    logs: TempDir,
}

impl Controller {
    /// The program: `CONTROLLER_BIN`, or `controller` beside this program or its directory.
    pub fn program() -> Result<PathBuf> {
        if let Some(program) = env::var_os("CONTROLLER_BIN") {
            return Ok(program.into());
        }
        let this = env::current_exe().context("cannot tell which program this is")?;
        // Test programs are one directory below the others.
        let mut built = this.ancestors().skip(1).take(2).map(|place| place.join("controller"));
        built.find(|program| program.is_file()).with_context(|| {
            "there is no controller: build it with `cargo build -p controller` or set CONTROLLER_BIN"
        })
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
        let log = File::create(logs.path().join("controller.log"))?;
        // Asked for once: a controller may be started while the server is away.
        let kubeconfig = server.kubeconfig().with_file_name("controller.conf");
        if !kubeconfig.exists() {
            server.kubeconfig_of("controller", &server.token("default", "egress-mapper", None)?)?;
        }
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let child = server.host().spawn(
            Command::new(Self::program()?)
                .args(["--namespace", namespace, "--listen", &format!("127.0.0.1:{port}")])
                .args(["--identity", name])
                .args(arguments)
                .env("KUBECONFIG", kubeconfig)
                .env_remove("HTTPS_PROXY")
                .env(
                    "RUST_LOG",
                    env::var_os("RUST_LOG").unwrap_or_else(|| "controller=debug,info".into()),
                )
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        Ok(Self { host: server.host().clone(), port, child, logs })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged up to now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.logs.path().join("controller.log")).unwrap_or_default()
    }

    /// Waits until `/readyz` says yes: it knows the cluster.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut ended = None;
        let ready = wait_until(READY_WITHIN, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || self.http("/readyz").is_ok_and(|(status, _)| status == 200)
        });
        if let Some(status) = ended {
            bail!("the controller ended ({status}):\n{}", self.log());
        }
        ensure!(ready, "the controller was not ready within {READY_WITHIN:?}:\n{}", self.log());
        Ok(())
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
        let answer = answer.with_context(|| format!("cannot get {path} of the controller"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no HTTP status in {head:?}"))?, body.to_owned()))
    }

    /// The value of a metric in `/metrics`, by its name with labels as printed.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.metrics()?.get(name).copied().with_context(|| format!("no metric {name}"))
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
        signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to the controller"))
    }

    /// Waits until it has ended by itself or by a signal.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = wait_until(STOPPED_WITHIN, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        ensure!(ended, "the controller did not end within {STOPPED_WITHIN:?}:\n{}", self.log());
        status.context("the controller has no exit status")
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.kill(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "the controller ended with {status}:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            show(&format!("log of the controller:\n{}", self.log()));
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test runner with the failed test")]
fn show(text: &str) {
    eprintln!("{text}");
}
