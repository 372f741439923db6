//! What both programs are as processes: a runtime, an end on signals, probes and metrics on the side.

use std::io;
use std::thread::{self, JoinHandle};

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Health, Page, ServeError, serve};

/// The process lacks something that it needs.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot start a runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot hand over the port")]
    HandOver(#[source] io::Error),
    #[error("cannot take over the port")]
    TakeOver(#[source] io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the server of probes and metrics has panicked")]
    Panicked,
}

/// A runtime of the calling thread.
pub fn runtime() -> Result<Runtime, ProcessError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(ProcessError::Runtime)
}

/// Cancels it when the process is asked to end: SIGTERM, SIGINT.
pub fn stop_on_signals(shutdown: &CancellationToken) -> Result<(), ProcessError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(ProcessError::Signals)?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}

/// The server of probes and metrics on a thread of its own: a probe must not wait for work.
#[derive(Debug)]
pub struct Aside(JoinHandle<Result<(), ProcessError>>);

impl Aside {
    /// Serves until `shutdown` is cancelled; see [`serve`].
    pub fn start(
        listener: TcpListener,
        registry: Registry,
        health: Health,
        pages: Vec<Page>,
        shutdown: CancellationToken,
    ) -> Result<Self, ProcessError> {
        let listener = listener.into_std().map_err(ProcessError::HandOver)?;
        let serving = move || {
            runtime()?.block_on(async {
                let listener = TcpListener::from_std(listener).map_err(ProcessError::TakeOver)?;
                Ok(serve(listener, registry, health, pages, shutdown).await?)
            })
        };
        let thread = thread::Builder::new().name("probes".to_owned());
        thread.spawn(serving).map(Self).map_err(ProcessError::Thread)
    }

    /// Waits until it has ended.
    pub fn ended(self) -> Result<(), ProcessError> {
        self.0.join().unwrap_or(Err(ProcessError::Panicked))
    }
}
