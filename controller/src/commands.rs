//! What the command line asks for, from flags to exit code.
//!
//! Exit codes are those of `sysexits.h`, so that a script can tell apart what to do: 64 the
//! command line is wrong (2 when clap finds it), 69 something that is needed is missing (a port),
//! 78 no configuration says where the API server is, 70 anything else.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use kube::{Client, Config};
use prometheus_client::registry::Registry;
use shared::process::{Aside, ProcessError, runtime, stop_on_signals};
use shared::telemetry::{self, Health, LogsError, ServeError};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::Cli;
use crate::leader::{Elector, InvalidTerms};
use crate::metrics::Metrics;
use crate::run::Controller;

/// How long the main loop may be busy before `/healthz` says that it is stuck.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// Why the program cannot run at all.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "cannot find an API server ({0}); run in a pod with a service account, or set KUBECONFIG"
    )]
    NoServer(String),
}

/// Does it, and says how it ended.
pub fn execute(cli: &Cli) -> ExitCode {
    match carry_out(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when even standard error is closed.
            let _ = writeln!(std::io::stderr(), "controller: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    const USAGE: u8 = 64;
    const UNAVAILABLE: u8 = 69;
    const SOFTWARE: u8 = 70;
    const CONFIGURATION: u8 = 78;
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        match refusal {
            Refusal::NoServer(_) => CONFIGURATION,
        }
    } else if error.is::<InvalidTerms>() || error.is::<LogsError>() {
        USAGE
    } else if error.is::<ServeError>()
        || matches!(error.downcast_ref(), Some(ProcessError::Serve(_)))
    {
        UNAVAILABLE
    } else {
        SOFTWARE
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<()> {
    cli.lease.terms()?;
    telemetry::init_logs(cli.log_format)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(cli));
    runtime.shutdown_background();
    outcome
}

async fn run(cli: &Cli) -> anyhow::Result<()> {
    let terms = cli.lease.terms()?;
    let client = client().await?;
    let listener = telemetry::listen(cli.listen).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let health = Health::new(STUCK_AFTER);
    let shutdown = CancellationToken::new();
    let server = Aside::start(listener, registry, health.clone(), Vec::new(), shutdown.clone())?;
    stop_on_signals(&shutdown)?;

    let identity = cli.lease.identity();
    info!(namespace = cli.namespace, identity, listen = %cli.listen, "started");
    let name = &cli.lease.lease_name;
    let (elector, leadership) =
        Elector::new(client.clone(), &cli.namespace, name, identity.clone(), terms);
    let stop_election = CancellationToken::new();
    let election = tokio::spawn(elector.run(stop_election.clone()));
    let controller =
        Controller::new(client, &cli.namespace, &identity, leadership, metrics, health);
    controller.run(shutdown.clone()).await;
    // Nothing is written any more: another replica may take over at once.
    stop_election.cancel();
    election.await.context("the election has panicked")?;
    server.ended()?;
    info!("stopped; what is published stays, and agents work without a controller");
    Ok(())
}

/// A client that leaves trying again to us: we know when it is of use.
async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.map_err(|error| Refusal::NoServer(error.to_string()))?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("cannot use the configuration for the API server")
}
