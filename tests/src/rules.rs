//! The cluster's own rules on a node: masquerade as flannel writes it, a Service and its node port
//! as kube-proxy writes them, and a FORWARD chain that drops what is not the pods'.

use std::net::IpAddr;

use anyhow::Result;

use crate::host::Host;
use crate::lab::{Family, Lab, Masquerade, TrafficPolicy};

mod iptables;
mod native;

/// What the rules of one node and family are made from.
struct Subject {
    family: Family,
    /// The pods' network of the whole cluster.
    pods: &'static str,
    /// This node's part of it.
    own_pods: String,
    service: Option<Service>,
    /// Whether kube-proxy's rules are wanted, with a Service or without.
    kube_proxy: bool,
}

struct Service {
    cluster_ip: IpAddr,
    pod: IpAddr,
    /// The node port: forwarded with a mark for masquerade, as it is, or not at all.
    node_port: NodePort,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodePort {
    Masqueraded,
    AsItIs,
    Dropped,
}

/// Loads a node's rules, both families.
pub(crate) fn load(lab: &Lab, node: &Host) -> Result<()> {
    for family in Family::ALL {
        let subject = subject(lab, node, family);
        match lab.masquerade() {
            Masquerade::IptablesNft => iptables::load(node, "nft", &subject)?,
            Masquerade::IptablesLegacy => iptables::load(node, "legacy", &subject)?,
            Masquerade::Nft => native::load(node, &subject, true)?,
            Masquerade::None => native::load(node, &subject, false)?,
        }
    }
    Ok(())
}

fn subject(lab: &Lab, node: &Host, family: Family) -> Subject {
    let number = node.name.trim_start_matches('n');
    let own_pods = match family {
        Family::V4 => format!("10.244.{number}.0/24"),
        Family::V6 => format!("fd00:244:{number}::/64"),
    };
    let service = lab.service_pod().map(|pod| Service {
        cluster_ip: lab.cluster_ip(family),
        pod: pod.ip(family),
        node_port: match lab.traffic_policy() {
            TrafficPolicy::Cluster => NodePort::Masqueraded,
            TrafficPolicy::Local if pod.name.starts_with(&format!("p{number}-")) => {
                NodePort::AsItIs
            }
            TrafficPolicy::Local => NodePort::Dropped,
        },
    });
    Subject {
        family,
        pods: lab.pod_subnet(family),
        own_pods,
        service,
        kube_proxy: lab.has_kube_proxy(),
    }
}
