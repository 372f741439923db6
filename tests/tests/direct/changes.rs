//! Blocks come and go, the path changes, proofs are missing: under traffic.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use shared::Block;
use shared::block::HOLDERS_PORTS;
use shared::config_map::blocks_of_vip;
use tests::{
    Capture, Cluster, Family, Lab, Traffic, UdpProbe, eventually, ping, seen_as, vip, wait_until,
    whoami,
};

use crate::scene::{BLOCKS, SOON, arranged, direct, sender_of, server};

const RATE: u32 = 300;

/// What new connections of a pod leave from, and with which ports. Others may talk to `outside`.
fn leaves_by(lab: &Lab, node: usize, family: Family) -> Result<(usize, Vec<u16>)> {
    let capture = Capture::start(lab)?;
    let outside = server(lab.far(), family);
    for _ in 0..4 {
        ensure!(seen_as(lab.pod(node, 1), outside)? == [vip(family, 222)]);
        ensure!(whoami(lab.pod(node, 1), outside, SOON)? == vip(family, 222));
    }
    ensure!(ping(lab.pod(node, 1), outside.ip(), 2)? == 2);
    let flows = capture.flows()?;
    let flows = flows.keys().filter(|flow| flow.destination == outside.ip());
    let flows: Vec<_> = flows.filter(|flow| matches!(flow.protocol, 6 | 17)).collect();
    let senders: Vec<_> = flows.iter().filter_map(|flow| sender_of(lab, flow)).collect();
    let one = senders.iter().all(|sender| Some(sender) == senders.first());
    ensure!(one && !senders.is_empty(), "{}", capture.text());
    Ok((senders[0], flows.iter().map(|flow| flow.source_port).collect()))
}

fn is_direct(lab: &Lab, node: usize, family: Family, blocks: &[u32]) -> Result<bool> {
    let (sender, ports) = leaves_by(lab, node, family)?;
    let of =
        |port: &u16| Block::of_port(*port).is_some_and(|b| blocks.contains(&b.number().into()));
    Ok(sender == node && ports.iter().all(of))
}

fn is_via_holder(lab: &Lab, node: usize, family: Family, holder: usize) -> Result<bool> {
    let (sender, ports) = leaves_by(lab, node, family)?;
    Ok(sender == holder && ports.iter().all(|port| HOLDERS_PORTS.contains(port)))
}

fn all_traffic(cluster: &Cluster, family: Family) -> Result<Traffic> {
    let lab = &cluster.lab;
    let pods = [lab.pod(1, 1), lab.pod(2, 1), lab.pod(3, 1)];
    Traffic::start(&pods, server(lab.outside(), family), RATE)
}

/// No session has broken, no packet was lost, and nothing but the VIP was seen.
fn unharmed(traffic: Traffic, capture: &Capture, vip: IpAddr, outside: IpAddr) -> Result<()> {
    let sent = traffic.udp_sent();
    for report in traffic.stop()? {
        assert_eq!((report.udp.lost, report.udp.refused), (0, 0), "{report}");
    }
    capture.assert_only_source(vip, outside, sent);
    Ok(())
}

#[test]
fn without_proof_and_without_blocks_pods_go_via_the_holder() -> Result<()> {
    let mut cluster = arranged(Lab::builder().pods_per_node(2).build()?)?;
    cluster.arguments.clear();
    // As networks do that know which address is whose: only the holder may send as the VIP.
    let filter = "table bridge filter {
  chain in { type filter hook prerouting priority 0;
    iifname { n2, n3 } ip saddr 192.168.122.222 counter drop
    iifname { n2, n3 } ip6 saddr fd00:122::de counter drop
  }
}
";
    cluster.lab.lan().run_with_input(&["nft", "-f", "-"], filter)?;
    cluster.start_agents()?;
    for family in Family::ALL {
        for node in 2..=3 {
            assert!(is_via_holder(&cluster.lab, node, family, 1)?, "not proven, node {node}");
        }
        // Nothing keeps the holder from sending as the VIP.
        eventually(SOON, || is_direct(&cluster.lab, 1, family, &[1]).unwrap_or_default());
        cluster.mappings.remove_blocks(vip(family, 222), &cluster.lab.node(2).clone())?;
        assert!(is_via_holder(&cluster.lab, 2, family, 1)?, "no blocks");
    }
    Ok(())
}

#[test]
fn nine_mark_bits_or_a_foreign_address_leave_a_node_on_the_path_of_the_holder() -> Result<()> {
    let mut cluster = arranged(Lab::builder().pods_per_node(1).build()?)?;
    cluster.arguments.extend(["--mark-mask", "0x000010ff"]);
    cluster.start_agent(3)?;
    cluster.arguments.truncate(1);
    let (other, own) = (cluster.lab.node(2).clone(), BLOCKS[1]);
    for family in Family::ALL {
        // Answers for node 2 would go to an address that is none of it.
        let value = format!("{own} via {}", vip(family, 99));
        let object = blocks_of_vip(vip(family, 222).try_into()?);
        cluster.mappings.set(&object, &other.name, &value)?;
    }
    cluster.start_agent(1)?;
    cluster.start_agent(2)?;
    for family in Family::ALL {
        assert!(is_direct(&cluster.lab, 1, family, &[1])?);
        for node in 2..=3 {
            assert!(is_via_holder(&cluster.lab, node, family, 1)?, "node {node}");
        }
    }
    let told =
        |log: &str, what: &str| log.contains("its pods go via its holder") && log.contains(what);
    assert!(told(&cluster.agent(2)?.log(), "not an address of this node"));
    assert!(told(&cluster.agent(3)?.log(), "--mark-mask"));
    Ok(())
}

#[test]
fn draining_blocks_serve_what_has_them_and_nothing_new() -> Result<()> {
    let mut cluster = direct()?;
    for family in Family::ALL {
        let (vip, node) = (vip(family, 222), cluster.lab.node(2).clone());
        let outside = cluster.lab.outside().ip(family);
        let capture = Capture::start(&cluster.lab)?;
        let traffic = all_traffic(&cluster, family)?;
        traffic.flows_within(SOON)?;
        cluster.mappings.set_blocks(vip, &node, "9 draining 2,7")?;
        eventually(SOON, || is_direct(&cluster.lab, 2, family, &[9]).unwrap_or_default());
        traffic.flows_within(SOON)?;
        // All of them draining: the path of the holder, as when the VIP's path is changed back.
        cluster.mappings.set_blocks(vip, &node, "draining 2,7,9")?;
        eventually(SOON, || is_via_holder(&cluster.lab, 2, family, 1).unwrap_or_default());
        traffic.flows_within(SOON)?;
        cluster.mappings.set_blocks(vip, &node, "2,7 draining 9")?;
        eventually(SOON, || is_direct(&cluster.lab, 2, family, &[2, 7]).unwrap_or_default());
        unharmed(traffic, &capture, vip, outside)?;
        cluster.mappings.set_blocks(vip, &node, BLOCKS[1])?;
    }
    Ok(())
}

/// What has a port of a block that is taken away is forgotten: it never leaves with that port again.
#[test]
fn a_block_that_is_taken_away_is_used_no_more() -> Result<()> {
    let mut cluster = direct()?;
    for family in Family::ALL {
        let (vip, lab) = (vip(family, 222), &cluster.lab);
        let (node, next) = (lab.node(2).clone(), lab.node(3).clone());
        let capture = Capture::start(lab)?;
        let probe = UdpProbe::start(lab.pod(2, 1), server(lab.outside(), family), RATE)?;
        eventually(SOON, || probe.received() > 50);
        cluster.mappings.set_blocks(vip, &node, "9")?;
        let lab = &cluster.lab;
        let of_others = || -> Result<bool> {
            capture.clear();
            let sent = probe.sent();
            eventually(SOON, || probe.sent() > sent + 100);
            let flows = capture.flows()?;
            let mut flows = flows.keys().filter(|flow| flow.source == vip);
            Ok(flows.any(|flow| {
                sender_of(lab, flow) == Some(2)
                    && Block::of_port(flow.source_port).is_some_and(|block| block.number() != 9)
            }))
        };
        assert!(wait_until(SOON, || of_others().is_ok_and(|of_others| !of_others)));
        // It may be another node's now.
        cluster.mappings.set_blocks(vip, &next, "2,7")?;
        eventually(SOON, || is_direct(&cluster.lab, 3, family, &[2, 7]).unwrap_or_default());
        let received = probe.received();
        eventually(SOON, || probe.received() > received + 100);
        assert_eq!(probe.stop()?.sources.into_keys().collect::<Vec<_>>(), [vip]);
        cluster.mappings.set_blocks(vip, &next, BLOCKS[2])?;
        cluster.mappings.set_blocks(vip, &node, BLOCKS[1])?;
    }
    Ok(())
}

/// The VIP's path is changed to the direct one while its holder has connections of all pods, whose
/// ports come to lie in blocks; and back again.
#[test]
fn connections_finish_as_they_began_when_the_path_changes() -> Result<()> {
    let mut cluster = arranged(Lab::builder().pods_per_node(2).build()?)?;
    for family in Family::ALL {
        for node in 1..=3 {
            let node = cluster.lab.node(node).clone();
            cluster.mappings.remove_blocks(vip(family, 222), &node)?;
        }
        // Without the object the VIP is on the path of the holder.
        cluster.mappings.remove_object(&blocks_of_vip(vip(family, 222).try_into()?))?;
    }
    // All of them in blocks.
    for pod in cluster.lab.pods() {
        pod.set_sysctl("net/ipv4/ip_local_port_range", "20000 49000")?;
    }
    cluster.start_agents()?;
    for family in Family::ALL {
        let vip = vip(family, 222);
        let outside = cluster.lab.outside().ip(family);
        let capture = Capture::start(&cluster.lab)?;
        let traffic = all_traffic(&cluster, family)?;
        traffic.flows_within(SOON)?;
        // Each block is somebody's, so whatever port the holder has used is.
        let all: Vec<Vec<String>> = (0..3)
            .map(|node| (1..=47).filter(|n| n % 3 == node).map(|n: u8| n.to_string()).collect())
            .collect();
        for (node, blocks) in (1..).zip(&all) {
            let node = cluster.lab.node(node).clone();
            cluster.mappings.set_blocks(vip, &node, &blocks.join(","))?;
        }
        for (node, blocks) in (1..).zip(&all) {
            let blocks: Vec<u32> = blocks.iter().map(|block| block.parse().unwrap()).collect();
            eventually(SOON, || is_direct(&cluster.lab, node, family, &blocks).unwrap_or_default());
        }
        traffic.flows_within(SOON)?;
        let before = capture.flows()?;
        let kept = before.keys().filter(|flow| {
            (flow.destination, flow.source) == (outside, vip)
                && sender_of(&cluster.lab, flow) == Some(1)
                && Block::of_port(flow.source_port).is_some()
        });
        assert!(kept.count() >= 3, "the holder used such ports:\n{}", capture.text());
        // And back.
        for (node, blocks) in (1..).zip(&all) {
            let node = cluster.lab.node(node).clone();
            let draining = format!("draining {}", blocks.join(","));
            cluster.mappings.set_blocks(vip, &node, &draining)?;
        }
        for node in 1..=3 {
            eventually(SOON, || is_via_holder(&cluster.lab, node, family, 1).unwrap_or_default());
        }
        unharmed(traffic, &capture, vip, outside)?;
        // What has ended is kept no more.
        let (set, node) = (if vip.is_ipv4() { "kept4" } else { "kept6" }, cluster.lab.node(1));
        let kept = || node.sh(&format!("nft list set netdev egress {set}"));
        assert!(kept()?.contains(&format!("{vip} . ")), "{}", kept()?);
        node.run(&["sh", "-c", "conntrack -F 2>/dev/null"])?;
        eventually(SOON * 3, || kept().is_ok_and(|list| !list.contains("elements")));
    }
    Ok(())
}
