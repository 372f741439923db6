//! Shows what egress-mapper does, on this machine: three nodes made of network namespaces, agents
//! on them, pods that call a host outside, and a VIP that moves from node to node.
//!
//! Everything is real but the wires: the kernel's routing and nftables, the agent as it is shipped.
//! What is printed about addresses comes from the other side: from the host outside, and from a
//! capture on its interface.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use tests::{
    Agent, Capture, Family, Host, Lab, Launcher, MappingsDir, Masquerade, MoveOrder, TcpServer,
    TcpTransfer, UdpProbe, UdpReport, UdpServer, wait_until,
};

const PORT: u16 = 9000;
const PER_SECOND: u32 = 500;

/// Pods leave with their VIP while it moves from node to node.
#[derive(Debug, Parser)]
#[command(name = "demo", max_term_width = 100)]
struct Options {
    /// How long the VIP stays on each node, in seconds.
    #[arg(long, default_value_t = 2)]
    stay: u64,
    /// Shows IPv6 instead of IPv4.
    #[arg(long)]
    ipv6: bool,
}

/// What is watched of a pod.
struct Watched<'a> {
    pod: &'a Host,
    probe: UdpProbe,
    mapped: bool,
}

fn say(line: impl AsRef<str>) -> Result<()> {
    Ok(writeln!(stdout(), "{}", line.as_ref())?)
}

fn main() -> Result<()> {
    let options = Options::parse();
    tests::sweep()?;
    let (family, vip): (_, IpAddr) = if options.ipv6 {
        (Family::V6, "fd00:122::222".parse()?)
    } else {
        (Family::V4, "192.168.122.222".parse()?)
    };
    let lab = Lab::builder().nodes(3).pods_per_node(2).masquerade(Masquerade::IptablesNft);
    let lab = lab.rp_filter(1).build()?;
    let outside = lab.outside();
    let server_at = SocketAddr::new(outside.ip(family), PORT);
    say(format!(
        "3 nodes, 2 pods on each, and a host outside at {}. Pods …-1 are mapped to VIP {vip}.\n",
        outside.ip(family)
    ))?;

    let mut mappings = MappingsDir::of(&lab)?;
    mappings.set_vip(vip, 64)?;
    for node in 1..=3 {
        mappings.map(lab.pod(node, 1).ip(family), vip)?;
    }
    let _udp = UdpServer::start(outside, PORT)?;
    let _tcp = TcpServer::start(outside, PORT)?;

    let mut watched = Vec::new();
    for node in 1..=3 {
        for (number, mapped) in [(1, true), (2, false)] {
            let pod = lab.pod(node, number);
            watched.push(Watched {
                pod,
                probe: UdpProbe::start(pod, server_at, PER_SECOND)?,
                mapped,
            });
        }
    }
    settle(&watched, |_, seen| seen.is_some())?;
    say("Before any agent runs, the host outside sees the nodes' addresses:")?;
    row(&watched, "no agent")?;

    lab.hold_vip(1, vip)?;
    let started = Instant::now();
    let mut agents = Vec::new();
    for node in lab.nodes() {
        agents.push(Agent::start(node, mappings.path(), &[])?);
    }
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    settle(&watched, |pod, seen| !pod.mapped || seen == Some(vip))?;
    let after = started.elapsed().as_millis();
    say(format!("\nAgents start; after {after} ms the mapped pods are seen with the VIP:"))?;
    row(&watched, "VIP on n1")?;

    let uploads: Vec<_> = (1..=3)
        .map(|node| TcpTransfer::upload(lab.pod(node, 1), server_at, Some(1 << 20)))
        .collect::<Result<_>>()?;
    let before: Vec<UdpReport> = watched.iter().map(|pod| pod.probe.report()).collect();
    let capture = Capture::start(&lab)?;
    say(
        "\nThe VIP moves, as keepalived would move it, while every pod sends 500 packets a second and every mapped pod uploads over TCP:",
    )?;
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        std::thread::sleep(Duration::from_secs(options.stay));
        lab.move_vip(from, to, vip, MoveOrder::BreakBeforeMake)?;
        settle(&watched, |_, _| true)?;
        row(&watched, &format!("VIP on n{to}"))?;
    }
    std::thread::sleep(Duration::from_secs(options.stay));

    let broken = uploads.into_iter().map(TcpTransfer::stop).collect::<Result<Vec<_>>>()?;
    let broken: Vec<_> = broken.into_iter().filter_map(|report| report.error).collect();
    say("\n                 packets   lost   longest outage")?;
    for (pod, before) in watched.iter().zip(&before) {
        let now = pod.probe.report();
        let mapped = if pod.mapped { "mapped  " } else { "unmapped" };
        say(format!(
            "  {}  {mapped} {:>7} {:>6} {:>9} ms",
            pod.pod.name,
            now.sent - before.sent,
            now.lost.saturating_sub(before.lost),
            now.longest_outage.as_millis()
        ))?;
    }
    say(format!("  TCP uploads broken: {} of 3", broken.len()))?;

    let seen = capture.sources_towards(outside.ip(family))?;
    let nodes: Vec<IpAddr> = lab.nodes().iter().map(|node| node.ip(family)).collect();
    say("\nSource addresses that reached the host outside during the moves, by capture:")?;
    for (source, packets) in &seen {
        let whose = match nodes.iter().position(|node| node == source) {
            _ if *source == vip => "the VIP".to_owned(),
            Some(node) => format!("n{}, for its unmapped pod", node + 1),
            None => "SOMETHING ELSE".to_owned(),
        };
        say(format!("  {packets:>7} packets from {source} ({whose})"))?;
    }
    check(&seen, vip, &nodes)?;
    ensure!(broken.is_empty(), "TCP uploads broke: {broken:?}");

    failover(&lab, &mut mappings, vip, &watched, options.stay)?;

    say(format!(
        "\nWhat `agent --dump-rules` says on n1:\n\n{}",
        Agent::run(lab.node(1), &["--dump-rules"])?
    ))?;
    say("Every packet of a mapped pod had the VIP. Everything made here is removed again.")
}

/// keepalived takes the VIP over, and node 1, which holds it, is unplugged.
fn failover(
    lab: &Lab,
    mappings: &mut MappingsDir,
    vip: IpAddr,
    watched: &[Watched],
    stay: u64,
) -> Result<()> {
    say(
        "\nkeepalived takes over, with an advert each 100 ms, and n1, which holds the VIP, is unplugged:",
    )?;
    mappings.set("vip-candidates", &vip.to_string().replace(':', "-"), "n1,n2,n3")?;
    let launchers = lab
        .nodes()
        .iter()
        .map(|node| Launcher::start(node, mappings, &["--advert-interval-ms", "100"]))
        .collect::<Result<Vec<_>>>()?;
    let settled = || lab.holders(vip) == [1] && launchers.iter().any(Launcher::holds_for_good);
    ensure!(wait_until(Duration::from_secs(20), settled), "keepalived does not hold the VIP on n1");
    settle(watched, |_, _| true)?;
    let before: Vec<UdpReport> = watched.iter().map(|pod| pod.probe.report()).collect();
    lab.unplug(1)?;
    let elsewhere = || lab.holders(vip).iter().any(|node| *node != 1);
    ensure!(wait_until(Duration::from_secs(10), elsewhere), "no other node takes the VIP over");
    std::thread::sleep(Duration::from_secs(stay));
    for (pod, before) in watched.iter().zip(&before) {
        if pod.mapped && !pod.pod.name.starts_with("p1-") {
            let lost = pod.probe.report().lost.saturating_sub(before.lost);
            let outage = lost * 1000 / u64::from(PER_SECOND);
            say(format!("  {} was without answers for {outage} ms", pod.pod.name))?;
        }
    }
    let holders: Vec<String> = lab.holders(vip).iter().map(|node| format!("n{node}")).collect();
    say(format!(
        "  the VIP is on {} now; n1 is plugged in again, and does not take it back",
        holders.join(", ")
    ))?;
    lab.plug_in(1)?;
    settle(watched, |_, _| true)?;
    ensure!(lab.holders(vip) != [1], "n1 has taken the VIP back");
    Ok(())
}

fn check(seen: &BTreeMap<IpAddr, u64>, vip: IpAddr, nodes: &[IpAddr]) -> Result<()> {
    ensure!(
        seen.get(&vip).is_some_and(|packets| *packets > 1000),
        "the VIP was hardly seen: {seen:?}"
    );
    let strange: Vec<_> = seen.keys().filter(|&ip| *ip != vip && !nodes.contains(ip)).collect();
    ensure!(strange.is_empty(), "packets with another source than expected: {strange:?}");
    Ok(())
}

/// Waits until what the host outside answers to the packets of this moment fits.
fn settle(watched: &[Watched], fits: impl Fn(&Watched, Option<IpAddr>) -> bool) -> Result<()> {
    let answers: Vec<u64> = watched.iter().map(|pod| pod.probe.received()).collect();
    let done = wait_until(Duration::from_secs(5), || {
        watched.iter().zip(&answers).all(|(pod, before)| {
            pod.probe.received() > before + 20 && fits(pod, pod.probe.seen_as())
        })
    });
    ensure!(done, "pods are not seen as they should be");
    Ok(())
}

/// One line: as whom the host outside sees each pod.
fn row(watched: &[Watched], title: &str) -> Result<()> {
    let seen: Vec<String> = watched
        .iter()
        .map(|pod| {
            let seen = pod.probe.seen_as().map_or_else(|| "-".to_owned(), |ip| ip.to_string());
            format!("{} {seen}", pod.pod.name)
        })
        .collect();
    say(format!("  {title:<10} {}", seen.join("  ")))
}
