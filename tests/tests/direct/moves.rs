//! The VIP moves from node to node while pods of all nodes are talking, and nobody notices.

use std::net::IpAddr;

use anyhow::Result;
use tests::{Capture, Cluster, Family, Host, Lab, MoveOrder, NewFlows, Traffic, eventually, vip};

use crate::scene::{SOON, direct, no_port_of_others, server};

const RATE: u32 = 500;

fn pods(lab: &Lab) -> [&Host; 3] {
    [lab.pod(1, 1), lab.pod(2, 1), lab.pod(3, 1)]
}

/// While something happens to the VIP: no packet is lost, no session breaks, and all that is seen
/// outside comes from the VIP, with ports of whoever sends it.
fn nothing_is_lost(
    cluster: &Cluster,
    family: Family,
    happens: impl FnOnce(&Lab, IpAddr, &Traffic) -> Result<()>,
) -> Result<()> {
    let (lab, vip) = (&cluster.lab, vip(family, 222));
    let capture = Capture::start(lab)?;
    let outside = lab.outside().ip(family);
    let resets = lab.outside().tcp_counters()?;
    let traffic = Traffic::start(&pods(lab), server(lab.outside(), family), RATE)?;
    let flows: Vec<_> = pods(lab)
        .iter()
        .map(|pod| NewFlows::start(pod, server(lab.outside(), family), 100))
        .collect::<Result<_>>()?;
    traffic.flows_within(SOON)?;
    happens(lab, vip, &traffic)?;
    traffic.flows_within(SOON)?;
    drop(flows);
    assert_eq!(lab.outside().tcp_counters()?.resets_sent, resets.resets_sent);
    let sent = traffic.udp_sent();
    for report in traffic.stop()? {
        assert_eq!((report.udp.lost, report.udp.refused), (0, 0), "{family:?} {report}");
    }
    capture.assert_only_source(vip, outside, sent);
    no_port_of_others(lab, &capture, vip)
}

fn moves(order: MoveOrder) -> Result<()> {
    let cluster = direct()?;
    for family in Family::ALL {
        nothing_is_lost(&cluster, family, |lab, vip, traffic| {
            for (from, to) in [(1, 2), (2, 3), (3, 1), (1, 3), (3, 2), (2, 1)] {
                lab.move_vip(from, to, vip, order)?;
                let sent = traffic.udp_sent();
                eventually(SOON, || traffic.udp_sent() > sent + 300);
                traffic.flows_within(SOON)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn nothing_is_lost_when_the_new_holder_takes_the_vip_before_the_old_one_lets_go() -> Result<()> {
    moves(MoveOrder::MakeBeforeBreak)
}

/// Between the two nobody answers for the VIP, but neighbours know where it was a moment ago.
#[test]
fn nothing_is_lost_when_the_old_holder_lets_go_before_the_new_one_takes_the_vip() -> Result<()> {
    moves(MoveOrder::BreakBeforeMake)
}

#[test]
fn nothing_that_is_sent_is_lost_while_nobody_holds_the_vip_for_a_second() -> Result<()> {
    let cluster = direct()?;
    for family in Family::ALL {
        nothing_is_lost(&cluster, family, |lab, vip, traffic| {
            // Who was the holder goes on to pass on what comes by neighbours' caches.
            lab.drop_vip(1, vip)?;
            let sent = traffic.udp_sent();
            eventually(SOON, || traffic.udp_sent() > sent + 1500);
            traffic.flows_within(SOON)?;
            lab.hold_vip(2, vip)?;
            traffic.flows_within(SOON)?;
            lab.move_vip(2, 1, vip, MoveOrder::MakeBeforeBreak)
        })?;
    }
    Ok(())
}
