//! A `kube` client in a process whose network is not the API server's: only its sockets are made
//! in that network, so that it works in any thread and under any runtime.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use anyhow::{Context, Result};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::{TcpSocket, TcpStream};
use tower_service::Service;

use crate::host::Host;

/// A client with the server of that kubeconfig and that token, with its connections in the network
/// of `host`.
pub(super) async fn connect(host: &Host, kubeconfig: &str, token: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("cannot read the kubeconfig")?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("cannot use the kubeconfig")?;
    let bearer = HeaderValue::try_from(format!("Bearer {token}")).context("not a token")?;
    config.headers.push((AUTHORIZATION, bearer));
    let connector =
        config.rustls_https_connector_with_connector(Connector { host: host.clone() })?;
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    Ok(ClientBuilder::new(http, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&config.base_uri_layer())
        .build())
}

/// Connects from the network of a host; addresses only, no names.
#[derive(Clone)]
struct Connector {
    host: Host,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = self.host.clone();
        Box::pin(async move {
            let server = uri.authority().and_then(|server| server.as_str().parse().ok());
            let server: SocketAddr = server.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("no address in {uri}"))
            })?;
            let socket = host.enter(|| match server {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            });
            let stream = socket.map_err(io::Error::other)??.connect(server).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}
