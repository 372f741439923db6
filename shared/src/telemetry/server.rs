//! The port with probes and metrics.
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/healthz` | the main loop turns | it is stuck, the body says for how long |
//! | `/readyz` | the program does its work | it does not, the body says why |
//! | `/metrics` | the metrics as `OpenMetrics` text | |
//!
//! A program may add pages of its own: [`Page`].

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::Health;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long requests may take after the program was told to stop.
const GRACE: Duration = Duration::from_secs(1);

/// Probes and metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {addr} ({why}); choose another address or port with --listen")]
    Listen { addr: SocketAddr, why: io::Error },
    #[error("cannot serve probes and metrics")]
    Serve(#[source] io::Error),
}

/// Takes the port; port 0 takes a free one, which the listener knows.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(addr).await.map_err(|why| ServeError::Listen { addr, why })
}

/// A text that is served as it is when it is asked for.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where, with a slash before it.
    pub path: &'static str,
    pub text: watch::Receiver<String>,
}

/// Serves until `shutdown` is cancelled, and at most a second longer for what is under way.
///
/// Collectors of `registry` run on a thread where they may block, one scrape at a time.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    pages: Vec<Page>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let probes = Router::new()
        .route("/healthz", get(async |State(health): State<Health>| probe(health.alive())))
        .route("/readyz", get(async |State(health): State<Health>| probe(health.ready())))
        .with_state(health);
    let metrics =
        Router::new().route("/metrics", get(scrape)).with_state(Arc::new(Mutex::new(registry)));
    let pages = pages.into_iter().fold(Router::new(), |router, Page { path, text }| {
        router.route(path, get(async move || text.borrow().clone()))
    });
    let server = axum::serve(listener, probes.merge(metrics).merge(pages))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned())
        .into_future();
    tokio::select! {
        outcome = server => outcome.map_err(ServeError::Serve),
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

fn probe(outcome: Result<(), impl Display>) -> (StatusCode, String) {
    match outcome {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn scrape(State(registry): State<Arc<Mutex<Registry>>>) -> Response {
    let registry = registry.lock_owned().await;
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    let failure = match encoded.await {
        Ok(Ok(text)) => return ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::error!(failure, "cannot encode metrics");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode metrics: {failure}\n"))
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, TcpStream};
    use std::time::Instant;

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;
    use tokio::task::spawn_blocking;

    use super::*;

    const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// The kernel's counters stand behind such a collector.
    #[derive(Debug)]
    struct Dropped;

    impl Collector for Dropped {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let counter = ConstCounter::new(42_u64);
            let kind = counter.metric_type();
            let metric = encoder.encode_descriptor("dropped_packets", "Dropped", None, kind)?;
            counter.encode(metric)
        }
    }

    async fn request(addr: SocketAddr, path: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = spawn_blocking(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn answer(addr: SocketAddr, path: &str) -> (u16, String) {
        let (head, body) = request(addr, path).await;
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered_until_shutdown() {
        let health = Health::new(Duration::from_mins(1));
        let shutdown = CancellationToken::new();
        let listener = listen(LOCALHOST).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut registry = Registry::with_prefix("egress");
        registry.register_collector(Box::new(Dropped));
        let server =
            tokio::spawn(serve(listener, registry, health.clone(), Vec::new(), shutdown.clone()));

        assert_eq!(answer(addr, "/healthz").await, (200, "ok\n".to_owned()));
        let starting = "the first complete sync is not done yet\n";
        assert_eq!(answer(addr, "/readyz").await, (503, starting.to_owned()));
        health.set_ready();
        assert_eq!(answer(addr, "/readyz").await, (200, "ok\n".to_owned()));
        assert_eq!(answer(addr, "/nothing").await.0, 404);

        let (head, body) = request(addr, "/metrics").await;
        assert!(head.contains(OPEN_METRICS), "{head}");
        assert_eq!(
            body,
            "# HELP egress_dropped_packets Dropped\n# TYPE egress_dropped_packets counter\n\
             egress_dropped_packets_total 42\n# EOF\n"
        );

        // An idle connection does not hold the program up.
        let idle = TcpStream::connect(addr).unwrap();
        let told = Instant::now();
        shutdown.cancel();
        server.await.unwrap().unwrap();
        assert!(told.elapsed() < GRACE * 5);
        drop(idle);
    }

    #[tokio::test]
    async fn a_stuck_loop_fails_the_liveness_probe_with_the_reason() {
        let listener = listen(LOCALHOST).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let health = Health::new(Duration::ZERO);
        let stopped = shutdown.clone();
        let server =
            tokio::spawn(serve(listener, Registry::default(), health, Vec::new(), stopped));
        let (status, reason) = answer(addr, "/healthz").await;
        assert_eq!(status, 503);
        assert!(reason.starts_with("the main loop has not turned for "), "{reason}");
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = listen(LOCALHOST).await.unwrap();
        let addr = taken.local_addr().unwrap();
        let error = listen(addr).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {addr} (")), "{error}");
        assert!(error.ends_with("choose another address or port with --listen"), "{error}");
    }
}
