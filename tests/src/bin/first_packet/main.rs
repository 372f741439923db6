//! Measures, on a real Kubernetes on this machine, what becomes of the very first packets of pods.
//!
//! The first act of every pod is to send: one datagram, then pings and TCP connections without end,
//! all to an address of the host outside that is the pod's own. The capture there is the witness.

mod assigned;
mod monitor;
mod starts;

use std::io::{Write, stdout};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tests::Installation;

use self::assigned::assigned;
use self::monitor::Monitor;
use self::starts::{Batch, Start, VIP, targets};

/// Measures the first packets of new pods, and how long pods take to start.
#[derive(Debug, Parser)]
#[command(name = "first_packet", max_term_width = 100)]
struct Options {
    /// How many pods with a VIP are started.
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// How many of them at once, at most 100.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    at_once: u8,
    /// How many more are started while the controller is restarted.
    #[arg(long, default_value_t = 100)]
    restarted: usize,
    /// How many pods without a VIP are started before the system is installed, and after.
    #[arg(long, default_value_t = 100)]
    uncovered: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let installation = Installation::prepare()?;
    targets(&installation, options.at_once)?;
    let run = |name, total, covered| starts(&installation, &options, name, total, covered);

    let without = run("without", options.uncovered, false)?;
    installation.sh("deploy/deploy.sh")?;
    installation.create_vip("first", &VIP.to_string())?;
    let holder = installation.sh("kubectl get vip first -o jsonpath='{.status.holder}'")?;
    let egress = format!("{{ip: {VIP}, kind: pod, selector: {{matchLabels: {{app: covered}}}}}}");
    installation.create_egress("default", "first", &egress)?;
    for agents in ["kube-egress", "kube-keepalived-vip"] {
        installation.cluster().wait_rollout(
            "default",
            &format!("daemonset/{agents}"),
            Duration::from_mins(2),
        )?;
    }
    let with = run("with", options.uncovered, false)?;

    let monitor = Monitor::start(installation.cluster())?;
    let covered = run("covered", options.pods, true)?;
    let (own, at_holder) = monitor.delays(&covered, holder.trim());
    drop(monitor);

    let restarted = thread::scope(|scope| {
        let restarting = scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            installation.sh("kubectl rollout restart deployment/egress-mapper")
        });
        let restarted = run("restarted", options.restarted, true);
        restarting.join().map_err(|_| anyhow::anyhow!("the restart panicked"))??;
        restarted
    })?;

    let mut out = stdout();
    let on_holder = |start: &&Start| start.node == holder.trim();
    let share = |starts: Vec<&Start>| {
        let good = starts.iter().filter(|start| start.first).count();
        format!("{good} of {} ({:.1} %)", starts.len(), percent(good, starts.len()))
    };
    let leaked = |starts: &[Start]| starts.iter().map(|start| start.leaked).sum::<u64>();
    writeln!(out, "{} pods, {} at once", covered.len(), options.at_once)?;
    writeln!(out, "packets with another address than the VIP: {}", leaked(&covered))?;
    writeln!(
        out,
        "first packet arrives with the VIP, on the holder's node: {}",
        share(covered.iter().filter(on_holder).collect())
    )?;
    writeln!(
        out,
        "first packet arrives with the VIP, elsewhere: {}",
        share(covered.iter().filter(|start| !on_holder(start)).collect())
    )?;
    writeln!(
        out,
        "{} pods while the controller restarts, packets with another address: {}, first packet: {}",
        restarted.len(),
        leaked(&restarted),
        share(restarted.iter().collect())
    )?;
    writeln!(out, "address assigned → programmed on the pod's node: {}", distribution(own))?;
    writeln!(out, "address assigned → programmed on the holder: {}", distribution(at_holder))?;
    let ready = |starts: &[Start]| starts.iter().map(|start| start.took).collect();
    writeln!(
        out,
        "created → first packet, no VIP, not installed: {}",
        distribution(ready(&without))
    )?;
    writeln!(out, "created → first packet, no VIP, installed: {}", distribution(ready(&with)))?;
    Ok(())
}

/// Starts that many pods, some at once, and removes them.
fn starts(
    installation: &Installation,
    options: &Options,
    name: &str,
    total: usize,
    covered: bool,
) -> Result<Vec<Start>> {
    let mut starts = Vec::new();
    for number in 0.. {
        let left = total - starts.len();
        let count = u8::try_from(left.min(options.at_once.into()))?;
        if count == 0 {
            break;
        }
        let batch = Batch { name: &format!("{name}-{number}"), count, covered };
        let mut started = batch.start(installation)?;
        for start in &mut started {
            let node = installation.cluster().nodes().iter();
            let node = node.clone().find(|node| node.host().name == start.node);
            start.assigned = assigned(node.context("a pod is on no node")?, &start.pod)?;
        }
        batch.remove(installation)?;
        starts.extend(started);
        write!(stdout(), "\r{name}: {} of {total} ", starts.len())?;
        stdout().flush()?;
    }
    writeln!(stdout())?;
    Ok(starts)
}

#[expect(clippy::cast_precision_loss, reason = "few")]
fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

fn distribution(mut of: Vec<Duration>) -> String {
    of.sort_unstable();
    let Some(most) = of.last() else { return "nothing measured".to_owned() };
    let millis = |duration: &Duration| duration.as_secs_f64() * 1000.0;
    let at = |share: usize| millis(&of[(of.len() * share).div_ceil(100).max(1) - 1]);
    format!(
        "p50 {:.1}, p90 {:.1}, p99 {:.1}, most {:.1} ms ({})",
        at(50),
        at(90),
        at(99),
        millis(most),
        of.len()
    )
}
