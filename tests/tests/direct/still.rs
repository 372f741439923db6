//! What leaves, from where and with which ports, while nothing changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{
    CLUSTER_IP_PORT, Capture, Family, Lab, Masquerade, NODE_PORT, SERVICE_TARGET_PORT, TcpServer,
    UdpProbe, UdpServer, eventually, ping, seen_as, vip, whoami,
};

use crate::scene::{PORT, SOON, arranged, direct, leaves_from, server};

fn pods_leave_from_their_own_node_with_ports_of_its_blocks(masquerade: Masquerade) -> Result<()> {
    let lab = Lab::builder().pods_per_node(2).masquerade(masquerade).build()?;
    let mut cluster = arranged(lab)?;
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let vip = vip(family, 222);
        for host in [lab.outside(), lab.far()] {
            for node in 1..=3 {
                let pod = lab.pod(node, 1);
                capture.clear();
                for _ in 0..8 {
                    assert_eq!(seen_as(pod, server(host, family))?, [vip], "{}", pod.name);
                    assert_eq!(whoami(pod, server(host, family), SOON)?, vip, "{}", pod.name);
                }
                leaves_from(lab, &capture, node, vip, host.ip(family))?;
                assert_eq!(ping(pod, host.ip(family), 3)?, 3, "{}", pod.name);
                capture.assert_only_source(vip, host.ip(family), 8 * (3 + 4) + 3);
                // Others leave as before.
                let other = lab.pod(node, 2);
                assert_eq!(whoami(other, server(host, family), SOON)?, lab.node(node).ip(family));
            }
        }
    }
    Ok(())
}

#[test]
fn pods_leave_from_their_own_node_under_iptables_nft() -> Result<()> {
    pods_leave_from_their_own_node_with_ports_of_its_blocks(Masquerade::IptablesNft)
}

#[test]
fn pods_leave_from_their_own_node_under_iptables_legacy() -> Result<()> {
    pods_leave_from_their_own_node_with_ports_of_its_blocks(Masquerade::IptablesLegacy)
}

#[test]
fn pods_leave_from_their_own_node_under_native_masquerade() -> Result<()> {
    pods_leave_from_their_own_node_with_ports_of_its_blocks(Masquerade::Nft)
}

#[test]
fn traffic_inside_and_answers_to_who_asks_are_left_alone() -> Result<()> {
    let cluster = direct()?;
    let lab = &cluster.lab;
    // It is mapped, and behind the Service.
    let service = lab.service_pod().context("the laboratory has a Service")?;
    let _behind = (
        UdpServer::start(service, SERVICE_TARGET_PORT)?,
        TcpServer::start(service, SERVICE_TARGET_PORT)?,
    );
    let other = lab.pod(3, 2);
    let _other = (UdpServer::start(other, PORT)?, TcpServer::start(other, PORT)?);
    let _node = TcpServer::start(lab.node(3), PORT)?;
    for family in Family::ALL {
        let client = lab.pod(1, 1);
        let cluster_ip = SocketAddr::new(lab.cluster_ip(family), CLUSTER_IP_PORT);
        assert_eq!(whoami(client, cluster_ip, SOON)?, client.ip(family));
        assert_eq!(seen_as(client, cluster_ip)?, [client.ip(family)]);
        assert_eq!(whoami(client, server(other, family), SOON)?, client.ip(family));
        let node = lab.node(1).ip(family);
        assert_eq!(whoami(client, server(lab.node(3), family), SOON)?, node, "masqueraded");
        for outside in [lab.outside(), lab.far()] {
            for node in lab.nodes() {
                // A client takes an answer only from the address and port that it has asked.
                let asked = SocketAddr::new(node.ip(family), NODE_PORT);
                whoami(outside, asked, SOON)?;
                seen_as(outside, asked)?;
            }
        }
    }
    Ok(())
}

#[test]
fn held_pods_are_silent_and_other_families_stay_held() -> Result<()> {
    let mut cluster = direct()?;
    for family in Family::ALL {
        let pod = cluster.lab.pod(2, 1).clone();
        cluster.mappings.hold(pod.ip(family))?;
        cluster.await_mapping(pod.ip(family), Some(unspecified(family)))?;
        let capture = Capture::start(&cluster.lab)?;
        let outside = server(cluster.lab.outside(), family);
        let probe = UdpProbe::start(&pod, outside, 500)?;
        eventually(SOON, || probe.sent() >= 50);
        assert!(whoami(&pod, outside, Duration::from_millis(200)).is_err());
        assert_eq!((ping(&pod, outside.ip(), 1)?, probe.stop()?.received), (0, 0));
        capture.assert_silent(outside.ip());
        cluster.mappings.map(pod.ip(family), vip(family, 222))?;
        cluster.await_mapping(pod.ip(family), Some(vip(family, 222)))?;
        assert_eq!(whoami(&pod, outside, SOON)?, vip(family, 222));
    }
    Ok(())
}

/// What a held pod's entry has for a VIP.
fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}
