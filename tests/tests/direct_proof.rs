//! The direct path is proven by the running agent: outside sees its probes, and metrics what came of them.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use tests::{Agent, Capture, Family, Host, Lab, MappingsDir, eventually};

const SOON: Duration = Duration::from_secs(20);
const ECHO_REQUEST: [(u8, u16); 2] = [(1, 8), (58, 128)];

fn vips() -> [(IpAddr, u8); 2] {
    [([192, 168, 122, 222].into(), 64), ([0xfd00, 0x122, 0, 0, 0, 0, 0, 0x222].into(), 66)]
}

fn key(vip: IpAddr) -> String {
    vip.to_string().replace(':', "-")
}

/// Node 1 has block 3 of both VIPs, which node 2 holds.
fn mappings_of(lab: &Lab) -> Result<MappingsDir> {
    let mut mappings = MappingsDir::of(lab)?;
    for (vip, id) in vips() {
        mappings.set_vip(vip, id)?;
        mappings.map(lab.pod(1, 1).ip(Family::of(vip)), vip)?;
        let node = lab.node(1);
        let blocks = format!("3 via {}", node.ip(Family::of(vip)));
        mappings.set(&format!("vip-blocks-{}", key(vip)), &node.name, &blocks)?;
        lab.hold_vip(2, vip)?;
    }
    Ok(mappings)
}

/// What an agent of the holder does for echoes with ids of block 3.
fn pass_on(holder: &Host, node: &Host) -> Result<()> {
    let [(v4, _), (v6, _)] = vips();
    let (to_v4, to_v6) = (node.ip(Family::V4), node.ip(Family::V6));
    let rules = format!(
        "table netdev lab {{ chain in {{ type filter hook ingress device \"eth0\" priority 0;
           ip daddr {v4} icmp type echo-reply icmp id 3072-4095 fwd ip to {to_v4} device \"eth0\"
           ip6 daddr {v6} icmpv6 type echo-reply icmpv6 id 3072-4095 fwd ip6 to {to_v6} device \"eth0\"
         }}; }}"
    );
    holder.run_with_input(&["nft", "-f", "-"], &rules).map(drop)
}

fn proven(agent: &Agent, vip: IpAddr) -> bool {
    agent.metric(&format!("egress_agent_direct_proven{{vip=\"{vip}\"}}")).is_ok_and(|n| n == 1.0)
}

fn probed(capture: &Capture, vip: IpAddr, target: IpAddr) -> Result<bool> {
    let flows = capture.flows()?;
    Ok(flows.keys().any(|flow| {
        (flow.source, flow.destination) == (vip, target)
            && ECHO_REQUEST.contains(&(flow.protocol, flow.source_port))
    }))
}

#[test]
fn a_block_is_used_once_its_answers_come_back_through_the_holder() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
    let mappings = mappings_of(&lab)?;
    let capture = Capture::start(&lab)?;
    let mut agent = Agent::start(lab.node(1), mappings.path(), &[])?;
    agent.wait_ready()?;
    for (vip, _) in vips() {
        let told = format!("no answer from {}", lab.router().ip(Family::of(vip)));
        eventually(SOON, || agent.log().contains(&told));
        assert!(!proven(&agent, vip));
        assert_eq!(
            agent.metric(&format!("egress_agent_direct_ports_available{{vip=\"{vip}\"}}"))?,
            1024.0
        );
        assert!(probed(&capture, vip, lab.router().ip(Family::of(vip)))?, "{}", capture.text());
    }
    pass_on(lab.node(2), lab.node(1))?;
    for (vip, _) in vips() {
        eventually(SOON, || proven(&agent, vip));
    }
    assert!(agent.metric("egress_agent_probes_answered_total")? >= 2.0);
    agent.stop()
}

#[test]
fn who_answers_may_be_named() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
    let mappings = mappings_of(&lab)?;
    pass_on(lab.node(2), lab.node(1))?;
    lab.router().set_sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
    lab.router().set_sysctl("net/ipv6/icmp/echo_ignore_all", "1")?;
    let capture = Capture::start(&lab)?;
    // One on the link, one behind the gateway.
    let targets = [lab.outside().ip(Family::V4), lab.far().ip(Family::V6)];
    let named = format!("{},{}", targets[0], targets[1]);
    let mut agent = Agent::start(lab.node(1), mappings.path(), &["--prove-with", &named])?;
    agent.wait_ready()?;
    for ((vip, _), target) in vips().into_iter().zip(targets) {
        eventually(SOON, || proven(&agent, vip));
        assert!(probed(&capture, vip, target)?, "{}", capture.text());
    }
    agent.stop()
}
