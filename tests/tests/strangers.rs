//! Marks that others write, and errors that the node itself reports: neither is taken for a
//! decision about a mapped pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use tests::{Capture, Cluster, Family, Host, Lab, ping, seen_as, wait_until};

const PORT: u16 = 7000;
const ROUTE_ID: u8 = 64;

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 122, 222).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x122, 0, 0, 0, 0, 0, 0x222).into(),
    }
}

/// The first pods of both nodes are mapped in both families; node 1 holds the VIPs.
fn mapped() -> Result<Cluster> {
    let lab = Lab::builder().nodes(2).build()?;
    let mut cluster = Cluster::new(lab, PORT)?;
    for (family, route_id) in [(Family::V4, ROUTE_ID), (Family::V6, ROUTE_ID + 1)] {
        let Cluster { lab, mappings, .. } = &mut cluster;
        mappings.set_vip(vip(family), route_id)?;
        for node in 1..=2 {
            mappings.map(lab.pod(node, 1).ip(family), vip(family))?;
        }
        lab.hold_vip(1, vip(family))?;
    }
    cluster.start_agents()?;
    Ok(cluster)
}

fn iptables(node: &Host, rule: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        node.sh(&format!("{program} -t mangle {rule}"))?;
    }
    Ok(())
}

#[test]
fn marks_that_others_write_into_packets_change_no_source() -> Result<()> {
    let cluster = mapped()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    let (holder, far) = (lab.node(1), lab.far());
    // The marks of a decision, of no VIP of ours, and all bits at once.
    for mark in ["0x40", "0x41", "0x6c", "0xffffffff"] {
        let rule = format!("POSTROUTING -o eth0 -j MARK --set-mark {mark}");
        iptables(holder, &format!("-A {rule}"))?;
        for family in Family::ALL {
            let server = SocketAddr::new(far.ip(family), PORT);
            for client in [lab.pod(1, 2), holder] {
                capture.clear();
                assert_eq!(
                    seen_as(client, server)?,
                    [holder.ip(family)],
                    "{mark}, {}",
                    client.name
                );
                assert_eq!(ping(client, far.ip(family), 1)?, 1, "{mark}, {}", client.name);
                capture.assert_only_source(holder.ip(family), far.ip(family), 4);
            }
            capture.clear();
            for pod in [lab.pod(1, 1), lab.pod(2, 1)] {
                assert_eq!(seen_as(pod, server)?, [vip(family)], "{mark}, {}", pod.name);
            }
            capture.assert_only_source(vip(family), far.ip(family), 6);
        }
        iptables(holder, &format!("-D {rule}"))?;
    }
    Ok(())
}

/// The overlay's packets are smaller than the LAN's: only the holder can tell the server so.
#[test]
fn a_server_learns_that_its_answers_are_too_large_for_the_overlay() -> Result<()> {
    large_answers_arrive(&mapped()?)
}

/// The pod's node has to tell the server, by way of the holder.
#[test]
fn a_server_learns_that_its_answers_are_too_large_for_the_pod() -> Result<()> {
    let cluster = mapped()?;
    for node in cluster.lab.nodes() {
        for device in ["veth1", "veth2", "cni0"] {
            node.sh(&format!("ip link set {device} mtu 1300"))?;
        }
    }
    large_answers_arrive(&cluster)
}

#[expect(clippy::expect_used, reason = "in a closure that cannot return an error")]
fn large_answers_arrive(cluster: &Cluster) -> Result<()> {
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let server = SocketAddr::new(lab.far().ip(family), PORT + 1);
        // Full frames of the LAN, which must not be fragmented on their way.
        let answer = vec![0; if family == Family::V4 { 1472 } else { 1452 }];
        for node in 1..=2 {
            lab.far().sh("ip route flush cache")?;
            lab.far().sh("ip -6 route flush cache")?;
            let listening = lab.far().enter(|| UdpSocket::bind(server))??;
            listening.set_read_timeout(Some(Duration::from_secs(1)))?;
            let client = lab.pod(node, 1).enter(|| {
                let any = SocketAddr::new(lab.pod(node, 1).ip(family), 0);
                UdpSocket::bind(any)
            })??;
            client.set_read_timeout(Some(Duration::from_millis(200)))?;
            let answered = wait_until(Duration::from_secs(5), || {
                client.send_to(b"?", server).expect("the pod can send");
                let (_, from) = listening.recv_from(&mut [0; 1]).expect("the question arrives");
                assert_eq!(from.ip(), vip(family));
                // An error says that a packet before was too large.
                let sent = listening.send_to(&answer, from);
                sent.is_ok() && client.recv(&mut [0; 2000]).is_ok_and(|got| got == answer.len())
            });
            assert!(answered, "{} gets no large answer from {server}", lab.pod(node, 1).name);
        }
        capture.assert_only_source(vip(family), server.ip(), 4);
    }
    Ok(())
}
