//! How the agent gets to the Kubernetes API server, and the one thing that it asks of it besides
//! `ConfigMaps`: whether its DaemonSet is being deleted.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::{Body, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A server that does not take a connection within this time is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection on which nothing was heard for this long is probed, this often and this many times
/// before it is given up: a server that lost its power is missed within half a minute.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);
/// What was sent has to be acknowledged within this time.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Why there is no API server to speak with.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    #[error("cannot read the kubeconfig {path}; correct it, or unset KUBECONFIG")]
    Kubeconfig { path: String, source: KubeconfigError },
    #[error(
        "cannot find the API server of this cluster; the pod needs its service account's token \
         (automountServiceAccountToken)"
    )]
    InCluster(#[from] InClusterError),
    #[error("cannot set up a client of the API server at {address}")]
    Client { address: String, source: kube::Error },
    #[error("cannot start a thread for the API server")]
    Thread(#[from] io::Error),
}

/// Where the API server is, who we are there, and the one namespace we read.
#[derive(Clone, Debug)]
pub struct ApiServer {
    config: Config,
    namespace: String,
}

impl ApiServer {
    /// Whether the environment names one: this is a pod, or `KUBECONFIG` is set.
    pub fn is_offered() -> bool {
        kubeconfig().is_some() || set("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// The one that `KUBECONFIG` names or else, in a pod, that of the cluster. Does not connect.
    pub async fn find(namespace: &str) -> Result<Self, ApiServerError> {
        let config = match kubeconfig() {
            Some(path) => {
                let read = async {
                    let kubeconfig = Kubeconfig::read_from(Path::new(&path))?;
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
                };
                read.await.map_err(|source| ApiServerError::Kubeconfig { path, source })?
            }
            None => Config::incluster()?,
        };
        Ok(Self { config, namespace: namespace.to_owned() })
    }

    /// Its address.
    pub fn address(&self) -> String {
        self.config.cluster_url.to_string()
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the DaemonSet of that name does not exist or is being deleted.
    ///
    /// An error says nothing about it. May wait for as long as a connection takes.
    pub async fn daemon_set_goes(&self, name: &str) -> Result<bool, ApiServerError> {
        let error = |source| ApiServerError::Client { address: self.address(), source };
        let api: Api<DaemonSet> = Api::namespaced(self.client()?, &self.namespace);
        let daemon_set = api.get_opt(name).await.map_err(error)?;
        Ok(daemon_set.is_none_or(|found| found.metadata.deletion_timestamp.is_some()))
    }

    /// Needs a runtime.
    fn client(&self) -> Result<Client, ApiServerError> {
        let error = |source| ApiServerError::Client { address: self.address(), source };
        let mut tcp = HttpConnector::new();
        let (after, every, times) = KEEPALIVE;
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_WITHIN));
        tcp.set_keepalive(Some(after));
        tcp.set_keepalive_interval(Some(every));
        tcp.set_keepalive_retries(Some(times));
        tcp.set_tcp_user_timeout(Some(ACKNOWLEDGED_WITHIN));
        let tls = self.config.rustls_https_connector_with_connector(tcp).map_err(error)?;
        let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(tls);
        let service = tower::ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            .option_layer(self.config.auth_layer().map_err(error)?)
            .map_err(tower::BoxError::from)
            .service(http);
        Ok(Client::new(service, self.namespace.clone()))
    }
}

/// A thread that speaks with the API server, so that neither large answers nor a busy kernel keep
/// the other waiting. What it does ends when it is dropped.
#[derive(Debug)]
pub struct ApiThread {
    runtime: Handle,
    config_maps: Api<ConfigMap>,
    _end: DropGuard,
}

impl ApiThread {
    /// Starts the thread. Does not connect.
    pub fn start(server: &ApiServer) -> Result<Self, ApiServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let client = {
            let _within = handle.enter();
            server.client()?
        };
        let end = CancellationToken::new();
        let ended = end.clone();
        thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            runtime.block_on(ended.cancelled());
            // A look-up of a name that hangs shall not keep the process from ending.
            runtime.shutdown_background();
        })?;
        let config_maps = Api::namespaced(client, server.namespace());
        Ok(Self { runtime: handle, config_maps, _end: end.drop_guard() })
    }

    /// The `ConfigMaps` of the namespace.
    pub fn config_maps(&self) -> Api<ConfigMap> {
        self.config_maps.clone()
    }

    /// Where tasks run.
    pub fn runtime(&self) -> Handle {
        self.runtime.clone()
    }
}

/// An error with its causes on one line. Those of the client often say the same twice.
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}

fn kubeconfig() -> Option<String> {
    set("KUBECONFIG")
}

fn set(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}
