//! What the agent takes: time for a first synchronisation, for one change, for a look that finds
//! nothing; memory; processor time at rest. One node, no traffic.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::{Agent, Host, Lab, MappingsDir, wait_until};

use crate::kernel_news::KernelNews;
use crate::mapped::{self, VIP, other_pod, other_vip};
use crate::table::{self, Spread, Verdicts, milliseconds, quantile, sorted};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// The parts of a synchronisation that the agent's metrics know.
const PARTS: [&str; 5] = ["observe", "routing", "tables", "pods", "connections"];
/// After a change the agent looks for faults in the mappings when they have rested for this long.
const REPORT_AFTER: Duration = Duration::from_millis(200);

/// The name of the agent's thread that reads the directory.
const READER: &str = "mappings-dir";
/// `--update-interval 1`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much is measured.
struct Extent {
    pods: &'static [u32],
    first_syncs: usize,
    changes: usize,
    looks: u32,
    idle: Duration,
}

const NORMAL: Extent = Extent {
    pods: &[10_000, 100_000],
    first_syncs: 3,
    changes: 200,
    looks: 5,
    idle: Duration::from_secs(20),
};
const QUICK: Extent = Extent {
    pods: &[1000, 10_000],
    first_syncs: 2,
    changes: 50,
    looks: 3,
    idle: Duration::from_secs(5),
};

/// Measures and prints.
pub(crate) fn measure(quick: bool, verdicts: &mut Verdicts) -> Result<()> {
    let extent = if quick { QUICK } else { NORMAL };
    let lab = Lab::builder().nodes(1).pods_per_node(0).build()?;
    let node = lab.node(1);
    for &pods in extent.pods {
        let mut mappings = mapped::mappings(&lab, pods, 1, &[])?;
        table::heading(&format!("The agent with {pods} mapped pods"));
        let mut rows = Vec::new();
        start(node, &mappings, pods, &extent, &mut rows, verdicts)?;
        looks(node, &mappings, &extent, &mut rows)?;
        let mut agent = ready(node, &mappings, &[])?.0;
        changes(&agent, &mut mappings, pods, &extent, &mut rows, verdicts)?;
        if extent.pods.last() == Some(&pods) {
            idle(&agent, &extent, &mut rows)?;
        }
        agent.stop()?;
        Agent::run(node, &["--cleanup"])?;
        table::rows(&["", "median (min–max)"], &rows);
    }
    Ok(())
}

fn row(what: &str, figure: String) -> Vec<String> {
    vec![what.to_owned(), figure]
}

/// Starts an agent and says how long it took until it was ready: all is in the kernel then.
fn ready(node: &Host, mappings: &MappingsDir, arguments: &[&str]) -> Result<(Agent, Duration)> {
    let start = Instant::now();
    let agent = Agent::start_logging("info", node, mappings.path(), arguments)?;
    let ready = || agent.http("/readyz").is_ok_and(|(status, _)| status == 200);
    ensure!(wait_until(READY_WITHIN, ready), "the agent is not ready:\n{}", agent.log());
    Ok((agent, start.elapsed()))
}

fn start(
    node: &Host,
    mappings: &MappingsDir,
    pods: u32,
    extent: &Extent,
    rows: &mut Vec<Vec<String>>,
    verdicts: &mut Verdicts,
) -> Result<()> {
    let (mut first, mut again, mut parts) = (Vec::new(), Vec::new(), vec![Vec::new(); PARTS.len()]);
    let (mut peak, mut rest) = (Vec::new(), Vec::new());
    let (mut processor, mut reading) = (Vec::new(), Vec::new());
    for _ in 0..extent.first_syncs {
        Agent::run(node, &["--cleanup"])?;
        let (mut agent, time) = ready(node, mappings, &[])?;
        first.push(time.as_secs_f64());
        processor.push(processor_time(&agent)?.as_secs_f64());
        reading.push(processor_time_of(&agent, |name| name == READER)?.as_secs_f64());
        for (part, figures) in PARTS.iter().zip(&mut parts) {
            figures.push(part_duration(&agent, part)?.0);
        }
        ensure!(elements(node)? == pods, "not every pod is in the kernel:\n{}", agent.log());
        thread::sleep(REPORT_AFTER * 3);
        peak.push(memory(&agent, "VmHWM:")?);
        rest.push(memory(&agent, "VmRSS:")?);
        agent.stop()?;
        let (mut agent, time) = ready(node, mappings, &[])?;
        again.push(time.as_secs_f64());
        agent.stop()?;
    }
    let inside: Vec<f64> =
        (0..first.len()).map(|run| parts.iter().map(|part| part[run]).sum()).collect();
    let outside = first.iter().zip(&inside).map(|(all, inside)| all - inside);
    rows.push(row("first sync, from start to ready", milliseconds(Spread::of(first.clone()))));
    rows.push(row("  of it start, reading, store, plan", milliseconds(Spread::of(outside))));
    for (part, figures) in PARTS.iter().zip(&parts) {
        let what = format!("  of it {part} (metric)");
        rows.push(row(&what, milliseconds(Spread::of(figures.iter().copied()))));
    }
    rows.push(row("  processor time up to then", milliseconds(Spread::of(processor))));
    rows.push(row("  of it the thread that reads", milliseconds(Spread::of(reading))));
    rows.push(row("start when all is there, to ready", milliseconds(Spread::of(again))));
    let (peak, rest) = (Spread::of(peak), Spread::of(rest));
    rows.push(row("memory after that (VmRSS)", megabytes(rest)));
    rows.push(row("memory at most (VmHWM)", megabytes(peak)));
    match pods {
        100_000 => {
            let first = Spread::of(first).median;
            verdicts.at_most("first sync of 100 000 pods", first, 1.0, " s");
            verdicts.at_most("memory at most, 100 000 pods", peak.median, 150.0, " MB");
        }
        10_000 => verdicts.at_most("memory at most, 10 000 pods", peak.median, 32.0, " MB"),
        _ => {}
    }
    Ok(())
}

fn megabytes(spread: Spread) -> String {
    format!("{:.1} MB ({:.1}–{:.1})", spread.median, spread.least, spread.greatest)
}

/// How many pods the kernel's map holds.
fn elements(node: &Host) -> Result<u32> {
    let listed = node.sh("nft list map inet egress pod_vip4")?;
    Ok(u32::try_from(listed.matches(" : 192.").count())?)
}

/// Regular looks, a second apart, that find nothing to do.
fn looks(
    node: &Host,
    mappings: &MappingsDir,
    extent: &Extent,
    rows: &mut Vec<Vec<String>>,
) -> Result<()> {
    let (mut agent, _) = ready(node, mappings, &["--update-interval", "1"])?;
    thread::sleep(REPORT_AFTER * 3);
    for (foreign, what) in [(false, "a look"), (true, "a look after a foreign nft transaction")] {
        let (sum, count) = part_duration(&agent, "observe")?;
        let worked = processor_time(&agent)?;
        for number in 0..extent.looks {
            if foreign {
                foreign_change(node, number)?;
            }
            // Not asking the agent meanwhile: that would be its work too.
            thread::sleep(LOOK_EVERY);
        }
        let (sum_after, count_after) = part_duration(&agent, "observe")?;
        let looks = count_after - count;
        ensure!(looks > 0.0, "the agent does not look any more:\n{}", agent.log());
        let per_look = |seconds: f64| format!("{:.2} ms", seconds / looks * 1e3);
        rows.push(row(&format!("{what}: observe (metric, mean)"), per_look(sum_after - sum)));
        let worked = processor_time(&agent)?.saturating_sub(worked).as_secs_f64();
        rows.push(row("  processor time of the whole, mean", per_look(worked)));
    }
    agent.stop()
}

fn foreign_change(node: &Host, number: u32) -> Result<()> {
    let verb = if number.is_multiple_of(2) { "add" } else { "delete" };
    node.sh(&format!("nft {verb} table inet stranger")).map(drop)
}

/// From before a file is written until the kernel announces the element.
fn changes(
    agent: &Agent,
    mappings: &mut MappingsDir,
    pods: u32,
    extent: &Extent,
    rows: &mut Vec<Vec<String>>,
    verdicts: &mut Verdicts,
) -> Result<()> {
    let mut news = KernelNews::subscribe(agent.node())?;
    let mut all = Vec::new();
    for (pause, part, what) in [
        (Duration::from_millis(10), 1, "one change, others 10 ms before"),
        // When the agent is busy with its report; a little earlier and later each time.
        (REPORT_AFTER, 4, "one change, others 0.2 s before"),
    ] {
        let (mut times, mut worked) = (Vec::new(), Duration::ZERO);
        for number in (0..u32::try_from(extent.changes / part)?).map(|n| n + 1) {
            let early = Duration::from_millis(u64::from(number % 8));
            thread::sleep(pause.saturating_sub(early) + Duration::from_millis(2));
            let before = processor_time(agent)?;
            let (pod, vip) = changed(pods, number, part)?;
            let start = Instant::now();
            mappings.map(pod.into(), vip.into())?;
            let seen = news.wait_mapped(pod, vip)?;
            times.push((seen - start).as_secs_f64());
            worked += processor_time(agent)?.saturating_sub(before);
        }
        let sorted = sorted(times.iter().copied());
        let [half, most, worst] =
            [0.5, 0.99, 1.0].map(|part| format!("{:.2} ms", quantile(&sorted, part) * 1e3));
        rows.push(row(what, format!("p50 {half}, p99 {most}, worst {worst}")));
        let per_change = worked / u32::try_from(sorted.len().max(1))?;
        rows.push(row(
            "  processor time until then, mean",
            format!("{:.2} ms", per_change.as_secs_f64() * 1e3),
        ));
        all.extend(times);
    }
    if pods == 100_000 {
        let most = quantile(&sorted(all), 0.99) * 1e3;
        verdicts.at_most("one change of 100 000, p99", most, 20.0, " ms");
    }
    Ok(())
}

/// A pod that was not changed lately, and the VIP it does not have yet.
fn changed(pods: u32, number: u32, part: usize) -> Result<(Ipv4Addr, Ipv4Addr)> {
    let place = number * 2 % pods + u32::from(part > 1);
    // Even ones have the VIP at first, odd ones the other.
    let vip = if place.is_multiple_of(2) { other_vip(1) } else { VIP.into() };
    match (other_pod(place), vip) {
        (IpAddr::V4(pod), IpAddr::V4(vip)) => Ok((pod, vip)),
        _ => bail!("pods and VIPs of the measurement are IPv4"),
    }
}

fn idle(agent: &Agent, extent: &Extent, rows: &mut Vec<Vec<String>>) -> Result<()> {
    thread::sleep(REPORT_AFTER * 3);
    for (foreign, what) in [(false, "at rest"), (true, "a foreign nft transaction every second")] {
        let (start, before) = (Instant::now(), processor_time(agent)?);
        let mut number = 0;
        while start.elapsed() < extent.idle {
            thread::sleep(Duration::from_secs(1).min(extent.idle.saturating_sub(start.elapsed())));
            if foreign {
                foreign_change(agent.node(), number)?;
                number += 1;
            }
        }
        let worked = processor_time(agent)?.saturating_sub(before).as_secs_f64();
        let part = worked / start.elapsed().as_secs_f64() * 100.0;
        rows.push(row(
            &format!("{what}, {} s: processor time", extent.idle.as_secs()),
            format!("{:.1} ms, {part:.2} % of one", worked * 1e3),
        ));
    }
    rows.push(row("memory in the end (VmRSS)", format!("{:.1} MB", memory(agent, "VmRSS:")?)));
    Ok(())
}

/// Sum in seconds, and number, of what the metrics say about a part of synchronisations.
fn part_duration(agent: &Agent, part: &str) -> Result<(f64, f64)> {
    let mut answer = agent.http("/metrics");
    // On a machine that is busy with something else an answer may take longer than it should.
    let answered = wait_until(READY_WITHIN, || {
        if answer.is_err() {
            answer = agent.http("/metrics");
        }
        answer.is_ok()
    });
    ensure!(answered, "the agent does not answer:\n{}", agent.log());
    let (_, text) = answer?;
    let value = |suffix: &str| {
        let name = format!("egress_agent_sync_part_duration_seconds_{suffix}{{part=\"{part}\"}} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&name)?.parse().ok())
            .with_context(|| format!("no metric {name}in:\n{text}"))
    };
    Ok((value("sum")?, value("count")?))
}

/// What all threads of the agent have had of processors, without the programs it starts.
fn processor_time(agent: &Agent) -> Result<Duration> {
    processor_time_of(agent, |_| true)
}

fn processor_time_of(agent: &Agent, wanted: impl Fn(&str) -> bool) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let task = task?.path();
        // A thread that ends meanwhile takes its time with it.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        let Ok(text) = fs::read_to_string(task.join("schedstat")) else { continue };
        if !wanted(name.trim_end()) {
            continue;
        }
        let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
        all += Duration::from_nanos(nanoseconds.context("no time in schedstat")?);
    }
    Ok(all)
}

/// A line of the agent's memory in `/proc/PID/status`, in MB of a million bytes.
fn memory(agent: &Agent, line: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let kilobytes: f64 = text
        .lines()
        .find_map(|text| text.strip_prefix(line)?.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("no {line} in the status of the agent"))?;
    Ok(kilobytes * 1024.0 / 1e6)
}
