//! What the command line asks for, from flags to exit code.
//!
//! Exit codes are those of `sysexits.h`, so that a script can tell apart what to do: 64 the
//! command line is wrong (2 when clap finds it), 69 something that is needed is missing (`nft`, a
//! port), 77 a capability is missing, 78 the configuration does not fit this node (directory,
//! interface), 70 anything else.

mod counters;
mod origin;

use std::io::Write;
use std::path::Path;
use std::process::{self, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use prometheus_client::registry::Registry;
use shared::process::{Aside, ProcessError, runtime, stop_on_signals};
use shared::telemetry::{self, Health, LogsError, Page, ServeError};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use self::counters::KernelCounters;
use self::origin::Origin;
use crate::api_server::{ApiServer, ApiServerError, told};
use crate::cli::{Cli, Command, Keepalived, Output};
use crate::desired::Settings;
use crate::keepalived::{Launcher, LauncherError, Metrics as LauncherMetrics, Supervisor};
use crate::kernel::{Kernel, KernelError};
use crate::kernel_state::Observed;
use crate::leftovers::Leftovers;
use crate::metrics::{DirectMetrics, Metrics, ResultMetrics};
use crate::node_facts::NoUplink;
use crate::node_report::CONFLICTS_PATH;
use crate::report::{Report, report};
use crate::routing::InvalidOwnership;
use crate::run::{Agent, Direct};
use crate::sources::cni_results::CniResults;
use crate::sources::directory::SourceError;
use crate::sync::Sync;
use crate::unsure::Strict;

/// How long the main loop may be busy before `/healthz` says that it is stuck: the first load of a
/// very large node takes some seconds.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// How long to wait for word on the DaemonSet at the end.
const UNINSTALLED_WITHIN: Duration = Duration::from_secs(3);

/// Why a command cannot be carried out at all.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "nothing to do: name a directory of mappings with --mappings-dir, or run in a pod or set \
         KUBECONFIG to read them from the API server; see --help"
    )]
    NoSource,
    #[error(
        "cannot work without CAP_NET_ADMIN; run as root with it, or add NET_ADMIN to the \
         capabilities of the container"
    )]
    NoCapability(#[source] KernelError),
    #[error("cannot run {program} ({why}); install nftables 1.0.6 or later, or name it with --nft")]
    NoNft { program: String, why: String },
    #[error(
        "no VIPs: name them with --services-configmap NAMESPACE/vip-configmap or --mappings-dir"
    )]
    NoVips,
    #[error(
        "--strict-pods needs CNI plugins' results, which tell which pods are on this node; name their \
         directory with --cni-results-dir"
    )]
    NoResults,
    #[error("cannot use --interface: {0}")]
    Interface(NoUplink),
    #[error("{failures} things could not be removed; the log names them")]
    NotCleanedUp { failures: usize },
}

/// Does it, and says how it ended.
pub fn execute(cli: &Cli) -> ExitCode {
    match carry_out(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when even standard error is closed.
            let _ = writeln!(std::io::stderr(), "agent: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    const USAGE: u8 = 64;
    const UNAVAILABLE: u8 = 69;
    const SOFTWARE: u8 = 70;
    const NO_PERMISSION: u8 = 77;
    const CONFIGURATION: u8 = 78;
    // What an error was wrapped in is found by `downcast_ref`, and not in its chain.
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        match refusal {
            Refusal::NoSource | Refusal::NoVips | Refusal::NoResults => USAGE,
            Refusal::NoCapability(_) => NO_PERMISSION,
            Refusal::NoNft { .. } => UNAVAILABLE,
            Refusal::Interface(_) => CONFIGURATION,
            Refusal::NotCleanedUp { .. } => SOFTWARE,
        }
    } else if error.is::<InvalidOwnership>() || error.is::<LogsError>() {
        USAGE
    } else if error.is::<SourceError>() || error.is::<ApiServerError>() {
        CONFIGURATION
    } else if error.is::<ServeError>()
        || matches!(error.downcast_ref(), Some(ProcessError::Serve(_)))
    {
        UNAVAILABLE
    } else {
        SOFTWARE
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<()> {
    let settings = cli.settings()?;
    telemetry::init_logs(cli.log_format)?;
    let runtime = runtime()?;
    if let Some(Command::Keepalived(options)) = &cli.command {
        let outcome = runtime.block_on(keepalived(options));
        runtime.shutdown_background();
        outcome
    } else if cli.action.dump_rules {
        let report = runtime.block_on(dump(cli, settings))?;
        print(&report, cli.run.output)
    } else if cli.action.cleanup {
        runtime.block_on(clean_up(cli, settings))
    } else {
        let outcome = runtime.block_on(run(cli, settings));
        // A look at a directory that hangs shall not keep the process from ending.
        runtime.shutdown_background();
        outcome
    }
}

fn open(cli: &Cli, settings: &Settings) -> anyhow::Result<Kernel> {
    let kernel = Kernel::open(settings.ownership, cli.kernel.tables(), &cli.kernel.nft);
    kernel.map_err(missing_capability)
}

/// A refused request for want of a capability says so in one sentence, whatever was asked.
fn missing_capability(error: KernelError) -> anyhow::Error {
    let refused = anyhow::Chain::new(&error).any(|cause| {
        cause.downcast_ref::<Errno>() == Some(&Errno::EPERM)
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.raw_os_error() == Some(Errno::EPERM as i32))
    });
    if refused { Refusal::NoCapability(error).into() } else { error.into() }
}

async fn dump(cli: &Cli, settings: Settings) -> anyhow::Result<Report> {
    let mut kernel = open(cli, &settings)?;
    let look = async {
        let facts = kernel.node_facts().await?;
        let tables = kernel.look_at_tables()?;
        let routing = kernel.observe_routing().await?;
        let mut ways = facts.gatewayed();
        ways.extend(routing.holder_devices().map(|device| device.name.clone()));
        let observed = Observed {
            routing,
            main: tables.main,
            guard: tables.guard,
            ingress: tables.ingress,
            pods: kernel.dump_pods()?,
            strict: kernel.strict(ways.iter()),
            places: None,
        };
        Ok((observed, facts, kernel.switches()?))
    };
    let (observed, facts, switches) = look.await.map_err(missing_capability)?;
    let tables = cli.kernel.tables();
    Ok(report(&observed, &facts, &switches, &tables, &settings.ownership, Instant::now()))
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    let mut text = match output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string_pretty(report).context("cannot write JSON")?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // `agent --dump-rules | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

async fn clean_up(cli: &Cli, settings: Settings) -> anyhow::Result<()> {
    need_nft(&cli.kernel.nft)?;
    let errors = open(cli, &settings)?.clean_up().await;
    let failures = errors.len();
    for error in errors {
        error!("{:#}", missing_capability(error));
    }
    anyhow::ensure!(failures == 0, Refusal::NotCleanedUp { failures });
    info!("removed everything of ours; rp_filter stays as it is");
    Ok(())
}

/// Asked before anything else is done: an agent that cannot load tables is of no use.
fn need_nft(program: &str) -> Result<(), Refusal> {
    let refusal = |why| Refusal::NoNft { program: program.to_owned(), why };
    let output = process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| refusal(error.to_string()))?;
    if output.status.success() && output.stdout.starts_with(b"nftables") {
        Ok(())
    } else {
        Err(refusal("it does not answer --version as nft does".to_owned()))
    }
}

async fn run(cli: &Cli, settings: Settings) -> anyhow::Result<()> {
    let directory = cli.run.mappings_dir.as_deref();
    let api_server = match directory {
        Some(_) => None,
        None if ApiServer::is_offered() => Some(ApiServer::find(&cli.run.namespace()).await?),
        None => return Err(Refusal::NoSource.into()),
    };
    if cli.run.strict_pods && cli.run.cni_results_dir.is_empty() {
        return Err(Refusal::NoResults.into());
    }
    need_nft(&cli.kernel.nft)?;
    let kernel = open(cli, &settings)?;
    let notifications = kernel.subscribe().map_err(missing_capability)?;
    if let Some(name) = &settings.interface {
        let facts = kernel.node_facts().await.map_err(missing_capability)?;
        facts.exists(name).map_err(Refusal::Interface)?;
    }
    let node = cli.run.node_name();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let origin = Origin::open(directory, api_server.as_ref(), &node, &mut registry)?;
    let results = Some(cli.run.cni_results_dir.as_str()).filter(|path| !path.is_empty());
    let results = results.map(|path| (path, ResultMetrics::register(&mut registry)));
    let listener = telemetry::listen(cli.run.listen).await?;

    let direct = DirectMetrics::register(&mut registry);
    registry.register_collector(Box::new(KernelCounters::of(cli.kernel.tables())));
    let health = Health::new(STUCK_AFTER);
    let shutdown = CancellationToken::new();
    let server = Aside::start(listener, registry, health.clone(), Vec::new(), shutdown.clone())?;
    stop_on_signals(&shutdown)?;

    let span = info_span!("agent", node);
    let _entered = span.enter();
    let direct = Direct::start(&kernel, direct, &settings, &cli.run.prove_with);
    info!(mappings = origin.address, listen = %cli.run.listen, "started");
    let agent = Agent {
        sync: Sync::new(
            kernel,
            settings.clone(),
            metrics.clone(),
            origin.store,
            cli.run.strict_pods.then(Strict::default),
        ),
        source: origin.source,
        results: results
            .map(|(path, metrics)| CniResults::open(Path::new(path), cli.run.strict_pods, metrics)),
        reporter: origin.reporter,
        direct: direct.map_err(missing_capability)?,
        launcher: origin.launcher,
        leftovers: Leftovers::default(),
        notifications,
        metrics,
        health,
        interval: cli.run.update_interval,
    };
    let outcome = agent.run(shutdown.clone()).await;
    shutdown.cancel();
    outcome.map_err(missing_capability)?;
    server.ended()?;
    if uninstalled(api_server.as_ref(), &cli.run.daemon_set).await {
        return clean_up(cli, settings).await;
    }
    info!("stopped; the rules stay, and work without an agent");
    Ok(())
}

async fn keepalived(options: &Keepalived) -> anyhow::Result<()> {
    let settings = options.settings(may_raise_priority());
    let span = info_span!("keepalived", node = settings.node);
    let mut registry = Registry::default();
    let source = origin::of_vips(options, &settings.node, &mut registry).await?;
    let listener = telemetry::listen(options.listen).await?;
    let health = Health::new(STUCK_AFTER);
    let metrics = LauncherMetrics::register(&mut registry);
    let shutdown = CancellationToken::new();
    let (conflicts, text) = watch::channel(String::new());
    let pages = vec![Page { path: CONFLICTS_PATH, text }];
    let server = Aside::start(listener, registry, health.clone(), pages, shutdown.clone())?;
    stop_on_signals(&shutdown)?;
    let launcher = Launcher {
        conflicts,
        source,
        supervisor: Supervisor::new(
            &options.keepalived,
            &options.run_dir,
            settings.advert_interval,
        )?,
        settings,
        agent: options.agent_url.0,
        metrics,
        health,
    };
    let outcome = launcher.run(shutdown.clone()).instrument(span).await;
    shutdown.cancel();
    outcome.map_err(|error| match error {
        LauncherError::Kernel(error) => missing_capability(error),
        error @ LauncherError::Files(_) => error.into(),
    })?;
    server.ended()?;
    info!("stopped");
    Ok(())
}

/// Whether `CAP_SYS_NICE` is effective.
fn may_raise_priority() -> bool {
    const CAP_SYS_NICE: u32 = 23;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << CAP_SYS_NICE) != 0)
}

/// Whether the agent stops for good. Without a clear answer it does not.
async fn uninstalled(server: Option<&ApiServer>, daemon_set: &str) -> bool {
    let Some(server) = server else { return false };
    match timeout(UNINSTALLED_WITHIN, server.daemon_set_goes(daemon_set)).await {
        Ok(Ok(goes)) => {
            if goes {
                info!("DaemonSet {daemon_set} is deleted: removing everything of ours");
            }
            goes
        }
        Ok(Err(error)) => {
            warn!("cannot tell whether DaemonSet {daemon_set} is deleted: {}", told(&error));
            false
        }
        Err(_) => {
            warn!("cannot tell whether DaemonSet {daemon_set} is deleted: no answer in time");
            false
        }
    }
}
