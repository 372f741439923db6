//! What ours is compared with: forwarding over one node and over two with next to no rules, and the
//! rules that kube-egress makes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use tests::{Family, Host, Lab};

use crate::mapped::{ROUTE_ID, VIP, other_pod};

/// Which iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackEnd {
    Nft,
    Legacy,
}

impl BackEnd {
    const fn restore(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft-restore",
            Self::Legacy => "iptables-legacy-restore",
        }
    }
}

/// A rule on every node for packets with a mark that none has.
pub(crate) fn policy_rule(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.run_with_input(
            &["ip", "-batch", "-"],
            "rule add pref 1000 fwmark 0x1040/0x10ff lookup 100\n",
        )?;
    }
    Ok(())
}

/// All that pods of node 1 send outside goes to node 2, which gives it the VIP: one policy rule
/// and one translation, whatever the number of pods. Who holds what is fixed.
pub(crate) fn two_hops(lab: &Lab) -> Result<()> {
    let pods = lab.pod_subnet(Family::V4);
    let (node, holder) = (lab.node(1), lab.node(2));
    for node in lab.nodes() {
        loosen(node)?;
    }
    lab.hold_vip(2, VIP.into())?;
    node.run_with_input(
        &["ip", "-batch", "-"],
        &format!(
            "route add throw {pods} table 100
route add default via {VIP} dev eth0 onlink table 100
rule add pref 1000 from 10.244.1.0/24 lookup 100
"
        ),
    )?;
    let untouched = format!("-I POSTROUTING -s 10.244.1.0/24 ! -d {pods} -o eth0 -j ACCEPT");
    restore(node, BackEnd::Nft, "nat", &untouched)?;
    let translated =
        format!("-I POSTROUTING -s 10.244.1.0/24 ! -d {pods} -o eth0 -j SNAT --to-source {VIP}");
    restore(holder, BackEnd::Nft, "nat", &translated)
}

/// As kube-egress has it: on every node one rule in mangle PREROUTING for each pod, which marks
/// what does not go to pods or services; elsewhere a policy route to the holder; at the holder one
/// more rule for each pod in mangle FORWARD, and translation by mark.
pub(crate) fn kube_egress(
    lab: &Lab,
    back_end: BackEnd,
    pods: u32,
    chosen: &[Ipv4Addr],
) -> Result<()> {
    let (node, holder) = (lab.node(1), lab.node(2));
    let others = (0..pods.saturating_sub(u32::try_from(chosen.len())?)).map(other_pod);
    let pods: Vec<_> = others.chain(chosen.iter().map(|&pod| pod.into())).collect();
    let inside = [lab.pod_subnet(Family::V4), lab.service_subnet(Family::V4)];
    let mut marking = ":EGRESS -\n-A PREROUTING -j EGRESS\n".to_owned();
    for network in inside {
        let _ = writeln!(marking, "-A EGRESS -d {network} -j RETURN");
    }
    let mut passing = ":EGRESS_FWD -\n-A FORWARD -j EGRESS_FWD\n".to_owned();
    for pod in &pods {
        let mark = format!("-j MARK --set-mark {ROUTE_ID}");
        let _ = writeln!(marking, "-A EGRESS -s {pod} {mark}");
        let _ = writeln!(passing, "-A EGRESS_FWD -s {pod} -i eth0 -o eth0 {mark}");
    }
    for node in lab.nodes() {
        loosen(node)?;
    }
    restore(node, back_end, "mangle", &marking)?;
    restore(holder, back_end, "mangle", &(marking + &passing))?;
    let post =
        |then: &str| format!("-I POSTROUTING -o eth0 -m mark --mark {ROUTE_ID}/255 -j {then}");
    restore(node, back_end, "nat", &post("ACCEPT"))?;
    restore(holder, back_end, "nat", &post(&format!("SNAT --to-source {VIP}")))?;
    lab.hold_vip(2, VIP.into())?;
    node.sh(&format!("ip route add default via {VIP} dev eth0 onlink table {ROUTE_ID}"))?;
    node.sh(&format!("ip rule add fwmark {ROUTE_ID} table {ROUTE_ID}")).map(drop)
}

/// Packets of other nodes' pods may come in by the uplink.
fn loosen(node: &Host) -> Result<()> {
    for interface in ["eth0", "cni0", "flannel.1"] {
        node.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "2")?;
    }
    Ok(())
}

fn restore(node: &Host, back_end: BackEnd, table: &str, rules: &str) -> Result<()> {
    let input = format!("*{table}\n{rules}\nCOMMIT\n");
    // All namespaces share one lock file.
    node.run_with_input(&[back_end.restore(), "-w", "10", "-n"], &input).map(drop)
}
