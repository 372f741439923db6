//! What is not a plain packet of a plain connection: fragments, ICMP errors, strays, protocols without
//! ports.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use tests::{Capture, Family, Flow, Host, TcpTransfer, eventually, vip, wait_until, whoami};

use crate::scene::{SOON, direct, leaves_from, sender_of, server};

const VIP_CLOSED: &str = "egress_dropped_packets_total{table=\"egress\",reason=\"vip_closed\"}";

fn udp(host: &Host, address: IpAddr) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

/// A packet of that many bytes to a server and back.
fn there_and_back(pod: &Host, server: &Host, family: Family, bytes: usize) -> Result<bool> {
    let listening = udp(server, server.ip(family))?;
    let client = udp(pod, pod.ip(family))?;
    let to = listening.local_addr()?;
    let question: Vec<u8> = (0..=u8::MAX).cycle().take(bytes).collect();
    let mut packet = vec![0; bytes + 1];
    Ok(wait_until(SOON, || {
        let asked = client.send_to(&question, to).is_ok();
        let Ok((length, from)) = listening.recv_from(&mut packet) else { return false };
        let answered = listening.send_to(&packet[..length], from).is_ok();
        asked && answered && client.recv(&mut packet).is_ok_and(|got| packet[..got] == *question)
    }))
}

#[test]
fn fragments_arrive_both_ways() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        for server in [lab.outside(), lab.far()] {
            for node in 1..=3 {
                let pod = lab.pod(node, 1);
                for bytes in [1_440, 4_000, 9_000] {
                    let arrived = there_and_back(pod, server, family, bytes)?;
                    assert!(arrived, "{} {family:?} {bytes} bytes", pod.name);
                }
                let ping = format!("ping -n -q -c 3 -i 0.05 -W 1 -s 4000 {}", server.ip(family));
                assert!(pod.sh(&ping)?.contains("3 received"), "{} {family:?}", pod.name);
            }
        }
    }
    Ok(())
}

/// Where the kernel reads ports from a fragment that has none, in IPv6, is its flow label: that differs
/// from flow to flow, and one in 64 looks like a port of any one block.
#[test]
fn fragments_arrive_whatever_they_look_like() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for _ in 0..150 {
        assert!(there_and_back(lab.pod(2, 1), lab.outside(), Family::V6, 4_000)?);
    }
    Ok(())
}

#[test]
fn errors_find_the_pod_they_are_for() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        for node in 1..=3 {
            let pod = lab.pod(node, 1);
            for host in [lab.outside(), lab.far()] {
                // Nobody listens there.
                let client = udp(pod, pod.ip(family))?;
                client.connect(SocketAddr::new(host.ip(family), 9))?;
                let refused = wait_until(SOON, || {
                    let _ = client.send(b"?");
                    let got = client.recv(&mut [0; 1]);
                    got.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                });
                assert!(refused, "{} {family:?} to {}", pod.name, host.name);
            }
            // The router is the third on the way: the pod, its node, the router.
            let far = lab.far().ip(family);
            let text =
                pod.run(&["sh", "-c", &format!("ping -n -c 2 -i 0.05 -W 1 -t 2 {far} || true")])?;
            let said = ["ime to live exceeded", "Hop limit"].iter().any(|said| text.contains(said));
            let router = lab.router().ip(family).to_string();
            assert!(said && text.contains(&router), "{} {family:?}: {text}", pod.name);
        }
    }
    Ok(())
}

/// The way behind the router is narrower than the LAN: the router tells the VIP.
#[test]
fn a_pod_learns_that_its_packets_are_too_large() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    lab.router().sh("ip link set far mtu 1300")?;
    for family in Family::ALL {
        for node in 1..=3 {
            let pod = lab.pod(node, 1);
            let upload = TcpTransfer::upload(pod, server(lab.far(), family), Some(2_000_000))?;
            eventually(SOON, || upload.bytes() > 500_000);
            let report = upload.stop()?;
            assert_eq!(report.error, None, "{} {family:?}", pod.name);
        }
    }
    Ok(())
}

/// The pod's network is narrower than the LAN: the pod's node tells the server, as the VIP.
#[test]
fn a_server_learns_that_its_answers_are_too_large_for_the_pod() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for node in lab.nodes() {
        for device in ["veth1", "veth2", "cni0"] {
            node.sh(&format!("ip link set {device} mtu 1300"))?;
        }
    }
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let (vip, address) = (vip(family, 222), lab.far().ip(family));
        let answer = vec![0; if family == Family::V4 { 1472 } else { 1452 }];
        for node in 1..=3 {
            lab.far().sh("ip route flush cache")?;
            lab.far().sh("ip -6 route flush cache")?;
            let listening = udp(lab.far(), address)?;
            let client = udp(lab.pod(node, 1), lab.pod(node, 1).ip(family))?;
            let to = listening.local_addr()?;
            let answered = wait_until(SOON, || {
                let _ = client.send_to(b"?", to);
                let Ok((_, from)) = listening.recv_from(&mut [0; 1]) else { return false };
                // An error says that a packet before was too large.
                let sent = from.ip() == vip && listening.send_to(&answer, from).is_ok();
                sent && client.recv(&mut [0; 2000]).is_ok_and(|got| got == answer.len())
            });
            assert!(answered, "{} {family:?}", lab.pod(node, 1).name);
        }
        capture.assert_only_source(vip, address, 6);
    }
    Ok(())
}

/// A packet for a port that nobody has a connection with ends where it was passed on to.
#[test]
fn a_stray_is_dropped_where_it_belongs_and_never_sent_back() -> Result<()> {
    let mut cluster = direct()?;
    for family in Family::ALL {
        let vip = vip(family, 222);
        let before = cluster.agent(2)?.metric(VIP_CLOSED)?;
        let lab = &cluster.lab;
        let at_holder = Capture::on(&[(lab.node(1), "eth0")])?;
        let outside = Capture::start(lab)?;
        let stranger = udp(lab.outside(), lab.outside().ip(family))?;
        for port in [2048, 3071, 7168] {
            for _ in 0..5 {
                stranger.send_to(b"anybody there?", SocketAddr::new(vip, port))?;
            }
        }
        let agent = cluster.agent(2)?;
        eventually(SOON, || agent.metric(VIP_CLOSED).is_ok_and(|now| now >= before + 15.0));
        let lab = &cluster.lab;
        for (flow, seen) in at_holder.flows()? {
            let came_back = flow.destination == vip && sender_of(lab, &flow).is_some();
            ensure!(!came_back, "{} packets came back: {flow:?}", seen.packets);
        }
        outside.assert_silent(lab.outside().ip(family));
    }
    Ok(())
}

/// Connections whose node has forgotten them: TCP goes on, with whatever port it gets then.
#[test]
fn an_answer_without_connection_kills_nothing_else() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let traffic = TcpTransfer::download(lab.pod(2, 1), server(lab.outside(), family))?;
        eventually(SOON, || traffic.bytes() > 100_000);
        lab.node(2).run(&["sh", "-c", "conntrack -F 2>/dev/null"])?;
        drop(traffic);
        assert_eq!(whoami(lab.pod(2, 1), server(lab.outside(), family), SOON)?, vip(family, 222));
        leaves_from(lab, &capture, 2, vip(family, 222), lab.outside().ip(family))?;
    }
    Ok(())
}

/// A packet of GRE, which has no ports: the VIP's holder translates it.
fn send_gre(pod: &Host, to: IpAddr) -> Result<()> {
    const GRE: u8 = 47;
    let from = pod.ip(Family::of(to));
    let body = [0, 0, 8, 0, 1, 2, 3, 4];
    let (domain, mut packet) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, GRE, 0, 0];
            header.extend(from.octets().into_iter().chain(to.octets()));
            (AddressFamily::Inet, header)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 8, GRE, 64];
            header.extend(from.octets().into_iter().chain(to.octets()));
            (AddressFamily::Inet6, header)
        }
        _ => unreachable!("a pod has an address of each family"),
    };
    packet.extend(body);
    pod.enter(|| -> nix::Result<()> {
        let raw = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).map(drop)
    })??;
    Ok(())
}

/// Two pods that send such to one server are one connection to it: each has a server of its own.
#[test]
fn protocols_without_ports_go_via_the_holder() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        for (node, server) in [(2, lab.outside()), (3, lab.far())] {
            let (capture, to) = (Capture::start(lab)?, server.ip(family));
            let from_holder = |flow: &Flow| {
                (flow.destination, flow.protocol, flow.source) == (to, 47, vip(family, 222))
                    && sender_of(lab, flow) == Some(1)
            };
            eventually(SOON, || {
                let sent = send_gre(lab.pod(node, 1), to).is_ok();
                sent && capture.flows().is_ok_and(|flows| flows.keys().any(from_holder))
            });
            capture.assert_only_source(vip(family, 222), to, 1);
        }
    }
    Ok(())
}
