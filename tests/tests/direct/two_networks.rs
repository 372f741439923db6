//! A second network of nodes beside that of the VIP: nodes that are in both, and one that is in the
//! other alone.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use shared::block::HOLDERS_PORTS;
use tests::{
    Capture, Cluster, Family, Host, Lab, MoveOrder, UdpProbe, eventually, ping, seen_as, vip,
    wait_until, whoami,
};

use crate::scene::{BLOCKS, SOON, arranged, leaves_from, sender_of, server};

const HELD: &str = "egress_dropped_packets_total{table=\"egress\",reason=\"held\"}";
const PROVEN_WITHIN: Duration = Duration::from_secs(20);

/// The address in the second network of who has this one in the first.
fn second(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::from([192, 168, 123, address.octets()[3]]),
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[1] = 0x123;
            Ipv6Addr::from(segments).into()
        }
    }
}

/// The same machine, as it is known in the second network.
fn in_second(host: &Host) -> Result<Host> {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (second(host.v4.into()), second(host.v6.into())) else {
        bail!("{} has another address", host.name)
    };
    Ok(Host { v4, v6, ..host.clone() })
}

/// A second switch, `br1`, with the router on it as `lan2`.
fn second_switch(lab: &Lab) -> Result<()> {
    let (router, switch) = (lab.router(), lab.lan());
    switch.sh("ip link add br1 type bridge mcast_snooping 0 forward_delay 0")?;
    switch.sh("ip link set br1 up")?;
    cable(lab, router, "lan2", "router2")
}

/// Plugs a machine into the second switch, with addresses there.
fn cable(lab: &Lab, host: &Host, interface: &str, port: &str) -> Result<()> {
    let [.., last] = Lab::lan_mac(host);
    let Host { netns, .. } = host;
    let switch = lab.lan();
    // As everywhere: a frame says by its last byte who sent it.
    let mac = format!("02:00:c0:a8:7b:{last:02x}");
    switch.sh(&format!(
        "ip link add {port} type veth peer name {interface} address {mac} netns {netns}"
    ))?;
    switch.sh(&format!("ip link set {port} up master br1"))?;
    host.sh(&format!("ip link set {interface} up"))?;
    addresses(host, interface)
}

/// Its addresses in the second network.
fn addresses(host: &Host, interface: &str) -> Result<()> {
    let Host { v4, v6, .. } = in_second(host)?;
    host.sh(&format!("ip addr add {v4}/24 dev {interface}"))?;
    host.sh(&format!("ip addr add {v6}/64 dev {interface} nodad")).map(drop)
}

/// Everything outside is reached by the router's address in the second network.
fn by_second(lab: &Lab, node: &Host) -> Result<()> {
    for family in Family::ALL {
        let gateway = second(lab.router().ip(family));
        node.sh(&format!("ip route replace default via {gateway}"))?;
    }
    Ok(())
}

/// What reaches machines outside, over either network.
fn outside(lab: &Lab) -> Result<Capture> {
    Capture::on(&[(lab.outside(), "eth0"), (lab.router(), "lan"), (lab.router(), "lan2")])
}

/// Node 3 is in the second network alone. Agents find the uplinks of VIPs by themselves, or are told.
fn with_a_stranger(arguments: &[&'static str], find_uplinks: bool) -> Result<Cluster> {
    let mut cluster = arranged(Lab::builder().pods_per_node(2).build()?)?;
    cluster.arguments = arguments.to_vec();
    cluster.find_uplinks = find_uplinks;
    let lab = &cluster.lab;
    second_switch(lab)?;
    let stranger = lab.node(3).clone();
    lab.lan().sh("ip link set n3 master br1")?;
    stranger.sh("ip -4 addr flush dev eth0")?;
    stranger.sh("ip -6 addr flush dev eth0 scope global")?;
    addresses(&stranger, "eth0")?;
    by_second(lab, &stranger)?;
    let moved = in_second(&stranger)?;
    for family in Family::ALL {
        cluster.mappings.set_blocks(vip(family, 222), &moved, BLOCKS[2])?;
        let back = format!("ip route replace {} via {}", moved.ip(family), lab.router().ip(family));
        lab.outside().sh(&back)?;
    }
    cluster.start_agents()?;
    Ok(cluster)
}

/// Its mapped pod reaches nobody outside, and nobody sees it; all else goes on.
fn is_held(cluster: &Cluster) -> Result<()> {
    let lab = &cluster.lab;
    for family in Family::ALL {
        let (pod, other) = (lab.pod(3, 1), lab.pod(3, 2));
        for host in [lab.outside(), lab.far()] {
            let to = server(host, family);
            let seen = whoami(other, to, SOON)?;
            assert_eq!(seen, second(lab.node(3).ip(family)), "the network works");
            let capture = outside(lab)?;
            let probe = UdpProbe::start(pod, to, 500)?;
            eventually(SOON, || probe.sent() >= 100);
            assert!(whoami(pod, to, Duration::from_millis(200)).is_err());
            assert_eq!((ping(pod, to.ip(), 1)?, probe.stop()?.received), (0, 0));
            capture.assert_silent(to.ip());
        }
        for node in 1..=2 {
            let capture = Capture::start(lab)?;
            let (vip, to) = (vip(family, 222), server(lab.far(), family));
            assert_eq!(seen_as(lab.pod(node, 1), to)?, [vip]);
            leaves_from(lab, &capture, node, vip, to.ip())?;
        }
    }
    Ok(())
}

fn proven(cluster: &mut Cluster, node: usize, vip: IpAddr) -> Result<bool> {
    let metric = format!("egress_agent_direct_proven{{vip=\"{vip}\"}}");
    Ok(cluster.agent(node)?.metric(&metric)? > 0.0)
}

#[test]
fn pods_of_a_node_outside_the_network_of_the_vip_are_held_and_its_agent_says_so() -> Result<()> {
    for arguments in [&["--assume-direct"][..], &[]] {
        let mut cluster = with_a_stranger(arguments, true)?;
        for family in Family::ALL {
            for node in 1..=2 {
                let vip = vip(family, 222);
                eventually(PROVEN_WITHIN, || proven(&mut cluster, node, vip).unwrap_or_default());
            }
        }
        let before = cluster.agent(3)?.metric(HELD)?;
        is_held(&cluster)?;
        let agent = cluster.agent(3)?;
        assert!(agent.metric(HELD)? >= before + 400.0, "{arguments:?}");
        let log = agent.log();
        for family in Family::ALL {
            let vip = vip(family, 222);
            let said = format!(
                "VIP {vip}: no interface of this node is in the network of {vip}; name one with \
                 --interface; its pods here are held while it is elsewhere"
            );
            assert!(log.contains(&said), "{log}");
            assert!(!proven(&mut cluster, 3, vip)?);
        }
    }
    Ok(())
}

/// An operator has named an interface that does not lead to the VIP.
#[test]
fn an_interface_in_another_network_proves_nothing_and_nothing_leaks() -> Result<()> {
    let mut cluster = with_a_stranger(&[], false)?;
    let agent = cluster.agent(3)?;
    eventually(PROVEN_WITHIN, || agent.log().matches("no answer from").count() >= 2);
    is_held(&cluster)?;
    for family in Family::ALL {
        assert!(!proven(&mut cluster, 3, vip(family, 222))?);
    }
    Ok(())
}

/// All nodes are in both networks, and reach everything else by the second.
fn in_both(lab: Lab) -> Result<Cluster> {
    let mut cluster = arranged(lab)?;
    cluster.arguments.clear();
    cluster.find_uplinks = true;
    let lab = &cluster.lab;
    second_switch(lab)?;
    for node in lab.nodes() {
        cable(lab, node, "eth1", &format!("{}b", node.name))?;
        by_second(lab, node)?;
    }
    Ok(cluster)
}

/// What a pod sends leaves from its own node over an interface of either network, with the VIP and a
/// port of a block of that node; and is answered.
fn leaves_directly(cluster: &Cluster, pod: usize, of: impl Fn(Family) -> IpAddr) -> Result<()> {
    let lab = &cluster.lab;
    for family in Family::ALL {
        let vip = of(family);
        for host in [lab.outside(), lab.far()] {
            let to = server(host, family);
            for node in 1..=3 {
                let capture = Capture::on(&[
                    (lab.outside(), "eth0"),
                    (lab.router(), if host == lab.far() { "lan2" } else { "lan" }),
                ])?;
                let pod = lab.pod(node, pod);
                for _ in 0..4 {
                    assert_eq!(seen_as(pod, to)?, [vip], "{}", pod.name);
                    assert_eq!(whoami(pod, to, SOON)?, vip, "{}", pod.name);
                }
                assert_eq!(ping(pod, to.ip(), 3)?, 3, "{}", pod.name);
                capture.assert_only_source(vip, to.ip(), 4 * (3 + 4) + 3);
                leaves_from(lab, &capture, node, vip, to.ip())
                    .with_context(|| format!("{} to {to}", pod.name))?;
            }
        }
    }
    Ok(())
}

fn await_proofs(cluster: &mut Cluster, vips: &[IpAddr]) -> Result<()> {
    for vip in vips {
        for node in 1..=3 {
            let proven = || proven(cluster, node, *vip).unwrap_or_default();
            let proven = wait_until(PROVEN_WITHIN, proven);
            ensure!(proven, "{vip}, node {node}:\n{}", cluster.agent(node)?.log());
        }
    }
    Ok(())
}

/// Packets leave by the second network, answers come by the first, where the VIP is.
#[test]
fn answers_come_by_the_network_of_the_vip_when_packets_leave_by_another() -> Result<()> {
    let mut cluster = in_both(Lab::builder().pods_per_node(1).build()?)?;
    cluster.start_agents()?;
    await_proofs(&mut cluster, &Family::ALL.map(|family| vip(family, 222)))?;
    leaves_directly(&cluster, 1, |family| vip(family, 222))?;
    for family in Family::ALL {
        let vip = vip(family, 222);
        cluster.lab.move_vip(1, 2, vip, MoveOrder::BreakBeforeMake)?;
    }
    leaves_directly(&cluster, 1, |family| vip(family, 222))
}

/// A VIP of the second network, held by node 3, which second pods leave with.
fn second_vip(cluster: &mut Cluster) -> Result<[IpAddr; 2]> {
    let vips = Family::ALL.map(|family| second(vip(family, 222)));
    for ((family, vip), route_id) in Family::ALL.into_iter().zip(vips).zip([74, 75]) {
        let Cluster { lab, mappings, .. } = &mut *cluster;
        mappings.set_vip(vip, route_id)?;
        for node in 1..=3 {
            mappings.map(lab.pod(node, 2).ip(family), vip)?;
        }
        let (length, options) = match family {
            Family::V4 => (32, ""),
            Family::V6 => (128, "nodad preferred_lft 0"),
        };
        lab.node(3).sh(&format!("ip addr add {vip}/{length} dev eth1 {options}"))?;
    }
    Ok(vips)
}

#[test]
fn vips_of_both_networks_take_the_direct_path_at_once() -> Result<()> {
    let mut cluster = in_both(Lab::builder().pods_per_node(2).build()?)?;
    let vips = second_vip(&mut cluster)?;
    for vip in vips {
        for (node, blocks) in cluster.lab.nodes().to_vec().iter().zip(BLOCKS) {
            cluster.mappings.set_blocks(vip, &in_second(node)?, blocks)?;
        }
    }
    cluster.start_agents()?;
    await_proofs(&mut cluster, &Family::ALL.map(|family| vip(family, 222)))?;
    await_proofs(&mut cluster, &vips)?;
    leaves_directly(&cluster, 1, |family| vip(family, 222))?;
    leaves_directly(&cluster, 2, |family| second(vip(family, 222)))
}

/// What the node's packets to `far` leave with comes from that node, with ports of no block.
fn leaves_via(cluster: &Cluster, holder: usize, pod: &Host, vip: IpAddr) -> Result<()> {
    let (lab, capture) = (&cluster.lab, outside(&cluster.lab)?);
    let to = server(lab.far(), Family::of(vip));
    assert_eq!(seen_as(pod, to)?, [vip], "{}", pod.name);
    assert_eq!(whoami(pod, to, SOON)?, vip, "{}", pod.name);
    capture.assert_only_source(vip, to.ip(), 7);
    for flow in capture.flows()?.into_keys().filter(|flow| flow.destination == to.ip()) {
        ensure!(sender_of(lab, &flow) == Some(holder), "{}: {flow:?}", pod.name);
        ensure!(HOLDERS_PORTS.contains(&flow.source_port), "{}: {flow:?}", pod.name);
    }
    Ok(())
}

/// The cluster knows nodes by their addresses in the first network alone, so answers to what leaves with
/// the second one's VIP could not be passed on.
#[test]
fn a_vip_of_a_network_in_which_nodes_are_not_known_stays_on_the_path_of_the_holder() -> Result<()> {
    let mut cluster = in_both(Lab::builder().pods_per_node(2).build()?)?;
    let vips = second_vip(&mut cluster)?;
    for vip in vips {
        for (node, blocks) in cluster.lab.nodes().to_vec().iter().zip(BLOCKS) {
            cluster.mappings.set_blocks(vip, node, blocks)?;
        }
    }
    cluster.start_agents()?;
    for vip in vips {
        for node in 1..=3 {
            leaves_via(&cluster, 3, cluster.lab.pod(node, 2), vip)?;
        }
        for node in 1..=3 {
            let log = cluster.agent(node)?.log();
            let said = format!("VIP {vip}: answers are to be passed on to ");
            let line = log.lines().find(|line| line.contains(&said)).context("not said")?;
            assert!(line.contains("not an address of this node in the VIP's network"), "{line}");
            assert!(!proven(&mut cluster, node, vip)?);
        }
    }
    Ok(())
}

/// The router sends what is for the VIP to the holder's other address: it comes by an interface over
/// which the VIP is not reached, where nothing is passed on.
fn answers_come_by_the_other(lab: &Lab) -> Result<()> {
    for family in Family::ALL {
        let (vip, way) = (vip(family, 222), second(lab.node(1).ip(family)));
        lab.router().sh(&format!("ip route replace {vip} via {way} dev lan2"))?;
    }
    Ok(())
}

#[test]
fn answers_that_come_by_another_network_prove_nothing_and_pods_leave_via_the_holder() -> Result<()>
{
    let mut cluster = in_both(Lab::builder().pods_per_node(1).build()?)?;
    answers_come_by_the_other(&cluster.lab)?;
    cluster.start_agents()?;
    for node in 2..=3 {
        let agent = cluster.agent(node)?;
        eventually(PROVEN_WITHIN, || agent.log().matches("no answer from").count() >= 2);
        for family in Family::ALL {
            assert!(!proven(&mut cluster, node, vip(family, 222))?);
            leaves_via(&cluster, 1, cluster.lab.pod(node, 1), vip(family, 222))?;
        }
    }
    Ok(())
}

/// An operator has said that no proof is needed. Pods elsewhere get no answers; nothing leaks.
#[test]
fn answers_that_come_by_another_network_are_not_passed_on() -> Result<()> {
    let mut cluster = in_both(Lab::builder().pods_per_node(1).build()?)?;
    cluster.arguments.push("--assume-direct");
    cluster.start_agents()?;
    let lab = &cluster.lab;
    for family in Family::ALL {
        assert_eq!(seen_as(lab.pod(2, 1), server(lab.far(), family))?, [vip(family, 222)]);
    }
    answers_come_by_the_other(lab)?;
    for family in Family::ALL {
        let (vip, to) = (vip(family, 222), server(lab.far(), family));
        let capture = outside(lab)?;
        assert_eq!(whoami(lab.pod(1, 1), to, SOON)?, vip, "its own are answered");
        assert!(whoami(lab.pod(2, 1), to, Duration::from_millis(500)).is_err());
        capture.assert_only_source(vip, to.ip(), 5);
    }
    Ok(())
}
