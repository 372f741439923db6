//! What is ours goes, and can have other numbers; what is others' stays.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    Agent, Capture, Family, Host, Lab, MappingsDir, TcpServer, UdpProbe, UdpServer, eventually,
    whoami,
};

use crate::{PORT, SOON, here, mappings_of};

/// All that a node has of nftables, rules and routes, as other programs show it.
fn everything(node: &Host) -> Result<String> {
    let shown = [
        "nft -s list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
    ];
    let text: String = shown.iter().map(|line| node.sh(line)).collect::<Result<_>>()?;
    // Times pass, and neighbours come.
    let lines = text.lines().filter(|line| !line.contains("expires") && !line.contains("fe80"));
    Ok(lines.map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

#[test]
fn clean_up_removes_what_is_ours_and_nothing_else() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    let server = SocketAddr::new(lab.outside().ip(Family::V4), PORT);
    let _tcp = TcpServer::start(lab.outside(), PORT)?;
    for line in [
        "nft add table inet egress-others",
        "nft add table ip egress",
        "nft add chain ip egress c { type filter hook postrouting priority 0 ; }",
        "ip rule add pref 1070 fwmark 0x40/0x10ff lookup 20000 proto 70",
        "ip rule add pref 1071 from 10.99.0.0/16 lookup main",
        "ip route add 10.98.0.0/16 dev cni0 table 10070 proto 70",
        "ip route add unreachable 10.97.0.0/16 proto 69",
        "ip route add unreachable default metric 4278198272 table 20001 proto 69",
    ] {
        node.sh(line)?;
    }
    let mappings = mappings_of(&lab)?;
    let before = everything(node)?;
    // Nothing to remove yet: no agent has ever run.
    Agent::run(node, &["--cleanup"])?;
    assert_eq!(everything(node)?, before);

    for arguments in [
        &[][..],
        &[
            "--nft-table",
            "other",
            "--mark-mask",
            "0x1ff00000",
            "--rule-base",
            "500",
            "--table-base",
            "30000",
            "--route-protocol",
            "201",
        ],
    ] {
        let mut agent = Agent::start(node, mappings.path(), arguments)?;
        agent.wait_ready()?;
        assert_eq!(whoami(lab.pod(1, 1), server, SOON)?, here());
        agent.stop()?;
        assert_ne!(everything(node)?, before);
        let marked = if arguments.is_empty() { "64/4351" } else { "67108864/535822336" };
        let list = format!("conntrack -L -m {marked}");
        assert!(node.sh(&list)?.contains("dport=7000"), "a decision is bound to the connection");

        for _again in 0..2 {
            Agent::run(node, &[&["--cleanup"], arguments].concat())?;
            assert_eq!(everything(node)?, before);
            assert_eq!(node.sh(&list)?, "");
        }
        assert_eq!(whoami(lab.pod(1, 1), server, SOON)?, lab.node(1).ip(Family::V4));
    }
    Ok(())
}

#[test]
fn other_numbers_work_as_well() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
    let server = SocketAddr::new(lab.outside().ip(Family::V4), PORT);
    let _udp = UdpServer::start(lab.outside(), PORT)?;
    let _tcp = TcpServer::start(lab.outside(), PORT)?;
    let mut mappings = MappingsDir::of(&lab)?;
    mappings.set_vip(here(), 64)?;
    let pods = [lab.pod(1, 1), lab.pod(2, 1)];
    for pod in pods {
        mappings.map(pod.ip(Family::V4), here())?;
    }
    lab.hold_vip(1, here())?;
    let arguments = [
        "--nft-table",
        "my.egress",
        "--mark-mask",
        "0x1ff00000",
        "--rule-base",
        "500",
        "--table-base",
        "30000",
        "--route-protocol",
        "201",
    ];
    let mut agents = Vec::new();
    for node in lab.nodes() {
        let mut agent = Agent::start(node, mappings.path(), &arguments)?;
        agent.wait_ready()?;
        agents.push(agent);
    }
    let capture = Capture::start(&lab)?;
    for pod in pods {
        assert_eq!(whoami(pod, server, SOON)?, here(), "{}", pod.name);
        let probe = UdpProbe::start(pod, server, 200)?;
        eventually(SOON, || probe.received() >= 5);
    }
    capture.assert_only_source(here(), server.ip(), 10);
    let node = lab.node(2);
    assert_eq!(
        node.sh("nft list tables inet")?,
        "table inet my.egress-guard\ntable inet my.egress\n"
    );
    let rules = node.sh("ip rule")?;
    assert!(
        rules.contains("564:\tfrom all fwmark 0x14000000/0x1ff00000 lookup 30064 proto 201"),
        "{rules}"
    );
    let routes = node.sh("ip route show table 30064 proto 201")?;
    assert_eq!(routes.lines().count(), 2, "{routes}");
    let told = Agent::run(node, &[&["--dump-rules"], &arguments[..]].concat())?;
    assert!(
        told.contains("route id 64, elsewhere, table 30064, pods: 2") && !told.contains("notes"),
        "{told}"
    );
    Ok(())
}
