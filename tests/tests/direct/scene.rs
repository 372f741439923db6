//! A cluster whose VIPs take the direct path, and what is to be seen of it on the LAN.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shared::Block;
use tests::{Capture, Cluster, Family, Flow, Host, Lab, vip};

pub(crate) const PORT: u16 = 7000;
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// By node, from the first: what it has of each VIP.
pub(crate) const BLOCKS: [&str; 3] = ["1", "2,7", "3,4,46"];
/// The blocks of node `number`, counted from 1.
pub(crate) fn blocks_of(number: usize) -> BTreeSet<Block> {
    BLOCKS[number - 1].split(',').map(|block| block.parse().unwrap()).collect()
}

/// The first pod of every node is mapped in both families, every node has blocks, and node 1 holds
/// both VIPs. No agent runs.
pub(crate) fn arranged(lab: Lab) -> Result<Cluster> {
    let mut cluster = Cluster::new(lab, PORT)?;
    cluster.arguments = vec!["--assume-direct"];
    for (family, route_id) in [(Family::V4, 64), (Family::V6, 65)] {
        let Cluster { lab, mappings, .. } = &mut cluster;
        mappings.set_vip(vip(family, 222), route_id)?;
        for node in 1..=lab.nodes().len() {
            mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
            mappings.set_blocks(vip(family, 222), lab.node(node), BLOCKS[node - 1])?;
        }
        lab.hold_vip(1, vip(family, 222))?;
    }
    Ok(cluster)
}

/// As [`arranged`], with agents that are ready.
pub(crate) fn direct() -> Result<Cluster> {
    let mut cluster = arranged(Lab::builder().pods_per_node(2).build()?)?;
    cluster.start_agents()?;
    Ok(cluster)
}

/// The node from which the frame of a flow came.
pub(crate) fn sender_of(lab: &Lab, flow: &Flow) -> Option<usize> {
    let [.., last] = flow.source_mac;
    let is_it = |node: &Host| node.v4.octets()[3] == last;
    lab.nodes().iter().position(is_it).map(|at| at + 1)
}

/// All that went from the VIP to `to` came from that node, with ports of its blocks; and it was some.
pub(crate) fn leaves_from(
    lab: &Lab,
    capture: &Capture,
    node: usize,
    vip: IpAddr,
    to: IpAddr,
) -> Result<()> {
    let mut seen = 0;
    for (flow, of) in capture.flows()? {
        let has_ports = matches!(flow.protocol, 6 | 17);
        if flow.destination != to || !has_ports {
            continue;
        }
        ensure!(flow.source == vip, "{to} saw {}:\n{}", flow.source, capture.text());
        ensure!(sender_of(lab, &flow) == Some(node), "not from node {node}:\n{}", capture.text());
        let block = Block::of_port(flow.source_port).context("a port of no block")?;
        ensure!(blocks_of(node).contains(&block), "block {block} is not its own");
        seen += of.packets;
    }
    ensure!(seen > 0, "nothing was seen:\n{}", capture.text());
    Ok(())
}

/// Every packet that left with the VIP had a port of a block of the node that sent it, or one of the
/// holder's.
pub(crate) fn no_port_of_others(lab: &Lab, capture: &Capture, vip: IpAddr) -> Result<()> {
    for flow in capture.flows()?.into_keys().filter(|flow| flow.source == vip) {
        let (6 | 17, Some(block)) = (flow.protocol, Block::of_port(flow.source_port)) else {
            continue;
        };
        let node = sender_of(lab, &flow).with_context(|| format!("{flow:?} of no node"))?;
        ensure!(blocks_of(node).contains(&block), "node {node}: {flow:?}");
    }
    Ok(())
}

/// A server of the scene, by family.
pub(crate) fn server(host: &Host, family: Family) -> SocketAddr {
    SocketAddr::new(host.ip(family), PORT)
}
