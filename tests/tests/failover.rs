//! Real keepalived under the launcher: whatever befalls the holder, its VIPs go on elsewhere, no session breaks and
//! nothing leaks. How fast that is belongs into the benchmark `failover`; here machines are crowded.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::{Family, Fault, Gateways, Launcher, MappingsDir, Outcome, vip, wait_until};

const ARGUMENTS: [&str; 2] = ["--advert-interval-ms", "100"];
const RATE: u32 = 200;
/// How soon all traffic has to flow again on a crowded machine, TCP's back-off included.
const SOON: Duration = Duration::from_secs(8);
/// When what was heard of agents counts for all VIPs, and a little more.
const COUNTS_FOR_ALL: Duration = Duration::from_secs(3);
/// How much later one agent goes or comes back than another; long enough for VIPs to move.
const APART: Duration = Duration::from_millis(700);

/// Lets it happen to the holder while pods talk, and mends it; the VIPs move where they are to, and stay.
fn survives(gateways: &mut Gateways, fault: Fault) -> Result<Vec<Outcome>> {
    let holder = gateways.holder()?;
    gateways.await_settled()?;
    let nodes: Vec<usize> = (1..=3).filter(|node| !fault.cuts_off() || *node != holder).collect();
    let watches = Family::ALL.map(|family| gateways.watch(family, &nodes, RATE));
    let watches = watches.into_iter().collect::<Result<Vec<_>>>()?;
    gateways.strike(fault, holder)?;
    let moved = || gateways.holders().is_ok_and(|now| !now.contains(&holder));
    if fault == Fault::KeepalivedFrozen || fault.cuts_off() {
        // What is left of them on a node that is cut off is in nobody's way.
        let elsewhere = || {
            Gateways::vips()
                .iter()
                .all(|vip| gateways.cluster.lab.holders(*vip).iter().any(|node| *node != holder))
        };
        assert!(wait_until(SOON, elsewhere), "{fault:?}: no other node takes over");
    } else if fault.moves() {
        assert!(wait_until(SOON, moved), "{fault:?}: the VIPs stay");
    }
    for watch in &watches {
        watch.goes_on(SOON)?;
    }
    if fault == Fault::Unplugged {
        // Linux tells of a lost carrier up to a second later. A node that was never told has never lost
        // anything, and may take its VIPs back by its priority.
        assert!(wait_until(SOON, moved), "{fault:?}: the node does not notice");
    }
    gateways.mend(fault, holder)?;
    let after = gateways.holders()?;
    if fault.moves() && fault != Fault::KeepalivedFrozen {
        assert!(!after.contains(&holder), "{fault:?}: {after:?}");
    }
    for watch in &watches {
        watch.goes_on(SOON)?;
    }
    gateways.await_neighbours(after)?;
    let mut outcomes = Vec::new();
    for watch in watches {
        let outcome = watch.finish()?;
        outcome.is_clean()?;
        println!("{fault:?} of n{holder}, then {after:?}:");
        for pod in &outcome.pods {
            println!("  {pod}");
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

#[test]
fn vips_survive_the_loss_of_a_link_and_of_a_node() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    survives(&mut gateways, Fault::Unplugged)?;
    survives(&mut gateways, Fault::PoweredOff)?;
    Ok(())
}

#[test]
fn vips_survive_keepalived() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    survives(&mut gateways, Fault::KeepalivedKilled)?;
    survives(&mut gateways, Fault::KeepalivedFrozen)?;
    Ok(())
}

#[test]
fn vips_leave_a_node_whose_agent_is_dead_or_frozen_without_loss() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    survives(&mut gateways, Fault::AgentKilled)?;
    survives(&mut gateways, Fault::AgentFrozen)?;
    Ok(())
}

#[test]
fn a_launcher_that_dies_is_not_noticed_and_one_that_stops_or_is_emptied_hands_over() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    let holder = gateways.holder()?;
    let process = gateways.launcher(holder)?.keepalived();
    for outcome in survives(&mut gateways, Fault::LauncherKilled)? {
        assert_eq!(outcome.lost(), 0);
    }
    assert_eq!(gateways.holder()?, holder);
    assert_eq!(gateways.launcher(holder)?.keepalived(), process, "it was taken over");
    survives(&mut gateways, Fault::Stopped)?;
    survives(&mut gateways, Fault::Drained)?;
    Ok(())
}

#[test]
fn when_all_are_equally_bad_one_holds_and_nothing_flaps() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    for node in 1..=3 {
        gateways.cluster.agent(node)?.kill(Signal::SIGKILL)?;
    }
    for node in 1..=3 {
        let launcher = gateways.launcher(node)?;
        assert!(wait_until(SOON, || launcher.metric("agent_ready").is_ok_and(|ready| ready < 0.5)));
    }
    let holder = gateways.holder()?;
    let watch = gateways.watch(Family::V4, &[1, 2, 3], RATE)?;
    let before = gained(&mut gateways)?;
    assert!(!wait_until(Duration::from_secs(2), || gateways.holders().ok() != Some([holder; 2])));
    assert_eq!(gained(&mut gateways)?.to_bits(), before.to_bits());
    let outcome = watch.finish()?;
    outcome.is_clean()?;
    assert_eq!(outcome.lost(), 0);
    // A better one comes, and has them.
    let better = holder % 3 + 1;
    gateways.cluster.start_agent(better)?;
    gateways.await_holder(better)?;
    // All are gone, and one comes back.
    for node in 1..=3 {
        gateways.launcher(node)?.stop()?;
    }
    assert_eq!(gateways.cluster.lab.held(), [0, 0, 0], "nothing is left behind");
    gateways.launcher(3)?.start_again()?;
    gateways.await_holder(3)
}

#[test]
fn agents_that_go_and_come_back_all_at_once_move_no_vip() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    let holder = gateways.holder()?;
    gateways.await_settled()?;
    let watch = gateways.watch(Family::V4, &[1, 2, 3], RATE)?;
    let before = gained(&mut gateways)?;
    let others = (1..=3).filter(|node| *node != holder).collect::<Vec<_>>();
    let stays = |gateways: &Gateways, time| {
        !wait_until(time, || gateways.holders().ok() != Some([holder; 2]))
    };
    // The order that is worst each time: the holder is the first that is bad, and the last that is good.
    gateways.cluster.agent(holder)?.kill(Signal::SIGKILL)?;
    assert!(stays(&gateways, APART));
    for node in &others {
        gateways.cluster.agent(*node)?.kill(Signal::SIGKILL)?;
    }
    for node in 1..=3 {
        let launcher = gateways.launcher(node)?;
        assert!(wait_until(SOON, || launcher.metric("agent_ready").is_ok_and(|ready| ready < 0.5)));
    }
    assert!(stays(&gateways, COUNTS_FOR_ALL));
    gateways.cluster.start_agents()?;
    gateways.cluster.agent(holder)?.kill(Signal::SIGSTOP)?;
    for node in &others {
        let launcher = gateways.launcher(*node)?;
        assert!(wait_until(SOON, || launcher.metric("agent_ready").is_ok_and(|ready| ready > 0.5)));
    }
    assert!(stays(&gateways, APART));
    gateways.cluster.agent(holder)?.kill(Signal::SIGCONT)?;
    gateways.await_settled()?;
    assert!(stays(&gateways, COUNTS_FOR_ALL));
    assert_eq!(gained(&mut gateways)?.to_bits(), before.to_bits());
    let outcome = watch.finish()?;
    outcome.is_clean()?;
    assert_eq!(outcome.lost(), 0);
    Ok(())
}

/// How often VIPs came to any node.
fn gained(gateways: &mut Gateways) -> Result<f64> {
    (1..=3).map(|node| gateways.launcher(node)?.metric("vips_gained_total")).sum()
}

#[test]
fn changes_disturb_no_other_vip_and_one_that_is_removed_does_not_hop() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    let other = vip(Family::V4, 100);
    let watch = gateways.watch(Family::V4, &[1, 2, 3], RATE)?;
    gateways.cluster.mappings.set("vip-candidates", "192.168.122.100", "n2,n3,n1")?;
    gateways.cluster.mappings.set_vip(other, 70)?;
    assert!(wait_until(SOON, || gateways.cluster.lab.holders(other) == [2]));
    let gained = |gateways: &mut Gateways| -> Result<Vec<f64>> {
        (1..=3).map(|node| gateways.launcher(node)?.metric("vips_gained_total")).collect()
    };
    assert!(wait_until(SOON, || gained(&mut gateways).is_ok_and(|gained| gained[1] > 0.5)));
    let before = gained(&mut gateways)?;
    gateways.cluster.mappings.remove_vip(other)?;
    assert!(wait_until(SOON, || gateways.cluster.lab.holders(other).is_empty()));
    assert_eq!(gained(&mut gateways)?, before, "nobody took it meanwhile");
    watch.goes_on(SOON)?;
    let outcome = watch.finish()?;
    outcome.is_clean()?;
    assert_eq!(outcome.lost(), 0);
    Ok(())
}

#[test]
fn a_stranger_with_a_route_id_of_ours_is_named() -> Result<()> {
    let mut gateways = Gateways::start(&ARGUMENTS)?;
    let mut foreign = MappingsDir::new()?;
    foreign.set_vip(vip(Family::V4, 250), 64)?;
    let outside = gateways.cluster.lab.outside().clone();
    let _stranger = Launcher::start(&outside, &foreign, &["--agent-url", ""])?;
    let launcher = gateways.launcher(2)?;
    let noticed = || launcher.metric("conflicts").is_ok_and(|conflicts| conflicts > 0.5);
    assert!(wait_until(SOON * 2, noticed), "{}", launcher.log());
    let said = "192.168.122.64 on this network uses route id 64 of VIP 192.168.122.222";
    assert!(launcher.log().contains(said), "{}", launcher.log());
    Ok(())
}
