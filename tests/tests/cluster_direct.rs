//! A Vip of a real Kubernetes on the direct path: given blocks, proven, taken by pods of all nodes, not felt when the
//! holder changes, and left again.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shared::Block;
use tests::{
    Capture, Family, Flow, Host, Installation, Lab, TcpServer, Traffic, UdpServer, eventually, vip,
    wait_until,
};

const PORT: u16 = 9301;
const RATE: u32 = 200;
const SOON: Duration = Duration::from_secs(30);
const FEW: u64 = 20;

struct Bed {
    installation: Installation,
    pods: Vec<Host>,
    _servers: (UdpServer, TcpServer),
}

impl Bed {
    fn make() -> Result<Self> {
        let installation = Installation::start()?;
        let vip = Self::vip();
        installation.create_vip_of("direct", &format!("{{ip: \"{vip}\", path: Direct}}"))?;
        let spec =
            format!("{{ip: \"{vip}\", kind: pod, selector: {{matchLabels: {{app: direct}}}}}}");
        installation.create_egress("default", "direct", &spec)?;
        let cluster = installation.cluster();
        let pods = cluster.pod_on_each_node("direct")?;
        let outside = cluster.lab().outside();
        let servers = (UdpServer::start(outside, PORT)?, TcpServer::start(outside, PORT)?);
        installation.wait_for("default", "vip/direct", "condition=DirectPath")?;
        Ok(Self { installation, pods, _servers: servers })
    }

    fn vip() -> IpAddr {
        vip(Family::V4, 222)
    }

    fn lab(&self) -> &Lab {
        self.installation.cluster().lab()
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::new(self.lab().outside().ip(Family::V4), PORT)
    }

    fn sh(&self, line: &str) -> Result<String> {
        Ok(self.installation.sh(line)?.trim().to_owned())
    }

    /// A field of the Vip.
    fn field(&self, path: &str) -> Result<String> {
        self.sh(&format!("kubectl get vip direct -o jsonpath='{{{path}}}'"))
    }

    fn traffic(&self) -> Result<Traffic> {
        let pods: Vec<&Host> = self.pods.iter().collect();
        Traffic::start_with_downloads(&pods, self.server(), RATE)
    }

    /// How many packets to the server had which ports, and came from which nodes, by the last byte of their addresses.
    fn seen(&self, capture: &Capture) -> Result<Vec<(Flow, u64)>> {
        let to = self.server();
        let flows = capture.flows()?.into_iter();
        let wanted = flows
            .filter(|(flow, _)| flow.destination == to.ip() && flow.destination_port == to.port());
        Ok(wanted.map(|(flow, seen)| (flow, seen.packets)).collect())
    }
}

/// Hardly anything was lost (nothing, where a machine does not do all at once: see the program `direct`), and no session
/// has ended.
fn untouched(traffic: Traffic, what: &str) -> Result<()> {
    traffic.flows_within(SOON)?;
    for pod in traffic.stop()? {
        println!("{what}: {pod}");
        ensure!(pod.udp.lost <= FEW, "{what}: {pod}");
    }
    Ok(())
}

#[test]
fn pods_leave_from_their_own_nodes_and_the_holder_may_change_unnoticed() -> Result<()> {
    let bed = Bed::make()?;
    assert_eq!(bed.field(".status.path")?, "Direct");
    assert_eq!(bed.field(".status.blocks.nodes")?, "3");
    let blocks = bed
        .sh(&format!("kubectl get configmap vip-blocks-{} -o jsonpath='{{.data}}'", Bed::vip()))?;
    println!("{blocks}");

    // Each pod's packets leave from its own node, with ports that no other node uses.
    let capture = Capture::start(bed.lab())?;
    let traffic = bed.traffic()?;
    traffic.flows_within(SOON)?;
    let mut owners = BTreeMap::new();
    for (flow, _) in bed.seen(&capture)? {
        assert_eq!(flow.source, Bed::vip());
        let block = Block::of_port(flow.source_port).context("a port of no block")?;
        let sender = *owners.entry(block).or_insert(flow.source_mac);
        assert_eq!(sender, flow.source_mac, "two nodes use block {block}");
    }
    let senders: BTreeSet<_> = owners.into_values().collect();
    assert_eq!(senders.len(), 3, "pods of three nodes: {}", capture.text());

    // The holder's keepalived is replaced, its agent is killed, the VIP is moved by wish.
    let holder = bed.field(".status.holder")?;
    bed.sh(&format!(
        "kubectl delete pod -l name=kube-keepalived-vip --field-selector spec.nodeName={holder}"
    ))?;
    let moved = || bed.field(".status.holder").is_ok_and(|now| !now.is_empty() && now != holder);
    ensure!(wait_until(SOON, moved), "the VIP does not leave {holder}");
    untouched(traffic, "keepalived replaced")?;
    let traffic = bed.traffic()?;
    let holder = bed.field(".status.holder")?;
    let name =
        format!("kubectl get pod -l app=kube-egress --field-selector spec.nodeName={holder}");
    let name = bed.sh(&format!("{name} -o jsonpath='{{.items[0].metadata.name}}'"))?;
    bed.installation.container_of(&name)?.kill()?;
    traffic.flows_within(SOON)?;
    let other = if holder == "n1" { "n2" } else { "n1" };
    bed.sh(&format!(
        "kubectl patch vip direct --type merge -p '{{\"spec\":{{\"preferredNode\":\"{other}\"}}}}'"
    ))?;
    bed.installation.wait_for(
        "default",
        "vip/direct",
        &format!("jsonpath={{.status.holder}}={other}"),
    )?;
    untouched(traffic, "agent killed, VIP moved")?;
    capture.assert_only_source(Bed::vip(), bed.server().ip(), 1000);

    // The other path: sessions end as they began, new ones have ports of no block.
    let traffic = bed.traffic()?;
    bed.sh("kubectl patch vip direct --type merge -p '{\"spec\":{\"path\":\"ViaHolder\"}}'")?;
    eventually(SOON, || {
        capture.clear();
        let pod = &bed.pods[0];
        let asked = tests::whoami(pod, bed.server(), Duration::from_secs(2));
        let seen = bed.seen(&capture).unwrap_or_default();
        asked.is_ok_and(|seen_as| seen_as == Bed::vip())
            && seen.iter().any(|(flow, _)| Block::of_port(flow.source_port).is_none())
    });
    untouched(traffic, "path changed")?;
    capture.assert_only_source(Bed::vip(), bed.server().ip(), 1);
    let path = "jsonpath={.status.path}=ViaHolder";
    bed.installation.wait_for("default", "vip/direct", path)
}
