//! More connections to one destination than a node has ports: the rest goes via the holder.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process;
use std::time::Duration;

use anyhow::Result;
use shared::Block;
use tests::{Capture, Family, Flow, Host, Lab, NewFlows, eventually, vip, whoami};

use crate::scene::{
    PORT, SOON, arranged, blocks_of, direct, leaves_from, no_port_of_others, server,
};

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

/// Connections that stay, from `pod` to a listener at `to`, one after the other.
fn connections(pod: &Host, listener: &TcpListener, to: SocketAddr) -> Result<Vec<TcpStream>> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&to, SOON)?;
        // The other end goes: half a connection keeps its port, too.
        listener.accept()?;
        Ok(stream)
    };
    pod.enter(|| (0..BURST).map(|_| connect()).collect())?
}

const BURST: usize = 2000;

#[test]
fn a_burst_to_one_destination_loses_no_packet_for_want_of_ports() -> Result<()> {
    let limit = ["prlimit", "--pid", &process::id().to_string(), "--nofile=10000:10000"];
    tests::run(&limit)?;
    let mut cluster = arranged(Lab::builder().pods_per_node(2).build()?)?;
    // One block each. Nobody looks at connections within a burst: the kernel has to see to it alone.
    for family in Family::ALL {
        let node = cluster.lab.node(2).clone();
        cluster.mappings.set_blocks(vip(family, 222), &node, "2")?;
    }
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let port = PORT + 1;
    let listener = lab.outside().enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    for family in Family::ALL {
        let (vip, pod) = (vip(family, 222), lab.pod(2, 1));
        let to = SocketAddr::new(lab.outside().ip(family), port);
        let capture = Capture::start(lab)?;
        let before = pod.tcp_counters()?.retransmits;
        let connections = connections(pod, &listener, to)?;
        assert_eq!(pod.tcp_counters()?.retransmits, before, "a first segment was lost");
        capture.assert_only_source(vip, to.ip(), 2 * BURST as u64);
        no_port_of_others(lab, &capture, vip)?;
        // What one block can serve took the direct path, the others went via the holder.
        let flows = capture.flows()?;
        let of_block = |flow: &&Flow| Block::of_port(flow.source_port).is_some();
        let towards = || flows.keys().filter(|flow| flow.destination == to.ip());
        let direct = towards().filter(of_block).count();
        let via_holder = towards().count() - direct;
        assert!(direct > 700 && via_holder > 900, "{direct} direct, {via_holder} via the holder");
        // Other destinations are not affected.
        capture.clear();
        let far = server(lab.far(), family);
        assert_eq!(whoami(pod, far, SOON)?, vip);
        leaves_from(lab, &capture, 2, vip, far.ip())?;
        drop(connections);
    }
    Ok(())
}
