//! The rules for `iptables-restore`, nft and legacy alike.

use std::fmt::Write as _;

use anyhow::Result;

use super::{NodePort, Service, Subject};
use crate::host::Host;
use crate::lab::{CLUSTER_IP_PORT, Family, NODE_PORT, SERVICE_TARGET_PORT};

/// Loads them with that back end, `nft` or `legacy`.
pub(super) fn load(node: &Host, back_end: &str, subject: &Subject) -> Result<()> {
    let program = match subject.family {
        Family::V4 => format!("iptables-{back_end}-restore"),
        Family::V6 => format!("ip6tables-{back_end}-restore"),
    };
    let mut rules = render(subject);
    if !subject.kube_proxy {
        let others = rules.split_inclusive('\n').filter(|line| !line.contains("KUBE-"));
        rules = others.collect();
    }
    // All namespaces share one lock file.
    node.run_with_input(&[program.as_str(), "-w", "10"], &rules).map(drop)
}

fn render(subject: &Subject) -> String {
    let Subject { family, pods, own_pods, service, .. } = subject;
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let service = service.as_ref().map(services).unwrap_or_default();
    format!(
        "*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:KUBE-FORWARD -
:KUBE-NODEPORTS -
:FLANNEL-FWD -
-A INPUT -j KUBE-NODEPORTS
-A FORWARD -j KUBE-FORWARD
-A FORWARD -j FLANNEL-FWD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FLANNEL-FWD -s {pods} -j ACCEPT
-A FLANNEL-FWD -d {pods} -j ACCEPT
{filter}COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:KUBE-SERVICES -
:KUBE-NODEPORTS -
:KUBE-SVC -
:KUBE-SEP -
:KUBE-MARK-MASQ -
:KUBE-POSTROUTING -
:FLANNEL-POSTRTG -
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -j FLANNEL-POSTRTG
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s {own_pods} -d {pods} -j RETURN
-A FLANNEL-POSTRTG -s {pods} -d {own_pods} -j RETURN
-A FLANNEL-POSTRTG ! -s {pods} -d {own_pods} -j RETURN
-A FLANNEL-POSTRTG -s {pods} ! -d {multicast} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {pods} -d {pods} -j MASQUERADE --random-fully
{nat}COMMIT
",
        filter = service.filter,
        nat = service.nat(pods),
    )
}

#[derive(Default)]
struct ServiceRules {
    filter: String,
    nat: String,
}

impl ServiceRules {
    fn nat(&self, pods: &str) -> String {
        self.nat.replace("{pods}", pods)
    }
}

fn services(service: &Service) -> ServiceRules {
    let Service { cluster_ip, pod, node_port } = service;
    let target = match pod {
        std::net::IpAddr::V4(pod) => format!("{pod}:{SERVICE_TARGET_PORT}"),
        std::net::IpAddr::V6(pod) => format!("[{pod}]:{SERVICE_TARGET_PORT}"),
    };
    let mut rules = ServiceRules::default();
    rules.nat.push_str("-A KUBE-SVC ! -s {pods} -j KUBE-MARK-MASQ\n-A KUBE-SVC -j KUBE-SEP\n");
    let _ = writeln!(rules.nat, "-A KUBE-SEP -s {pod} -j KUBE-MARK-MASQ");
    for protocol in ["tcp", "udp"] {
        let _ = write!(
            rules.nat,
            "-A KUBE-SERVICES -d {cluster_ip} -p {protocol} --dport {CLUSTER_IP_PORT} -j KUBE-SVC
-A KUBE-SERVICES -p {protocol} --dport {NODE_PORT} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SEP -p {protocol} -j DNAT --to-destination {target}
"
        );
        if *node_port == NodePort::Dropped {
            let _ = writeln!(
                rules.filter,
                "-A KUBE-NODEPORTS -p {protocol} --dport {NODE_PORT} -j DROP"
            );
        }
    }
    rules.nat.push_str(match node_port {
        NodePort::Masqueraded => {
            "-A KUBE-NODEPORTS -j KUBE-MARK-MASQ\n-A KUBE-NODEPORTS -j KUBE-SEP\n"
        }
        NodePort::AsItIs => "-A KUBE-NODEPORTS -j KUBE-SEP\n",
        NodePort::Dropped => "",
    });
    rules
}
