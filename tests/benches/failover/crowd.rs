//! As many VIPs as there can be: how they spread, what they cost, and whether they stay where they are.

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Family, Lab, Launcher, MappingsDir, vip, wait_until};

use crate::table::{Verdicts, heading, line};

const SOON: Duration = Duration::from_mins(1);
const HOGS: usize = 16;
const CROWDED: Duration = Duration::from_mins(1);
const IDLE: Duration = Duration::from_secs(10);

/// Beside the nodes' own addresses a subnet of 256 has no room for so many: the last 102 are IPv6.
fn numbers() -> impl Iterator<Item = (IpAddr, u8)> {
    let address = |id: u8| if id <= 150 { vip(Family::V4, id + 100) } else { vip(Family::V6, id) };
    (1..=252).map(move |id| (address(id), id))
}

pub(crate) fn measure(advert_interval_ms: u64, verdicts: &mut Verdicts) -> Result<()> {
    heading("252 VIPs on three nodes");
    let lab = Lab::builder().nodes(3).pods_per_node(0).build()?;
    let mut mappings = MappingsDir::of(&lab)?;
    for (number, (vip, id)) in numbers().enumerate().take(251) {
        add(&mut mappings, number, vip, id)?;
    }
    let interval = advert_interval_ms.to_string();
    let arguments = ["--advert-interval-ms", &interval, "--agent-url", ""];
    let launchers = (1..=3)
        .map(|node| Launcher::start(lab.node(node), &mappings, &arguments))
        .collect::<Result<Vec<_>>>()?;
    let spread = || lab.held().iter().sum::<usize>() == 251;
    ensure!(wait_until(SOON, || spread() && launchers.iter().all(Launcher::holds_for_good)));
    let held = lab.held();
    line(&format!("spread of 251: {held:?}"));

    // One more.
    let (number, (new, id)) = numbers().enumerate().last().context("a last one")?;
    let gained = |launchers: &[Launcher]| -> Result<f64> {
        launchers.iter().map(|launcher| launcher.metric("vips_gained_total")).sum()
    };
    let before = gained(&launchers)?;
    let added = Instant::now();
    add(&mut mappings, number, new, id)?;
    ensure!(wait_until(SOON, || !lab.holders(new).is_empty()), "the new VIP is nowhere");
    let took = added.elapsed();
    ensure!(wait_until(SOON, || gained(&launchers).is_ok_and(|now| now > before)));
    line(&format!("one more is there after {} ms", took.as_millis()));
    let others = gained(&launchers)? - before - 1.0;
    let start = Duration::from_millis(advert_interval_ms * 4).as_secs_f64() * 1e3;
    verdicts.at_most(
        "252 VIPs: one added, there after",
        took.as_secs_f64() * 1e3,
        1000.0 + start,
        " ms",
    );
    verdicts.at_most("252 VIPs: moves of others meanwhile", others, 0.0, "");
    let held = lab.held();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let far = held.iter().map(|count| count.abs_diff(84)).max().unwrap_or_default() as f64;
    verdicts.at_most("252 VIPs: distance from 84 on each", far, 1.0, "");

    // Idle.
    let ticks = || launchers.iter().map(cpu).collect::<Result<Vec<_>>>();
    let (begin, used) = (Instant::now(), ticks()?);
    thread::sleep(IDLE);
    let seconds = begin.elapsed().as_secs_f64();
    let shares: Vec<[f64; 2]> = ticks()?
        .iter()
        .zip(&used)
        .map(|(now, then)| {
            [(now[0] - then[0]) / seconds * 100.0, (now[1] - then[1]) / seconds * 100.0]
        })
        .collect();
    for (node, [launcher, keepalived]) in (1..).zip(&shares) {
        line(&format!("n{node}: launcher {launcher:.1} % of a core, keepalived {keepalived:.1} %"));
    }
    let most =
        shares.iter().map(|[launcher, keepalived]| launcher + keepalived).fold(0.0, f64::max);
    let target = if advert_interval_ms <= 100 { 14.5 } else { 7.9 };
    verdicts.at_most("252 VIPs: CPU of launcher and keepalived", most, target, " %");

    // All processors are busy.
    let before = gained(&launchers)?;
    let hogs = (0..HOGS).map(|_| hog()).collect::<Result<Vec<_>>>()?;
    thread::sleep(CROWDED);
    drop(hogs);
    let moved = gained(&launchers)? - before;
    line(&format!("VIPs that moved in {} s with {HOGS} busy loops: {moved}", CROWDED.as_secs()));
    verdicts.at_most("252 VIPs: false failovers under load", moved, 0.0, "");
    Ok(())
}

fn add(mappings: &mut MappingsDir, number: usize, vip: IpAddr, id: u8) -> Result<()> {
    let key = vip.to_string().replace(':', "-");
    let nodes: Vec<String> = (0..3).map(|rank| format!("n{}", (number + rank) % 3 + 1)).collect();
    mappings.set("vip-candidates", &key, &nodes.join(","))?;
    mappings.set_vip(vip, id)
}

/// Seconds that the launcher and keepalived have used.
fn cpu(launcher: &Launcher) -> Result<[f64; 2]> {
    let of = |pid: i32| -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
        let nanoseconds: f64 = text.split(' ').next().context("no time")?.parse()?;
        Ok(nanoseconds / 1e9)
    };
    let threads = |pid: i32| -> Result<f64> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).map(of).sum()
    };
    let keepalived = launcher.keepalived().context("keepalived does not run")?;
    let parts = keepalived.iter().map(|pid| threads(pid.as_raw())).sum::<Result<f64>>()?;
    Ok([threads(launcher.pid().context("the launcher does not run")?)?, parts])
}

/// Ends when dropped.
struct Hog(Child);

fn hog() -> Result<Hog> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
    Ok(Hog(command.spawn()?))
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
