//! The direct path is taken once it is proven: that answers come back, through the holder, to the node.

use std::time::Duration;

use anyhow::{Result, ensure};
use shared::block::HOLDERS_PORTS;
use tests::{Agent, Capture, Cluster, Family, Lab, eventually, seen_as, vip};

use crate::scene::{arranged, leaves_from, sender_of, server};

const PROVEN_WITHIN: Duration = Duration::from_secs(20);
const ICMP_REQUESTS: [(u8, u16); 2] = [(1, 8), (58, 128)];

fn of_vip(agent: &Agent, metric: &str, family: Family) -> Option<f64> {
    let vip = vip(family, 222);
    agent.metric(&format!("egress_agent_direct_{metric}{{vip=\"{vip}\"}}")).ok()
}

fn await_proofs(cluster: &mut Cluster, nodes: impl IntoIterator<Item = usize>) -> Result<()> {
    for node in nodes {
        let agent = cluster.agent(node)?;
        for family in Family::ALL {
            eventually(PROVEN_WITHIN, || of_vip(agent, "proven", family) == Some(1.0));
        }
    }
    Ok(())
}

/// Agents that take nothing for granted.
fn unproven(lab: Lab) -> Result<Cluster> {
    let mut cluster = arranged(lab)?;
    cluster.arguments.clear();
    Ok(cluster)
}

/// What pods of the node send leaves from there with the VIP.
fn leave_directly(cluster: &Cluster, capture: &Capture, node: usize) -> Result<()> {
    let lab = &cluster.lab;
    for family in Family::ALL {
        capture.clear();
        let server = server(lab.outside(), family);
        assert_eq!(seen_as(lab.pod(node, 1), server)?, [vip(family, 222)]);
        leaves_from(lab, capture, node, vip(family, 222), lab.outside().ip(family))?;
    }
    Ok(())
}

/// It leaves from the holder, with the VIP and a port that is in no block.
fn leave_via_the_holder(cluster: &Cluster, capture: &Capture, node: usize) -> Result<()> {
    let lab = &cluster.lab;
    for family in Family::ALL {
        capture.clear();
        let (vip, to) = (vip(family, 222), lab.outside().ip(family));
        assert_eq!(seen_as(lab.pod(node, 1), server(lab.outside(), family))?, [vip]);
        let flows = capture.flows()?.into_keys();
        for flow in flows.filter(|flow| flow.destination == to && [6, 17].contains(&flow.protocol))
        {
            ensure!((flow.source, sender_of(lab, &flow)) == (vip, Some(1)), "{flow:?}");
            ensure!(HOLDERS_PORTS.contains(&flow.source_port), "{flow:?}");
        }
    }
    Ok(())
}

#[test]
fn every_node_proves_the_way_and_takes_it_the_holder_too() -> Result<()> {
    let mut cluster = unproven(Lab::builder().pods_per_node(1).build()?)?;
    let capture = Capture::start(&cluster.lab)?;
    cluster.start_agents()?;
    await_proofs(&mut cluster, 1..=3)?;
    let flows = capture.flows()?;
    for node in 1..=3 {
        for family in Family::ALL {
            let gateway = cluster.lab.router().ip(family);
            let probe = flows.keys().find(|flow| {
                (flow.source, flow.destination) == (vip(family, 222), gateway)
                    && ICMP_REQUESTS.contains(&(flow.protocol, flow.source_port))
                    && sender_of(&cluster.lab, flow) == Some(node)
            });
            assert!(probe.is_some(), "no probe of node {node}:\n{}", capture.text());
            let agent = cluster.agent(node)?;
            let blocks = crate::scene::blocks_of(node).len();
            let available = of_vip(agent, "ports_available", family);
            assert_eq!(available, Some(f64::from(u32::try_from(blocks)? * 1024)));
        }
        leave_directly(&cluster, &capture, node)?;
    }
    Ok(())
}

#[test]
fn where_the_network_drops_foreign_sources_pods_leave_via_the_holder() -> Result<()> {
    let mut cluster = unproven(Lab::builder().pods_per_node(1).build()?)?;
    let vips = Family::ALL.map(|family| vip(family, 222));
    let filter = format!(
        "table bridge port-security {{ chain in {{ type filter hook forward priority 0;
           iifname {{ n2, n3 }} ip saddr {} drop
           iifname {{ n2, n3 }} ip6 saddr {} drop
         }}; }}",
        vips[0], vips[1]
    );
    cluster.lab.lan().run_with_input(&["nft", "-f", "-"], &filter)?;
    let capture = Capture::start(&cluster.lab)?;
    cluster.start_agents()?;
    for node in 2..=3 {
        let agent = cluster.agent(node)?;
        eventually(PROVEN_WITHIN, || agent.log().matches("no answer from").count() >= 2);
        for family in Family::ALL {
            assert_eq!(of_vip(agent, "proven", family), Some(0.0));
        }
        leave_via_the_holder(&cluster, &capture, node)?;
    }
    cluster.lab.lan().sh("nft delete table bridge port-security")?;
    await_proofs(&mut cluster, 1..=3)?;
    for node in 1..=3 {
        leave_directly(&cluster, &capture, node)?;
    }
    Ok(())
}

#[test]
fn who_is_asked_may_be_named() -> Result<()> {
    let mut cluster = unproven(Lab::builder().nodes(2).pods_per_node(1).build()?)?;
    let router = cluster.lab.router();
    router.set_sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
    router.set_sysctl("net/ipv6/icmp/echo_ignore_all", "1")?;
    // One on the link, one behind the gateway.
    cluster.arguments = vec!["--prove-with", "192.168.122.64,fd00:203::64"];
    cluster.start_agents()?;
    await_proofs(&mut cluster, 1..=2)
}
