//! What leaves the cluster, with which source, while nothing changes.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{
    CLUSTER_IP_PORT, Capture, Cluster, Family, Host, Lab, Masquerade, NODE_PORT,
    SERVICE_TARGET_PORT, TcpServer, TrafficPolicy, UdpProbe, UdpServer, eventually, ping, seen_as,
    vip, whoami,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);

/// The first pod of every node is mapped in both families; node 1 holds the v4 VIP, node 2 the
/// other. The agents are ready.
fn mapped(lab: Lab) -> Result<Cluster> {
    let mut cluster = Cluster::new(lab, PORT)?;
    for (family, route_id, holder) in [(Family::V4, 1, 1), (Family::V6, 252, 2)] {
        let Cluster { lab, mappings, .. } = &mut cluster;
        mappings.set_vip(vip(family, 222), route_id)?;
        for node in 1..=3 {
            mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
        }
        lab.hold_vip(holder, vip(family, 222))?;
    }
    cluster.start_agents()?;
    Ok(cluster)
}

/// UDP, TCP and ICMP from the pod reach the server, all from `source`.
fn leaves_as(pod: &Host, server: &Host, source: IpAddr, capture: &Capture) -> Result<()> {
    let address = server.ip(Family::of(source));
    let socket = SocketAddr::new(address, PORT);
    capture.clear();
    assert_eq!(seen_as(pod, socket)?, [source], "UDP from {} to {socket}", pod.name);
    assert_eq!(whoami(pod, socket, SOON)?, source, "TCP from {} to {socket}", pod.name);
    assert_eq!(ping(pod, address, 2)?, 2, "ICMP from {} to {address}", pod.name);
    capture.assert_only_source(source, address, 3 + 4 + 2);
    Ok(())
}

fn mapped_pods_leave_with_the_vip_and_others_as_before(masquerade: Masquerade) -> Result<()> {
    let lab = Lab::builder().masquerade(masquerade).rp_filter(1).build()?;
    for node in lab.nodes() {
        assert_eq!(node.sysctl("net/ipv4/conf/eth0/rp_filter")?, "1");
    }
    let mut cluster = mapped(lab)?;
    for node in 1..=3 {
        for interface in ["eth0", "flannel.1"] {
            let key = format!("net/ipv4/conf/{interface}/rp_filter");
            assert_eq!(cluster.lab.node(node).sysctl(&key)?, "2", "{interface} of node {node}");
            let said = format!("loosen rp_filter of {interface}");
            assert!(cluster.agent(node)?.log().contains(&said), "the agent says so");
        }
    }
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        for server in [lab.outside(), lab.far()] {
            for node in 1..=3 {
                leaves_as(lab.pod(node, 1), server, vip(family, 222), &capture)?;
                leaves_as(lab.pod(node, 2), server, lab.node(node).ip(family), &capture)?;
            }
        }
    }
    Ok(())
}

#[test]
fn mapped_pods_leave_with_the_vip_under_iptables_nft() -> Result<()> {
    mapped_pods_leave_with_the_vip_and_others_as_before(Masquerade::IptablesNft)
}

#[test]
fn mapped_pods_leave_with_the_vip_under_iptables_legacy() -> Result<()> {
    mapped_pods_leave_with_the_vip_and_others_as_before(Masquerade::IptablesLegacy)
}

#[test]
fn mapped_pods_leave_with_the_vip_under_native_masquerade() -> Result<()> {
    mapped_pods_leave_with_the_vip_and_others_as_before(Masquerade::Nft)
}

#[test]
fn mapped_pods_leave_with_the_vip_where_nobody_masquerades() -> Result<()> {
    let cluster = mapped(Lab::builder().masquerade(Masquerade::None).build()?)?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        for node in 1..=3 {
            leaves_as(lab.pod(node, 1), lab.far(), vip(family, 222), &capture)?;
        }
    }
    Ok(())
}

/// What the servers of a pod or node see of mapped pods; and nothing of it leaves.
fn traffic_inside_is_not_translated(masquerade: Masquerade, policy: TrafficPolicy) -> Result<()> {
    let lab = Lab::builder().masquerade(masquerade).traffic_policy(policy).build()?;
    let cluster = mapped(lab)?;
    let lab = &cluster.lab;
    let service_pod = lab.service_pod().context("the laboratory has a Service")?;
    let mut inside = Vec::new();
    for host in [lab.pod(1, 1), lab.pod(2, 2), lab.node(1), lab.node(3)] {
        inside.push((UdpServer::start(host, PORT)?, TcpServer::start(host, PORT)?));
    }
    inside.push((
        UdpServer::start(service_pod, SERVICE_TARGET_PORT)?,
        TcpServer::start(service_pod, SERVICE_TARGET_PORT)?,
    ));
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let client = lab.pod(1, 1);
        let (own, node) = (client.ip(family), lab.node(1).ip(family));
        let expectations = [
            // Another pod; the pod's own node; another node, reached through the CNI's masquerade.
            (lab.pod(2, 2).ip(family), PORT, own),
            (lab.node(1).ip(family), PORT, own),
            (lab.node(3).ip(family), PORT, node),
            (lab.cluster_ip(family), CLUSTER_IP_PORT, own),
        ];
        for (server, port, source) in expectations {
            let server = SocketAddr::new(server, port);
            // A server on all addresses of a node answers by UDP from another one than was asked.
            if lab.nodes().iter().all(|node| node.ip(family) != server.ip()) {
                assert_eq!(seen_as(client, server)?, [source], "UDP to {server}");
            }
            assert_eq!(whoami(client, server, SOON)?, source, "TCP to {server}");
        }
        for server in [lab.pod(2, 2), lab.node(1), lab.node(3)] {
            assert_eq!(ping(client, server.ip(family), 2)?, 2, "{}", server.name);
        }
        for outside in [lab.outside(), lab.far()] {
            capture.assert_silent(outside.ip(family));
        }
        node_port_answers(lab, family, policy)?;
    }
    Ok(())
}

/// The pod behind the Service is mapped; its answers leave with the address that was asked.
fn node_port_answers(lab: &Lab, family: Family, policy: TrafficPolicy) -> Result<()> {
    for client in [lab.outside(), lab.far()] {
        let nodes = match policy {
            TrafficPolicy::Cluster => 1..=3,
            TrafficPolicy::Local => 2..=2,
        };
        for node in nodes {
            let server = SocketAddr::new(lab.node(node).ip(family), NODE_PORT);
            // Both clients take an answer only from the address and port they have asked.
            let by_tcp = whoami(client, server, SOON)?;
            let by_udp = seen_as(client, server)?;
            assert_eq!(by_udp, [by_tcp]);
            let as_it_is = by_tcp == client.ip(family);
            assert_eq!(as_it_is, policy == TrafficPolicy::Local, "{server} saw {by_tcp}");
        }
    }
    Ok(())
}

#[test]
fn traffic_inside_is_not_translated_under_iptables_nft() -> Result<()> {
    traffic_inside_is_not_translated(Masquerade::IptablesNft, TrafficPolicy::Cluster)
}

#[test]
fn traffic_inside_is_not_translated_under_iptables_legacy_with_local_policy() -> Result<()> {
    traffic_inside_is_not_translated(Masquerade::IptablesLegacy, TrafficPolicy::Local)
}

#[test]
fn traffic_inside_is_not_translated_under_native_masquerade() -> Result<()> {
    traffic_inside_is_not_translated(Masquerade::Nft, TrafficPolicy::Cluster)
}

#[test]
fn traffic_inside_is_not_translated_under_native_masquerade_with_local_policy() -> Result<()> {
    traffic_inside_is_not_translated(Masquerade::Nft, TrafficPolicy::Local)
}

#[test]
fn who_asks_a_mapped_pod_by_its_own_address_gets_the_answer_from_there() -> Result<()> {
    let cluster = mapped(Lab::builder().build()?)?;
    let lab = &cluster.lab;
    // Node 1 holds the v4 VIP, node 2 the v6 one: each pod is local and remote to one of them.
    for node in [1, 2] {
        let pod = lab.pod(node, 1);
        let _servers = (UdpServer::start(pod, PORT)?, TcpServer::start(pod, PORT)?);
        let capture = Capture::start(lab)?;
        for family in Family::ALL {
            let (to, via) = (pod.ip(family), lab.node(node).ip(family));
            lab.outside().sh(&format!("ip route add {to} via {via}"))?;
            let server = SocketAddr::new(to, PORT);
            let client = lab.outside().ip(family);
            assert_eq!(whoami(lab.outside(), server, SOON)?, client);
            assert_eq!(ping(lab.outside(), to, 3)?, 3);
            capture.assert_only_source(to, client, 4 + 3);
            // What the pod begins leaves with the VIP nevertheless.
            leaves_as(pod, lab.outside(), vip(family, 222), &capture)?;
        }
    }
    Ok(())
}

#[test]
fn the_holders_own_ports_are_closed_on_the_vip_and_say_nothing() -> Result<()> {
    let mut cluster = mapped(Lab::builder().build()?)?;
    for (family, holder) in [(Family::V4, 1), (Family::V6, 2)] {
        let lab = &cluster.lab;
        let _open =
            (UdpServer::start(lab.node(holder), PORT)?, TcpServer::start(lab.node(holder), PORT)?);
        let address = SocketAddr::new(lab.node(holder).ip(family), PORT);
        whoami(lab.outside(), address, SOON)?;
        let capture = Capture::on(&[(lab.outside(), "eth0")])?;
        let (open, closed) =
            (SocketAddr::new(vip(family, 222), PORT), SocketAddr::new(vip(family, 222), 1));
        for port in [open, closed] {
            lab.outside().enter(|| -> Result<()> {
                let refused = TcpStream::connect_timeout(&port, Duration::from_millis(300));
                let kind = refused.expect_err("the port is closed").kind();
                assert_eq!(kind, ErrorKind::TimedOut, "silence, no refusal");
                let socket = UdpSocket::bind(SocketAddr::new(lab.outside().ip(family), 0))?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                for _ in 0..5 {
                    socket.send_to(b"anybody there?", port)?;
                }
                assert_eq!(
                    socket.recv(&mut [0]).expect_err("nobody answers").kind(),
                    ErrorKind::WouldBlock
                );
                Ok(())
            })??;
        }
        assert_eq!(ping(lab.outside(), vip(family, 222), 1)?, 0);
        capture.assert_silent(lab.outside().ip(family));
        let name = "egress_dropped_packets_total{table=\"egress\",reason=\"vip_closed\"}";
        let dropped = cluster.agent(holder)?.metric(name)?;
        assert!(dropped >= 13.0, "they were dropped here, not lost on the way: {dropped}");
    }
    Ok(())
}

#[test]
fn marks_of_others_survive_on_packets_and_connections() -> Result<()> {
    let cluster = mapped(Lab::builder().build()?)?;
    let lab = &cluster.lab;
    for node in lab.nodes() {
        // 0x80000 and 0x100000 are nobody's here; set before us, looked for after us.
        let rules = "table inet stranger {
  counter kept { }
  counter lost { }
  chain early {
    type filter hook prerouting priority -250;
    iifname cni0 ip daddr { 192.168.122.64, 203.0.113.64 } meta mark set meta mark | 0x80000
    iifname cni0 ip6 daddr { fd00:122::64, fd00:203::64 } meta mark set meta mark | 0x80000
  }
  chain connections {
    type filter hook prerouting priority -160;
    meta mark & 0x80000 != 0 ct mark set ct mark | 0x100000
  }
  chain late {
    type filter hook postrouting priority 300;
    iifname cni0 oifname eth0 meta l4proto udp jump look
  }
  chain look {
    udp dport != 7000 return
    meta mark & 0x80000 == 0x80000 ct mark & 0x100000 == 0x100000 counter name kept
    meta mark & 0x80000 == 0 counter name lost
    ct mark & 0x100000 == 0 counter name lost
  }
}
";
        node.run_with_input(&["nft", "-f", "-"], rules)?;
    }
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        for node in 1..=3 {
            leaves_as(lab.pod(node, 1), lab.outside(), vip(family, 222), &capture)?;
        }
    }
    for node in lab.nodes() {
        let packets = |counter: &str| -> Result<u64> {
            let text = node.sh(&format!("nft list counter inet stranger {counter}"))?;
            let words = text.split_whitespace().skip_while(|word| *word != "packets");
            words.skip(1).find_map(|word| word.parse().ok()).context("a counter counts")
        };
        assert!(packets("kept")? >= 6, "{}", node.name);
        assert_eq!(packets("lost")?, 0, "{}", node.name);
    }
    Ok(())
}

#[test]
fn a_pod_with_a_vip_of_one_family_only_is_held_in_the_other() -> Result<()> {
    let mut cluster = Cluster::new(Lab::builder().build()?, PORT)?;
    let Cluster { lab, mappings, .. } = &mut cluster;
    // Of pod 1 the v6 address is held, of pod 2 the v4 address.
    for family in Family::ALL {
        mappings.set_vip(vip(family, 222), if family == Family::V4 { 64 } else { 65 })?;
        lab.hold_vip(1, vip(family, 222))?;
    }
    for node in 1..=3 {
        mappings.map(lab.pod(node, 1).v4.into(), vip(Family::V4, 222))?;
        mappings.hold(lab.pod(node, 1).v6.into())?;
        mappings.map(lab.pod(node, 2).v6.into(), vip(Family::V6, 222))?;
        mappings.hold(lab.pod(node, 2).v4.into())?;
    }
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let inside = UdpServer::start(lab.pod(2, 2), PORT)?;
    let capture = Capture::start(lab)?;
    for node in 1..=3 {
        for (pod, mapped, held) in [(1, Family::V4, Family::V6), (2, Family::V6, Family::V4)] {
            let pod = lab.pod(node, pod);
            for server in [lab.outside(), lab.far()] {
                leaves_as(pod, server, vip(mapped, 222), &capture)?;
                let probe = UdpProbe::start(pod, SocketAddr::new(server.ip(held), PORT), 500)?;
                eventually(SOON, || probe.sent() >= 30);
                let address = SocketAddr::new(server.ip(held), PORT);
                assert!(whoami(pod, address, Duration::from_millis(100)).is_err());
                assert_eq!(ping(pod, server.ip(held), 1)?, 0);
                assert_eq!(probe.stop()?.received, 0);
                capture.assert_silent(server.ip(held));
            }
            // Only what leaves is held.
            let to_pod = SocketAddr::new(lab.pod(2, 2).ip(held), PORT);
            assert_eq!(seen_as(pod, to_pod)?, [pod.ip(held)]);
        }
    }
    drop(inside);
    Ok(())
}

#[test]
fn several_vips_on_several_holders_each_serve_their_pods() -> Result<()> {
    let mut cluster = Cluster::new(Lab::builder().build()?, PORT)?;
    // VIP number, route ids of v4 and v6, holder; it serves the first pod of the node after that.
    let vips = [(201, [1, 2], 1), (202, [252, 251], 2), (203, [16, 17], 3)];
    let Cluster { lab, mappings, .. } = &mut cluster;
    for (number, route_ids, holder) in vips {
        for (family, route_id) in Family::ALL.into_iter().zip(route_ids) {
            let vip = vip(family, number);
            mappings.set_vip(vip, route_id)?;
            mappings.map(lab.pod(holder % 3 + 1, 1).ip(family), vip)?;
            // And the second pod of the holder itself.
            mappings.map(lab.pod(holder, 2).ip(family), vip)?;
            lab.hold_vip(holder, vip)?;
        }
    }
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        for (number, _, holder) in vips {
            for pod in [lab.pod(holder % 3 + 1, 1), lab.pod(holder, 2)] {
                for server in [lab.outside(), lab.far()] {
                    leaves_as(pod, server, vip(family, number), &capture)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn excluded_networks_are_reached_with_the_nodes_address() -> Result<()> {
    let mut cluster = mapped(Lab::builder().build()?)?;
    let capture = Capture::start(&cluster.lab)?;
    let both = |cluster: &Cluster, far_by_vip: bool| -> Result<()> {
        let lab = &cluster.lab;
        for family in Family::ALL {
            for node in 1..=3 {
                let pod = lab.pod(node, 1);
                leaves_as(pod, lab.outside(), vip(family, 222), &capture)?;
                let source = if far_by_vip { vip(family, 222) } else { lab.node(node).ip(family) };
                leaves_as(pod, lab.far(), source, &capture)?;
            }
        }
        Ok(())
    };
    both(&cluster, true)?;
    for (excluded, far_by_vip) in [("203.0.113.0/24, fd00:203::/64", false), ("", true)] {
        let before =
            [cluster.kernel(1, false)?, cluster.kernel(2, false)?, cluster.kernel(3, false)?];
        cluster.mappings.exclude(excluded)?;
        for (node, before) in (1..).zip(before) {
            eventually(SOON, || cluster.kernel(node, false).is_ok_and(|now| now.nft != before.nft));
        }
        both(&cluster, far_by_vip)?;
    }
    Ok(())
}
