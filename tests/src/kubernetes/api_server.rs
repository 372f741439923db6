//! The API alone: etcd and kube-apiserver, one machine of its own.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use kube::Client;
use nix::sys::signal::Signal;

use super::client;
use super::control_plane::{
    ADDRESS, ADDRESS_V6, ADMIN_TOKEN, PORT, make_host, start_etcd, start_server, write_files,
};
use super::program::{self, Program, kubernetes};
use crate::command::{TIMEOUT, run_within};
use crate::guard::Guard;
use crate::host::Host;
use crate::lab::Lab;
use crate::shell::Shell;

const READY_WITHIN: Duration = Duration::from_mins(1);
const ASK_EVERY: Duration = Duration::from_millis(25);
/// etcd and kube-apiserver, with RBAC, the node authorizer and tokens of service accounts.
///
/// No controller runs unless it is started: nothing makes `default` service accounts, nothing
/// collects garbage. All of it is removed when this is dropped, or when the process has ended.
#[derive(Debug)]
pub struct ApiServer {
    // The programs end before the guard removes what they use.
    controllers: Mutex<Vec<Program>>,
    server: Mutex<Program>,
    #[expect(dead_code, reason = "kept running")]
    etcd: Program,
    host: Host,
    guard: Guard,
}

impl ApiServer {
    /// Starts it in a network of its own; programs reach it when they run on [`ApiServer::host`].
    pub fn start() -> Result<Self> {
        Self::start_in(None, Guard::start()?)
    }

    /// Starts it as a machine of the laboratory's LAN, 192.168.122.10.
    pub fn start_on(lab: &Lab) -> Result<Self> {
        Self::start_in(Some(lab), Guard::start()?)
    }

    /// The one that all tests of this process share; see [`ApiServer::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<ApiServer>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(|error| anyhow!("{error:#}"))
    }

    /// The machine it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("https://{ADDRESS}:{PORT}")
    }

    /// The kubeconfig of `system:masters`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files().join("admin.conf")
    }

    /// Writes the kubeconfig of who has that token.
    pub fn kubeconfig_of(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.files().join(format!("{name}.conf"));
        fs::write(&path, self.kubeconfig_text(token))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The token of the user `system:node:<node>`, as a kubelet has it: nodes `n1` to `n9`.
    pub fn node_token(&self, node: &str) -> String {
        node.to_owned()
    }

    /// A client of `system:masters`; it belongs to the runtime that it is made in.
    pub async fn client(&self) -> Result<Client> {
        self.client_of(ADMIN_TOKEN).await
    }

    /// As [`ApiServer::client`], of who has that token.
    pub async fn client_of(&self, token: &str) -> Result<Client> {
        client::connect(&self.host, &self.kubeconfig_text(token), token).await
    }

    /// The words before the arguments of kubectl, for people.
    pub fn kubectl_command(&self) -> Result<String> {
        Ok(format!(
            "nsenter --net={} {} --kubeconfig {}",
            self.host.netns_path().display(),
            program::path_of("kubectl")?.display(),
            self.kubeconfig().display()
        ))
    }

    /// Runs kubectl as `system:masters` and returns what it prints; it has 20 seconds.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_within(TIMEOUT, arguments, "")
    }

    /// As [`ApiServer::kubectl`], with a longer time and text on standard input.
    pub fn kubectl_within(
        &self,
        timeout: Duration,
        arguments: &[&str],
        input: &str,
    ) -> Result<String> {
        let kubectl = program::path_of("kubectl")?;
        let cache = format!("KUBECACHEDIR={}", self.files().join("kubectl").display());
        let kubeconfig = self.kubeconfig();
        let (kubectl, kubeconfig) = (kubectl.to_string_lossy(), kubeconfig.to_string_lossy());
        let proxies = ["-u", "HTTPS_PROXY", "-u", "https_proxy", "-u", "ALL_PROXY"];
        let before = ["env", &cache, &kubectl, "--kubeconfig", &kubeconfig];
        let command = [&before[..1], &proxies, &before[1..], arguments].concat();
        self.host.enter(|| run_within(timeout, &command, input))?
    }

    /// Runs command lines as a person types them who is `system:masters`.
    pub fn shell(&self) -> Result<Shell> {
        let kubectl = program::path_of("kubectl")?;
        let programs = kubectl.parent().context("kubectl is in no directory")?;
        Shell::on(&self.host, programs, &self.kubeconfig())
    }

    /// Applies YAML on the server's side and returns what kubectl prints.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_within(TIMEOUT, &["apply", "--server-side", "-f", "-"], yaml)
    }

    /// Makes a namespace with a `default` service account.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        self.apply(&format!(
            "apiVersion: v1
kind: ServiceAccount
metadata: {{namespace: {name}, name: default}}
"
        ))
        .map(drop)
    }

    /// A token of a service account; bound to a pod, and so to its node, where one is named.
    pub fn token(
        &self,
        namespace: &str,
        service_account: &str,
        pod: Option<&str>,
    ) -> Result<String> {
        let mut arguments = vec!["create", "token", service_account, "-n", namespace];
        if let Some(pod) = pod {
            arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
        }
        Ok(self.kubectl(&arguments)?.trim_end().to_owned())
    }

    /// Starts kube-controller-manager: garbage collection, `DaemonSet`s, service accounts and so on.
    pub fn start_controller_manager(&self) -> Result<()> {
        let mut command = self.controller("kube-controller-manager")?;
        command
            .arg("--use-service-account-credentials")
            .args(["--node-monitor-grace-period", "16s", "--concurrent-gc-syncs", "4"])
            .arg("--root-ca-file")
            .arg(self.certificate());
        self.start_controller(command)
    }

    /// Starts kube-scheduler.
    pub fn start_scheduler(&self) -> Result<()> {
        let command = self.controller("kube-scheduler")?;
        self.start_controller(command)
    }

    /// Kills the API server; etcd goes on. See [`ApiServer::restart`].
    pub fn kill(&self) -> Result<()> {
        self.server().signal(Signal::SIGKILL)
    }

    /// Stops the API server without a word to its clients, as a lost network does; see
    /// [`ApiServer::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.server().freeze()
    }

    /// Undoes [`ApiServer::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.server().signal(Signal::SIGCONT)
    }

    /// Starts the API server with the data of the one before, which is killed if it runs; returns
    /// when it is ready.
    pub fn restart(&self) -> Result<()> {
        {
            let mut server = self.server();
            server.signal(Signal::SIGKILL).and_then(|()| server.wait())?;
            *server = start_server(&self.host, &self.files())?;
        }
        self.wait_ready()
    }

    /// Lets all of it run on; see [`Guard::keep`].
    pub(super) fn keep(mut self) -> Result<u32> {
        let guard = self.guard.keep()?;
        // Dropping it would end the programs.
        std::mem::forget(self);
        Ok(guard)
    }

    pub(super) fn start_in(lab: Option<&Lab>, guard: Guard) -> Result<Self> {
        let files = guard.files();
        let name = "api".to_owned();
        let netns = format!("{}{name}", guard.prefix());
        let host = Host { name, netns, v4: ADDRESS, v6: ADDRESS_V6 };
        make_host(&host, lab).context("cannot make the API server's network")?;
        write_files(&files)?;
        let etcd = start_etcd(&host, &files)?;
        let server = Mutex::new(start_server(&host, &files)?);
        let this = Self { controllers: Mutex::default(), server, etcd, host, guard };
        fs::write(this.kubeconfig(), this.kubeconfig_text(ADMIN_TOKEN))?;
        this.wait_ready()?;
        Ok(this)
    }

    /// The directory with all files, removed in the end.
    pub(super) fn files(&self) -> PathBuf {
        self.guard.files()
    }

    /// The authority that signed the server's certificate, and the certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.files().join("pki/apiserver.crt")
    }

    fn kubeconfig_text(&self, token: &str) -> String {
        format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: bed, cluster: {{server: \"{}\", certificate-authority: \"{}\"}}}}]
users: [{{name: user, user: {{token: \"{token}\"}}}}]
contexts: [{{name: bed, context: {{cluster: bed, user: user}}}}]
current-context: bed
",
            self.url(),
            self.certificate().display()
        )
    }

    fn server(&self) -> MutexGuard<'_, Program> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn controller(&self, name: &str) -> Result<Command> {
        let mut command = kubernetes(name)?;
        command.arg("--leader-elect=false").arg("--kubeconfig").arg(self.kubeconfig());
        Ok(command)
    }

    fn start_controller(&self, command: Command) -> Result<()> {
        let program = Program::start(&self.host, &self.files(), command)?;
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).push(program);
        Ok(())
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        // The server writes its certificate before it listens.
        let client = async {
            while Instant::now() < deadline {
                self.server().check_running()?;
                if self.certificate().exists()
                    && let Ok(client) = self.client().await
                    && client
                        .request_text(http::Request::get("/readyz").body(vec![])?)
                        .await
                        .is_ok()
                {
                    return Ok(());
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(anyhow!(
                "the API server was not ready within {READY_WITHIN:?}:\n{}",
                self.server().log_end()
            ))
        };
        wait_for(client)?
    }
}

/// Waits for a future, also in a thread that runs a runtime.
pub(super) fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(future))
        });
        waiter.join().map_err(|_| anyhow!("the thread of a runtime panicked"))?
    })
}
