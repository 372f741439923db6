//! What the loss of a holder costs: `cargo bench -p tests --bench failover`, as root.
//!
//! Three nodes, agents and real keepalived; a pod of each node sends UDP a thousand times a second, uploads and asks
//! and answers over TCP, on the direct path downloads too. Each fault strikes the holder some times, in IPv4 and in IPv6 in turns. An outage is the
//! longest time in which no packet was sent that was answered, of the pod that suffered most.

#![expect(clippy::print_stdout, reason = "figures are for reading")]

mod crowd;
#[path = "../node/table.rs"]
#[expect(dead_code, reason = "shared with another benchmark")]
mod table;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use shared::VipPath;
use tests::{Agent, Family, Fault, Gateways, Outcome, wait_until};

use table::{Verdicts, heading, rows};

const SOON: Duration = Duration::from_secs(20);
/// What is left over of a fault shows within this time.
const AFTERWARDS: Duration = Duration::from_millis(1500);

#[derive(Debug, Parser)]
#[command(name = "failover", about = "What the loss of a holder costs. Needs root.")]
struct Options {
    /// How often each fault strikes.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Between two adverts, in milliseconds.
    #[arg(long, default_value = "100")]
    advert_interval_ms: u64,
    /// Packets a second of each pod.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Only faults whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only this path of the VIPs: `ViaHolder` or `Direct`.
    #[arg(long)]
    path: Option<VipPath>,
    /// Leaves out the measurements with 252 VIPs.
    #[arg(long)]
    few: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Figures of one fault.
struct Figures {
    what: &'static str,
    outages: Vec<Duration>,
    lost: Vec<u64>,
    broken: Vec<String>,
    leaked: u64,
    unseen: Vec<u64>,
}

/// A fault, and how long it lasts before it is mended, if that is not when traffic goes on.
struct Trial {
    what: &'static str,
    fault: Fault,
    mended_after: Option<Duration>,
}

const TRIALS: [Trial; 10] = [
    Trial { what: "unplugged", fault: Fault::Unplugged, mended_after: None },
    Trial { what: "powered off", fault: Fault::PoweredOff, mended_after: None },
    Trial { what: "keepalived killed", fault: Fault::KeepalivedKilled, mended_after: None },
    Trial {
        what: "keepalived frozen for 2.5 s",
        fault: Fault::KeepalivedFrozen,
        mended_after: Some(Duration::from_millis(2500)),
    },
    Trial {
        what: "agent killed, back after 1 s",
        fault: Fault::AgentKilled,
        mended_after: Some(Duration::from_secs(1)),
    },
    Trial {
        what: "agent frozen for 1 s",
        fault: Fault::AgentFrozen,
        mended_after: Some(Duration::from_secs(1)),
    },
    Trial { what: "agent killed for good", fault: Fault::AgentKilled, mended_after: None },
    Trial { what: "launcher killed, and back", fault: Fault::LauncherKilled, mended_after: None },
    Trial { what: "graceful stop", fault: Fault::Stopped, mended_after: None },
    Trial { what: "drain", fault: Fault::Drained, mended_after: None },
];

fn main() -> Result<()> {
    let options = Options::parse();
    Agent::build_release()?;
    let mut verdicts = Verdicts::default();
    for path in [VipPath::ViaHolder, VipPath::Direct] {
        if options.path.is_none_or(|only| only == path) {
            let figures = measure(&options, path)?;
            show(&options, path, &figures);
            judge(&options, path, &figures, &mut verdicts);
        }
    }
    if !options.few {
        crowd::measure(options.advert_interval_ms, &mut verdicts)?;
    }
    verdicts.print();
    Ok(())
}

fn measure(options: &Options, path: VipPath) -> Result<Vec<Figures>> {
    let interval = options.advert_interval_ms.to_string();
    let mut gateways = Gateways::start_on(path, &["--advert-interval-ms", &interval])?;
    let chosen = TRIALS.iter().filter(|trial| trial.what.contains(&options.only));
    chosen.map(|trial| try_out(&mut gateways, trial, options)).collect()
}

fn try_out(gateways: &mut Gateways, trial: &Trial, options: &Options) -> Result<Figures> {
    let mut figures = Figures {
        what: trial.what,
        outages: Vec::new(),
        lost: Vec::new(),
        broken: Vec::new(),
        leaked: 0,
        unseen: Vec::new(),
    };
    for family in Family::ALL.into_iter().cycle().take(options.runs) {
        let outcome = strike(gateways, trial, family, options.rate)
            .with_context(|| format!("{}, {family:?}", trial.what))?;
        for pod in &outcome.pods {
            println!("    {pod}");
        }
        let (outage, lost) = (outcome.outage().as_millis(), outcome.lost());
        println!(
            "  {}, {family:?}: {outage} ms, {lost} lost, {} sent and not seen outside, {} broken",
            trial.what,
            outcome.unseen,
            outcome.broken.len()
        );
        figures.outages.push(outcome.outage());
        figures.lost.push(outcome.lost());
        figures.leaked += outcome.leaked;
        figures.unseen.push(outcome.unseen);
        figures.broken.extend(outcome.broken);
    }
    Ok(figures)
}

fn strike(gateways: &mut Gateways, trial: &Trial, family: Family, rate: u32) -> Result<Outcome> {
    let fault = trial.fault;
    let holder = gateways.holder()?;
    gateways.await_settled()?;
    let nodes: Vec<usize> = (1..=3).filter(|node| !fault.cuts_off() || *node != holder).collect();
    let watch = gateways.watch(family, &nodes, rate)?;
    gateways.strike(fault, holder)?;
    if let Some(time) = trial.mended_after {
        std::thread::sleep(time);
    } else if fault.moves() {
        let elsewhere = || {
            let lab = &gateways.cluster.lab;
            Gateways::vips().iter().all(|vip| lab.holders(*vip).iter().any(|node| *node != holder))
        };
        ensure!(wait_until(SOON, elsewhere), "no other node takes over");
        watch.goes_on(SOON)?;
    }
    gateways.mend(fault, holder)?;
    std::thread::sleep(AFTERWARDS);
    watch.goes_on(SOON)?;
    let outcome = watch.finish()?;
    gateways.holders()?;
    Ok(outcome)
}

fn show(options: &Options, path: VipPath, figures: &[Figures]) {
    heading(&format!(
        "{path}: faults of the holder, adverts each {} ms, {} packets a second from each of 3 pods",
        options.advert_interval_ms, options.rate
    ));
    let list = |of: &dyn Fn(usize) -> String, count: usize| {
        (0..count).map(of).collect::<Vec<_>>().join(" / ")
    };
    let row = |figures: &Figures| {
        vec![
            figures.what.to_owned(),
            list(&|n| figures.outages[n].as_millis().to_string(), figures.outages.len()),
            list(&|n| figures.lost[n].to_string(), figures.lost.len()),
            list(&|n| figures.unseen[n].to_string(), figures.unseen.len()),
            figures.broken.len().to_string(),
            figures.leaked.to_string(),
        ]
    };
    rows(
        &[
            "fault",
            "outage, ms",
            "lost or unanswered",
            "not seen outside, of all",
            "sessions broken",
            "leaked",
        ],
        &figures.iter().map(row).collect::<Vec<_>>(),
    );
    for error in figures.iter().flat_map(|figures| &figures.broken) {
        println!("  {error}");
    }
}

fn judge(options: &Options, path: VipPath, figures: &[Figures], verdicts: &mut Verdicts) {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let most = |figures: &Figures| figures.lost.iter().copied().max().unwrap_or_default() as f64;
    let longest = |figures: &Figures| {
        figures.outages.iter().copied().max().unwrap_or_default().as_secs_f64() * 1e3
    };
    let taken_over = if options.advert_interval_ms <= 100 { 400.0 } else { 800.0 };
    let chosen = TRIALS.iter().filter(|trial| trial.what.contains(&options.only));
    for (trial, figures) in chosen.zip(figures) {
        let what = &format!("{path}, {}", figures.what);
        if path == VipPath::Direct {
            let unseen = figures.unseen.iter().copied().max().unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            verdicts.at_most(&format!("{what}, not seen outside"), unseen as f64, 0.0, " lost");
        }
        match trial.fault {
            Fault::Unplugged | Fault::PoweredOff => {
                verdicts.at_most(what, longest(figures), taken_over, " ms");
            }
            _ if path == VipPath::Direct => {
                verdicts.at_most(what, most(figures), 0.0, " lost");
            }
            Fault::Stopped => verdicts.at_most(what, longest(figures), 100.0, " ms"),
            Fault::KeepalivedKilled | Fault::KeepalivedFrozen => {
                verdicts.at_most(what, most(figures), 20.0, " lost");
            }
            Fault::AgentKilled | Fault::AgentFrozen if trial.mended_after.is_some() => {
                verdicts.at_most(what, most(figures), 0.0, " lost");
            }
            Fault::LauncherKilled => verdicts.at_most(what, most(figures), 0.0, " lost"),
            Fault::AgentKilled | Fault::AgentFrozen | Fault::Drained => {
                verdicts.at_most(what, most(figures), 16.0, " lost");
            }
        }
    }
    let broken: usize = figures.iter().map(|figures| figures.broken.len()).sum();
    let leaked: u64 = figures.iter().map(|figures| figures.leaked).sum();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (broken, leaked) = (broken as f64, leaked as f64);
    verdicts.at_most(&format!("{path}, sessions broken, in all"), broken, 0.0, "");
    verdicts.at_most(&format!("{path}, packets leaked, in all"), leaked, 0.0, "");
}
