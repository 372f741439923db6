//! Measures, on a real Kubernetes on this machine, what becomes of the very first packets of pods.
//!
//! The first act of every pod is to send: one datagram, then pings and TCP connections without end,
//! all to an address of the host outside that is the pod's own. The capture there is the witness.

mod assigned;
mod monitor;
mod starts;

use std::io::{Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use shared::VipPath;
use tests::{Installation, wait_until};

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
    /// How many bursts of 50 are started besides.
    #[arg(long, default_value_t = 2)]
    bursts: usize,
    /// How many more are started while the controller is restarted again and again.
    #[arg(long, default_value_t = 100)]
    restarted: usize,
    /// How many more while the controller is killed with each start, and unknown pods never leave.
    #[arg(long, default_value_t = 30)]
    killed: usize,
    /// How many pods without a VIP are started where nothing is installed, and as many where it is.
    #[arg(long, default_value_t = 100)]
    uncovered: usize,
    /// In how many turns of one and the other, so that a machine that slows down does not decide.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// The path of the VIP: `ViaHolder` or `Direct`.
    #[arg(long, default_value_t)]
    path: VipPath,
}

const BURST: u8 = 50;
/// How many batches may fail, of each kind.
const FAILURES: usize = 2;
const ROLLED_OUT: Duration = Duration::from_mins(2);
/// Between two restarts of the controller: it shall have time to work.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(15);

fn main() -> Result<()> {
    let options = Options::parse();
    let installation = Installation::prepare()?;
    targets(&installation, options.at_once.max(BURST))?;
    let lab = Laboratory { installation: &installation, path: options.path };

    let at_once = options.at_once;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for turn in 0..options.turns {
        let count = share(options.uncovered, options.turns, turn);
        // What was just installed or removed has to come to rest; the first pods do not count.
        lab.run(&format!("rest-{turn}"), at_once.into(), at_once, false)?;
        without.extend(lab.run(&format!("without-{turn}"), count, at_once, false)?);
        lab.install()?;
        lab.run(&format!("settle-{turn}"), at_once.into(), at_once, false)?;
        with.extend(lab.run(&format!("with-{turn}"), count, at_once, false)?);
        if turn + 1 < options.turns {
            installation.sh("deploy/deploy.sh -d")?;
        }
    }

    let monitor = Monitor::start(installation.cluster())?;
    let mut covered = lab.run("covered", options.pods, at_once, true)?;
    let bursts = lab.run("burst", options.bursts * usize::from(BURST), BURST, true)?;
    let holder = lab.of_vip("holder")?;
    let path = lab.of_vip("path")?;
    let (own, at_holder) = monitor.delays(&covered, &holder);
    drop(monitor);

    let (mut restarted, mut killed) = (Vec::new(), Vec::new());
    if options.restarted > 0 {
        restarted = lab.while_("kubectl rollout restart deployment/egress-mapper", || {
            lab.run("restarted", options.restarted, at_once, true)
        })?;
    }
    if options.killed > 0 {
        lab.be_strict()?;
        let kill = "kubectl delete pods -l name=egress-mapper --grace-period=0 --force";
        killed = lab.while_(kill, || lab.run("killed", options.killed, at_once, true))?;
    }

    covered.extend(bursts.iter().cloned());
    print(&covered, &bursts, &[("restarted", &restarted), ("killed, strictly", &killed)], &holder)?;
    table("path that nodes took in the end", &options.path.to_string(), &path)?;
    table("CNI result → programmed on the pod's node, p99", "10 ms", &distribution(own))?;
    table("CNI result → programmed on the holder, p99", "120 ms", &distribution(at_holder))?;
    print_uncovered(&without, &with)
}

/// How many of all are of that turn.
fn share(all: usize, turns: usize, turn: usize) -> usize {
    all * (turn + 1) / turns - all * turn / turns
}

/// One row: what, at least, measured.
fn table(what: &str, aim: &str, is: &str) -> Result<()> {
    writeln!(stdout(), "| {what} | {aim} | {is} |").map_err(Into::into)
}

fn first_packets(starts: &[&Start]) -> String {
    let good = starts.iter().filter(|start| start.first).count();
    format!("{good} of {} ({:.1} %)", starts.len(), percent(good, starts.len()))
}

fn print(
    covered: &[Start],
    bursts: &[Start],
    without_controller: &[(&str, &Vec<Start>)],
    holder: &str,
) -> Result<()> {
    let leaked = |starts: &[Start]| starts.iter().map(|start| start.leaked).sum::<u64>();
    let counted = |starts: &[Start]| format!("{} over {} starts", leaked(starts), starts.len());
    table("what", "at least", "measured")?;
    table("---", "---", "---")?;
    table("packets with another address than the VIP", "0", &counted(covered))?;
    let (here, elsewhere): (Vec<_>, Vec<_>) = covered.iter().partition(|s| s.node == holder);
    table("first packet with the VIP, on the holder's node", "99 %", &first_packets(&here))?;
    table("first packet with the VIP, elsewhere", "95 %", &first_packets(&elsewhere))?;
    let bursts_first = first_packets(&bursts.iter().collect::<Vec<_>>());
    let text = format!("{}, first packet: {bursts_first}", counted(bursts));
    table("of these, in bursts of 50", "0", &text)?;
    for (name, starts) in without_controller.iter().filter(|(_, starts)| !starts.is_empty()) {
        let first = first_packets(&starts.iter().collect::<Vec<_>>());
        let text = format!("{}, first packet: {first}", counted(starts));
        table(&format!("the same with the controller {name}"), "0 leaked", &text)?;
    }
    Ok(())
}

/// Pods without a VIP, where nothing is installed and where it is.
fn print_uncovered(without: &[Start], with: &[Start]) -> Result<()> {
    type Time = fn(&Start) -> Option<Duration>;
    let times = |starts: &[Start], time: Time| {
        let mut times: Vec<_> = starts.iter().filter_map(time).collect();
        times.sort_unstable();
        times
    };
    let kinds: [(&str, Time); 2] = [
        ("created → first packet", |start| Some(start.took)),
        ("CNI result → first packet", |start| start.ran),
    ];
    for (name, time) in kinds {
        let (without, with) = (times(without, time), times(with, time));
        let median = |times: &[Duration]| at(times, 50).map(|time| time.as_secs_f64());
        let added = median(&with).zip(median(&without)).map(|(with, without)| with / without - 1.0);
        let added =
            added.map_or_else(String::new, |added| format!("p50 {:+.1} %: ", added * 100.0));
        let text = format!("{added}{}, without: {}", distribution(with), distribution(without));
        table(&format!("pods without a VIP, {name}"), "2 %", &text)?;
    }
    let first = first_packets(&with.iter().collect::<Vec<_>>());
    table("pods without a VIP, first packet arrives", "all", &first)
}

struct Laboratory<'a> {
    installation: &'a Installation,
    path: VipPath,
}

impl Laboratory<'_> {
    /// Deploys, and waits until all is there.
    fn install(&self) -> Result<()> {
        let installation = self.installation;
        installation.sh("deploy/deploy.sh")?;
        installation.create_vip_of("first", &format!("{{ip: {VIP}, path: {}}}", self.path))?;
        let egress =
            format!("{{ip: {VIP}, kind: pod, selector: {{matchLabels: {{app: covered}}}}}}");
        installation.create_egress("default", "first", &egress)?;
        self.rolled_out("daemonset/kube-keepalived-vip")?;
        self.rolled_out("daemonset/kube-egress")
    }

    fn rolled_out(&self, what: &str) -> Result<()> {
        self.installation.cluster().wait_rollout("default", what, ROLLED_OUT).map(drop)
    }

    /// A field of the Vip's status.
    fn of_vip(&self, field: &str) -> Result<String> {
        let line = format!("kubectl get vip first -o jsonpath='{{.status.{field}}}'");
        Ok(self.installation.sh(&line)?.trim().to_owned())
    }

    /// From now on unknown pods never leave.
    fn be_strict(&self) -> Result<()> {
        self.rolled_out("deployment/egress-mapper")?;
        let mapper = self.installation.sh("kubectl get egressmapper -o name")?;
        let patch = "--type=merge -p '{\"spec\":{\"strictPods\":true}}'";
        self.installation.sh(&format!("kubectl patch {} {patch}", mapper.trim()))?;
        let args = "kubectl get daemonset/kube-egress -o jsonpath='{.spec.template.spec.containers[0].args}'";
        let told = || self.installation.sh(args).is_ok_and(|args| args.contains("strict"));
        ensure!(wait_until(ROLLED_OUT, told), "agents are not told to be strict");
        self.rolled_out("daemonset/kube-egress")
    }

    /// Does something, and meanwhile that again and again.
    fn while_<T>(&self, again: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = AtomicBool::new(false);
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // One that fails is not the last.
                    let _ = self.installation.sh(again);
                    let _ = wait_until(BETWEEN_RESTARTS, || done.load(Ordering::Relaxed));
                }
            });
            let outcome = run();
            done.store(true, Ordering::Relaxed);
            outcome
        })?;
        self.rolled_out("deployment/egress-mapper")?;
        Ok(outcome)
    }

    /// Starts that many pods, some at once, and removes them. What was measured before something
    /// fails is not lost.
    fn run(&self, name: &str, total: usize, at_once: u8, covered: bool) -> Result<Vec<Start>> {
        let mut starts = Vec::new();
        let mut failed = 0;
        for number in 0.. {
            let left = total.saturating_sub(starts.len());
            let count = u8::try_from(left.min(at_once.into()))?;
            if count == 0 {
                break;
            }
            let batch = Batch { name: &format!("{name}-{number}"), count, covered };
            match self.start(&batch) {
                Ok(started) => starts.extend(started),
                Err(error) if failed < FAILURES => {
                    failed += 1;
                    writeln!(stdout(), "\n{name}: pods that do not count: {error:#}")?;
                }
                Err(error) => return Err(error),
            }
            batch.remove(self.installation)?;
            write!(stdout(), "\r{name}: {} of {total} ", starts.len())?;
            stdout().flush()?;
        }
        writeln!(stdout())?;
        Ok(starts)
    }

    fn start(&self, batch: &Batch<'_>) -> Result<Vec<Start>> {
        let mut started = batch.start(self.installation)?;
        for start in &mut started {
            let nodes = self.installation.cluster().nodes();
            let node = nodes.iter().find(|node| node.host().name == start.node);
            start.assigned = assigned(node.context("a pod is on no node")?, &start.pod)?;
            let heard = start.heard;
            start.ran = start.assigned.and_then(|at| heard.duration_since(at).ok());
        }
        Ok(started)
    }
}

#[expect(clippy::cast_precision_loss, reason = "few")]
fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

/// The time that so many of a hundred took at most; they are in order.
fn at(times: &[Duration], share: usize) -> Option<Duration> {
    times.get((times.len() * share).div_ceil(100).max(1) - 1).copied()
}

fn distribution(mut of: Vec<Duration>) -> String {
    of.sort_unstable();
    let Some(most) = of.last() else { return "nothing measured".to_owned() };
    let millis = |duration: &Duration| duration.as_secs_f64() * 1000.0;
    let at = |share: usize| at(&of, share).as_ref().map_or(0.0, millis);
    format!(
        "p50 {:.1}, p90 {:.1}, p99 {:.1}, most {:.1} ms ({})",
        at(50),
        at(90),
        at(99),
        millis(most),
        of.len()
    )
}
