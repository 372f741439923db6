//! Pods of a VIP on the direct path whose node has no block of it: the holder translates for them, and
//! the VIP moves.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use shared::block::HOLDERS_PORTS;
use tests::{
    Capture, Cluster, Family, Host, MoveOrder, TcpSession, UdpProbe, eventually, vip, whoami,
};

use crate::scene::{SOON, direct, sender_of, server};

const SESSIONS: usize = 8;

/// Node 2 has no blocks: its pods go via the holder.
fn blockless() -> Result<Cluster> {
    let mut cluster = direct()?;
    for family in Family::ALL {
        let (vip, node) = (vip(family, 222), cluster.lab.node(2).clone());
        cluster.mappings.remove_blocks(vip, &node)?;
        let pod = cluster.lab.pod(2, 1).clone();
        let to = server(cluster.lab.outside(), family);
        let lab = &cluster.lab;
        eventually(SOON, || {
            let Ok(capture) = Capture::start(lab) else { return false };
            let from_holder = || -> Result<bool> {
                ensure!(whoami(&pod, to, SOON)? == vip);
                let flows = capture.flows()?;
                let mut flows = flows.keys().filter(|flow| flow.destination == to.ip());
                Ok(flows.all(|flow| sender_of(lab, flow) == Some(1)))
            };
            from_holder().unwrap_or_default()
        });
    }
    Ok(cluster)
}

/// Sessions whose ports in the pod lie within that range.
fn sessions(pod: &Host, to: SocketAddr, range: &str) -> Result<Vec<TcpSession>> {
    pod.set_sysctl("net/ipv4/ip_local_port_range", range)?;
    (0..SESSIONS).map(|_| TcpSession::open(pod, to, SOON)).collect()
}

/// How many go on. The others end at once: who waits for an answer does not wait in vain, but for one at
/// most. Its new port may be that of a session of which only the server does not know that it has ended;
/// then it is not reset.
fn that_go_on(sessions: &mut [TcpSession]) -> Result<usize> {
    let (mut alive, mut silent) = (0, 0);
    for session in sessions {
        match session.exchange(SOON) {
            Ok(_) => alive += 1,
            Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(ErrorKind::ConnectionReset) => {}
                Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) if silent == 0 => silent += 1,
                _ => return Err(error),
            },
        }
    }
    Ok(alive)
}

/// What is seen outside while the VIP moves: nothing but the VIP, with ports that are the holder's, for
/// no node has given these pods others.
fn nothing_leaks(cluster: &Cluster, capture: &Capture, family: Family) -> Result<()> {
    let to = cluster.lab.outside().ip(family);
    capture.assert_only_source(vip(family, 222), to, 1);
    for flow in capture.flows()?.into_keys().filter(|flow| flow.destination == to) {
        let has_ports = matches!(flow.protocol, 6 | 17);
        let holders = !has_ports || HOLDERS_PORTS.contains(&flow.source_port);
        ensure!(holders, "{flow:?}");
    }
    Ok(())
}

/// The new holder does not know which port the old one has chosen where a pod's own was in a block: it
/// translates with another, and the server ends the session. Ports that are the holder's stay.
#[test]
fn sessions_via_the_holder_go_on_with_its_ports_or_end_at_once_when_the_vip_moves() -> Result<()> {
    let cluster = blockless()?;
    let lab = &cluster.lab;
    let pod = lab.pod(2, 1);
    for family in Family::ALL {
        let (vip, to) = (vip(family, 222), server(lab.outside(), family));
        // Between other nodes, to the pod's own, and away from there.
        for (from, next) in [(1, 3), (3, 1), (1, 2), (2, 3), (3, 2), (2, 1)] {
            let mut in_blocks = sessions(pod, to, "20000 40000")?;
            let datagrams = UdpProbe::start(pod, to, 200)?;
            let mut clear_of_them = sessions(pod, to, "50000 60000")?;
            assert_eq!(that_go_on(&mut in_blocks)?, SESSIONS);
            assert_eq!(that_go_on(&mut clear_of_them)?, SESSIONS);
            eventually(SOON, || datagrams.received() > 20);
            let capture = Capture::start(lab)?;
            lab.move_vip(from, next, vip, MoveOrder::MakeBeforeBreak)?;
            let moved = || format!("{family:?} from node {from} to {next}");
            assert_eq!(that_go_on(&mut clear_of_them).with_context(moved)?, SESSIONS);
            that_go_on(&mut in_blocks).with_context(moved)?;
            let before = datagrams.received();
            eventually(SOON, || datagrams.received() > before + 20);
            assert_eq!(whoami(pod, to, SOON)?, vip);
            nothing_leaks(&cluster, &capture, family).with_context(moved)?;
            assert_eq!(datagrams.stop()?.sources.into_keys().collect::<Vec<_>>(), [vip]);
        }
    }
    Ok(())
}
