//! The VIP moves from node to node while pods of all nodes are talking.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::{
    Capture, Cluster, Family, Host, Lab, MoveOrder, NewFlows, Traffic, UdpProbe, eventually, vip,
};

const PORT: u16 = 7000;
const RATE: u32 = 500;
/// How soon all traffic has to flow again on a crowded machine, TCP's back-off included.
const SOON: Duration = Duration::from_secs(5);

/// The first pod of every node is mapped in both families; nobody holds a VIP, no agent runs.
fn mapped() -> Result<Cluster> {
    let mut cluster = Cluster::new(Lab::builder().pods_per_node(1).build()?, PORT)?;
    let Cluster { lab, mappings, .. } = &mut cluster;
    for (family, route_id) in [(Family::V4, 64), (Family::V6, 65)] {
        mappings.set_vip(vip(family, 222), route_id)?;
        for node in 1..=3 {
            mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
        }
    }
    Ok(cluster)
}

/// As [`mapped`], with agents, and node 1 holds both VIPs.
fn held_by_node_1() -> Result<Cluster> {
    let mut cluster = mapped()?;
    cluster.start_agents()?;
    Family::ALL.iter().try_for_each(|family| cluster.lab.hold_vip(1, vip(*family, 222)))?;
    Ok(cluster)
}

fn pods(lab: &Lab) -> [&Host; 3] {
    [lab.pod(1, 1), lab.pod(2, 1), lab.pod(3, 1)]
}

fn family_name(vip: IpAddr) -> &'static str {
    if vip.is_ipv4() { "v4" } else { "v6" }
}

/// Reports of traffic to `outside`, which saw nothing but the VIP.
fn judge(
    what: &str,
    traffic: Traffic,
    capture: &Capture,
    vip: IpAddr,
    outside: IpAddr,
) -> Result<()> {
    let sent = traffic.udp_sent();
    for report in traffic.stop()? {
        println!("{what}, {}: {report}", family_name(vip));
        let sources: Vec<_> = report.udp.sources.keys().copied().collect();
        assert_eq!(sources, [vip], "{}", report.pod);
    }
    capture.assert_only_source(vip, outside, sent / 4);
    Ok(())
}

/// Moves the VIP six times, from each node to each other, with traffic of all pods.
fn no_session_breaks_and_nothing_leaks(order: MoveOrder) -> Result<()> {
    let cluster = held_by_node_1()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let (vip, outside) = (vip(family, 222), lab.outside().ip(family));
        let server = SocketAddr::new(outside, PORT);
        let resets = lab.outside().tcp_counters()?;
        let traffic = Traffic::start(&pods(lab), server, RATE)?;
        let flows: Vec<_> =
            pods(lab).iter().map(|pod| NewFlows::start(pod, server, 100)).collect::<Result<_>>()?;
        for (from, to) in [(1, 2), (2, 3), (3, 1), (1, 3), (3, 2), (2, 1)] {
            lab.move_vip(from, to, vip, order)?;
            let again = traffic.flows_within(SOON)?;
            println!(
                "{order:?} {from} to {to}: all traffic goes on after {} ms",
                again.as_millis()
            );
        }
        drop(flows);
        assert_eq!(lab.outside().tcp_counters()?.resets_sent, resets.resets_sent);
        judge(&format!("{order:?}, six moves"), traffic, &capture, vip, outside)?;
    }
    Ok(())
}

#[test]
fn no_session_breaks_when_the_new_holder_takes_the_vip_before_the_old_one_lets_go() -> Result<()> {
    no_session_breaks_and_nothing_leaks(MoveOrder::MakeBeforeBreak)
}

#[test]
fn no_session_breaks_when_the_old_holder_lets_go_before_the_new_one_takes_the_vip() -> Result<()> {
    no_session_breaks_and_nothing_leaks(MoveOrder::BreakBeforeMake)
}

#[test]
fn nothing_leaks_while_nobody_holds_the_vip_and_traffic_returns_by_itself() -> Result<()> {
    let cluster = held_by_node_1()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let (vip, outside) = (vip(family, 222), lab.outside().ip(family));
        let server = SocketAddr::new(outside, PORT);
        let traffic = Traffic::start(&pods(lab), server, RATE)?;
        lab.drop_vip(1, vip)?;
        // What was on its way when the address went is not yet silence.
        let seen = || capture.sources_towards(outside).unwrap_or_default();
        eventually(SOON, || {
            let before = seen();
            thread::sleep(Duration::from_millis(50));
            seen() == before
        });
        capture.clear();
        let flows: Vec<_> =
            pods(lab).iter().map(|pod| NewFlows::start(pod, server, 100)).collect::<Result<_>>()?;
        let sent = traffic.udp_sent();
        // A whole second: 1500 packets of old connections, 300 of new ones.
        eventually(SOON, || {
            traffic.udp_sent() >= sent + 1500 && flows.iter().all(|flow| flow.sent() > 20)
        });
        capture.assert_silent(outside);
        lab.hold_vip(2, vip)?;
        let again = traffic.flows_within(Duration::from_secs(10))?;
        println!(
            "after a second without holder all traffic goes on after {} ms",
            again.as_millis()
        );
        drop(flows);
        judge("a second without holder", traffic, &capture, vip, outside)?;
    }
    Ok(())
}

#[test]
fn nothing_leaks_when_the_vip_leaves_a_node_without_agent_and_comes_back() -> Result<()> {
    let mut cluster = held_by_node_1()?;
    cluster.agent(1)?.kill(Signal::SIGKILL)?;
    cluster.agent(1)?.wait()?;
    for family in Family::ALL {
        let lab = &cluster.lab;
        let capture = Capture::start(lab)?;
        let (vip, outside) = (vip(family, 222), lab.outside().ip(family));
        let server = SocketAddr::new(outside, PORT);
        let own = Traffic::start(&[lab.pod(1, 1)], server, RATE)?;
        let others = Traffic::start(&[lab.pod(2, 1), lab.pod(3, 1)], server, RATE)?;
        // The pod of the node without agent is silent or works; the others go on.
        let flows = NewFlows::start(lab.pod(1, 1), server, 200)?;
        for (from, to) in [(1, 2), (2, 3)] {
            lab.move_vip(from, to, vip, MoveOrder::MakeBeforeBreak)?;
            let sent = own.udp_sent();
            others.flows_within(SOON)?;
            eventually(SOON, || own.udp_sent() >= sent + 200);
        }
        judge("no agent on node 1, others", others, &capture, vip, outside)?;
        // It comes back to the node whose agent is dead. Sessions of other nodes' pods that were
        // translated there before may find what connection tracking remembers of them too old,
        // for nobody was there to flush it; everything else works.
        let steady = UdpProbe::start(lab.pod(3, 1), server, RATE)?;
        eventually(SOON, || steady.received() > 20);
        lab.move_vip(3, 1, vip, MoveOrder::BreakBeforeMake)?;
        let received = steady.received();
        eventually(SOON, || steady.received() > received + 20);
        println!("to a holder without agent: {:?}", steady.stop()?.longest_outage);
        let others = Traffic::start(&[lab.pod(2, 1), lab.pod(3, 1)], server, RATE)?;
        own.flows_within(Duration::from_secs(15))?;
        drop(flows);
        judge("no agent on node 1, its pod", own, &capture, vip, outside)?;
        judge("back without agent, others", others, &capture, vip, outside)?;
    }
    // A new agent finds it as it is, and the next move is like any other.
    cluster.start_agent(1)?;
    for family in Family::ALL {
        let lab = &cluster.lab;
        let capture = Capture::start(lab)?;
        let (vip, outside) = (vip(family, 222), lab.outside().ip(family));
        let traffic = Traffic::start(&pods(lab), SocketAddr::new(outside, PORT), RATE)?;
        lab.move_vip(1, 2, vip, MoveOrder::MakeBeforeBreak)?;
        traffic.flows_within(SOON)?;
        judge("with a new agent", traffic, &capture, vip, outside)?;
    }
    Ok(())
}

#[test]
fn an_agent_that_starts_while_the_vip_is_here_adds_the_way_when_it_leaves() -> Result<()> {
    let mut cluster = mapped()?;
    for family in Family::ALL {
        cluster.lab.hold_vip(1, vip(family, 222))?;
    }
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let (vip, outside) = (vip(family, 222), lab.outside().ip(family));
        let probe = UdpProbe::start(lab.pod(1, 1), SocketAddr::new(outside, PORT), RATE)?;
        eventually(SOON, || probe.received() >= 20);
        let moved = Instant::now();
        lab.move_vip(1, 2, vip, MoveOrder::BreakBeforeMake)?;
        let received = probe.received();
        eventually(SOON, || probe.received() >= received + 20);
        let report = probe.stop()?;
        println!(
            "{}: the way was added on the address event: outage {} ms, {} lost, {} ms in all",
            family_name(vip),
            report.longest_outage.as_millis(),
            report.lost,
            moved.elapsed().as_millis()
        );
        assert!(report.longest_outage < Duration::from_secs(1), "{report:?}");
        assert_eq!(report.sources.into_keys().collect::<Vec<_>>(), [vip]);
        capture.assert_only_source(vip, outside, 40);
    }
    Ok(())
}
