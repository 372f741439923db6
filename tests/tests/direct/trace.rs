//! Where packets go, as who asks sees it: each hop on the way says that it has come too far.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::cmsg_space;
use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use shared::Block;
use tests::{Capture, Family, Flow, Host, Lab, eventually, vip, wait_until};

use crate::scene::{SOON, blocks_of, direct, sender_of};

/// The first port that `traceroute` asks; nobody listens there.
const FIRST_PORT: u16 = 33434;
/// Type of ICMP's "time exceeded".
const fn time_exceeded(family: Family) -> u16 {
    match family {
        Family::V4 => 11,
        Family::V6 => 3,
    }
}

/// The pod's node, the router, the host behind it: no holder.
fn way(lab: &Lab, node: usize, family: Family) -> [IpAddr; 3] {
    let gateway = match family {
        Family::V4 => IpAddr::from([10, 244, u8::try_from(node).unwrap(), 1]),
        Family::V6 => IpAddr::from([0xfd00, 0x244, u16::try_from(node).unwrap(), 0, 0, 0, 0, 1]),
    };
    [gateway, lab.router().ip(family), lab.far().ip(family)]
}

/// A socket of the pod whose packets go no further than that.
fn limited(pod: &Host, family: Family, hops: u8) -> Result<UdpSocket> {
    let socket = pod.enter(|| UdpSocket::bind(SocketAddr::new(pod.ip(family), 0)))??;
    match family {
        Family::V4 => {
            setsockopt(&socket, sockopt::Ipv4Ttl, &hops.into())?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        }
        Family::V6 => {
            setsockopt(&socket, sockopt::Ipv6Ttl, &hops.into())?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
    }
    Ok(socket)
}

/// Who says to the pod that a UDP packet with so many hops did not arrive, or that nobody listens. The
/// kernel gives such an error to the socket whose ports it quotes, and to no other.
fn by_udp(pod: &Host, to: IpAddr, hops: u8) -> Result<IpAddr> {
    let socket = limited(pod, Family::of(to), hops)?;
    let to = SocketAddr::new(to, FIRST_PORT + u16::from(hops));
    let mut who = None;
    let told = wait_until(SOON, || {
        // An error about the one before takes the place of the one that is sent.
        let _ = socket.send_to(&[hops; 32], to);
        who = error_about(&socket, to);
        who.is_some()
    });
    ensure!(told, "{}: nobody tells of {hops} hops to {to}", pod.name);
    who.context("nobody")
}

/// Who has sent an error about a packet to that address, if one is there.
fn error_about(socket: &UdpSocket, to: SocketAddr) -> Option<IpAddr> {
    let mut packet = [0; 64];
    let mut parts = [IoSliceMut::new(&mut packet)];
    let mut control = cmsg_space!(sock_extended_err, sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let of = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let message = of.ok()?;
    let quoted = message.address.as_ref().and_then(|of| match to {
        SocketAddr::V4(_) => of.as_sockaddr_in().map(|of| SocketAddr::V4((*of).into())),
        SocketAddr::V6(_) => of.as_sockaddr_in6().map(|of| SocketAddr::V6((*of).into())),
    });
    message.cmsgs().ok()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4RecvErr(_, Some(who)) if quoted == Some(to) => {
            Some(Ipv4Addr::from(u32::from_be(who.sin_addr.s_addr)).into())
        }
        ControlMessageOwned::Ipv6RecvErr(_, Some(who)) if quoted == Some(to) => {
            Some(Ipv6Addr::from(who.sin6_addr.s6_addr).into())
        }
        _ => None,
    })
}

/// Who answers an echo request with so many hops.
fn by_echo(pod: &Host, to: IpAddr, hops: u8) -> Result<IpAddr> {
    let ping = format!("ping -n -c 1 -W 1 -t {hops} {to} || true");
    let mut said = String::new();
    let mut who = None;
    let told = wait_until(SOON, || {
        said = pod.run(&["sh", "-c", &ping]).unwrap_or_default();
        // `From 192.0.2.1 icmp_seq=1 Time to live exceeded`, `64 bytes from 192.0.2.1: icmp_seq=1 …`
        let line = said.lines().find(|line| line.contains("icmp_seq="));
        let after = line.and_then(|line| line.split_once("rom ")?.1.split_whitespace().next());
        who = after.and_then(|who| who.trim_end_matches(':').parse().ok());
        who.is_some()
    });
    ensure!(told, "{}: nobody answers a ping with {hops} hops to {to}: {said}", pod.name);
    who.context("nobody")
}

type Ask = fn(&Host, IpAddr, u8) -> Result<IpAddr>;

/// Every hop is told to the pod that asks, and none is the holder; what the router says of the VIP's
/// packets reaches the pod's node over the holder. Outside nothing but the VIP is seen.
fn every_hop_is_told(ask: Ask) -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        let (vip, far) = (vip(family, 222), lab.far().ip(family));
        // The holder itself, and others.
        for node in 1..=3 {
            let outside = Capture::start(lab)?;
            let at_node = Capture::on(&[(lab.node(node), "eth0")])?;
            for (hops, hop) in (1..).zip(way(lab, node, family)) {
                let who = ask(lab.pod(node, 1), far, hops)?;
                assert_eq!(who, hop, "node {node}, {hops} hops to {far}");
            }
            // The first hop is the pod's node: two packets or more got as far as the router.
            outside.assert_only_source(vip, far, 2);
            let holder = |flow: &Flow| sender_of(lab, flow) == Some(1);
            let passed_on = |flow: &Flow| {
                (flow.source, flow.destination) == (lab.router().ip(family), vip)
                    && flow.source_port == time_exceeded(family)
                    && (node == 1 || holder(flow))
            };
            let flows = at_node.flows()?;
            ensure!(flows.keys().any(passed_on), "node {node}:\n{}", at_node.text());
            for flow in outside.flows()?.into_keys().filter(|flow| flow.destination == far) {
                assert_eq!(sender_of(lab, &flow), Some(node), "{flow:?}");
                let block = Block::of_port(flow.source_port);
                let own = block.is_some_and(|block| blocks_of(node).contains(&block));
                assert!(flow.protocol != 17 || own, "{flow:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_trace_by_udp_shows_every_hop_to_the_pod_and_the_vip_to_others() -> Result<()> {
    every_hop_is_told(by_udp)
}

#[test]
fn a_trace_by_ping_shows_every_hop_to_the_pod_and_the_vip_to_others() -> Result<()> {
    every_hop_is_told(by_echo)
}

/// Two pods of two nodes ask at the same time: each is told of its own packets alone, for an error about
/// those of the other would be given to no socket.
#[test]
fn pods_that_trace_at_the_same_time_are_told_each_of_its_own() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        let far = lab.far().ip(family);
        let probes: Vec<_> = [2, 3]
            .into_iter()
            .map(|node| -> Result<_> {
                let socket = limited(lab.pod(node, 1), family, 2)?;
                Ok((socket, SocketAddr::new(far, FIRST_PORT + u16::try_from(node)?)))
            })
            .collect::<Result<_>>()?;
        let mut told = [false; 2];
        eventually(SOON, || {
            for ((socket, to), told) in probes.iter().zip(&mut told) {
                let _ = socket.send_to(b"?", to);
                *told |= error_about(socket, *to) == Some(lab.router().ip(family));
            }
            told == [true; 2]
        });
    }
    Ok(())
}
