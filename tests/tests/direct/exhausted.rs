//! More connections to one destination than a node has ports: the rest goes via the holder.

use std::time::Duration;

use anyhow::Result;
use shared::Block;
use tests::{Capture, Family, NewFlows, eventually, vip, whoami};

use crate::scene::{PORT, SOON, blocks_of, direct, server};

#[test]
fn when_the_ports_towards_a_destination_run_out_new_connections_go_via_the_holder() -> Result<()> {
    let cluster = direct()?;
    let (lab, family) = (&cluster.lab, Family::V4);
    let (vip, to) = (vip(family, 222), server(lab.outside(), family));
    // Node 1 holds the VIP: its pods would get its own ports either way. Node 2 has two blocks.
    let pod = lab.pod(2, 1);
    let capture = Capture::start(lab)?;
    // Each packet is a connection of its own, and keeps its port for half a minute at least.
    let flows = NewFlows::start(pod, to, 2000)?;
    let via_holder = |port: u16| Block::of_port(port).is_none();
    let seen = |wanted: &dyn Fn(u16) -> bool| -> Result<u64> {
        let flows = capture.flows()?;
        let of = flows.iter().filter(|(flow, _)| {
            flow.destination == to.ip()
                && flow.destination_port == PORT
                && flow.source == vip
                && wanted(flow.source_port)
        });
        Ok(of.map(|(_, seen)| seen.packets).sum())
    };
    eventually(Duration::from_secs(30), || seen(&via_holder).is_ok_and(|packets| packets > 100));
    drop(flows);
    let own = |port: u16| Block::of_port(port).is_some_and(|of| blocks_of(2).contains(&of));
    assert!(seen(&own)? > 1500, "{}", capture.text());
    // Nothing has left with another address, and other destinations are not affected.
    capture.assert_only_source(vip, to.ip(), 1600);
    capture.clear();
    let far = server(lab.far(), family);
    assert_eq!(whoami(pod, far, SOON)?, vip);
    let ports: Vec<_> = capture
        .flows()?
        .into_keys()
        .filter(|flow| flow.destination == far.ip() && flow.source == vip)
        .map(|flow| flow.source_port)
        .collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| own(*port)), "{ports:?}");
    Ok(())
}
