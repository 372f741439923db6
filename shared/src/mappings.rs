//! What a valid set of mappings is: which pod leaves with which VIP, under which route id.

mod claims;
mod expected;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

pub use self::expected::Expected;
pub use self::store::{Change, Content, Effect, Incomplete, MappingsStore};
use crate::config_map::VipBlocks;
use crate::{ClusterNetworks, PodIp, RouteId, Vip};

/// VIPs, pods and networks that fit together.
///
/// # Guarantees
/// - No two VIPs share a route id.
/// - No VIP is a node's address or lies in a pod or service subnet.
/// - A pod's VIP is of the pod's family; no pod IP is a node's address or one of the VIPs.
///
/// A pod may name a VIP that is not among [`vips`](Self::vips): its external traffic is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    vips: BTreeMap<Vip, RouteId>,
    pods: BTreeMap<PodIp, Option<Vip>>,
    networks: ClusterNetworks,
    blocks: BTreeMap<Vip, VipBlocks>,
}

impl Mappings {
    /// What of the given entries fits together, and why the rest does not.
    ///
    /// Of VIPs with one route id the lowest address keeps it. A pod whose VIP is of the other
    /// family is held; every other entry that breaks a guarantee is left out.
    pub fn new(
        vips: impl IntoIterator<Item = (Vip, RouteId)>,
        pods: impl IntoIterator<Item = (PodIp, Option<Vip>)>,
        networks: ClusterNetworks,
    ) -> (Self, Vec<Violation>) {
        let (vips, mut violations) = fitting_vips(vips.into_iter().collect(), &networks);
        let mut mappings = Self { vips, networks, ..Self::default() };
        for (pod, vip) in pods {
            if let Some(violation) = mappings.violation_of_pod(pod) {
                violations.push(violation);
                continue;
            }
            let checked = vip.map(|vip| same_family(pod, vip)).transpose();
            mappings.pods.insert(pod, checked.unwrap_or(None));
            violations.extend(checked.err());
        }
        (mappings, violations)
    }

    /// The same with these blocks of VIPs' ports.
    #[must_use]
    pub fn with_blocks(mut self, blocks: BTreeMap<Vip, VipBlocks>) -> Self {
        self.blocks = blocks;
        self
    }

    /// The VIPs that pods can use, and the route id of each.
    pub fn vips(&self) -> &BTreeMap<Vip, RouteId> {
        &self.vips
    }

    /// The mapped pods, each with its VIP; `None` holds the pod: its external traffic is dropped.
    pub fn pods(&self) -> &BTreeMap<PodIp, Option<Vip>> {
        &self.pods
    }

    /// The cluster's own networks.
    pub fn networks(&self) -> &ClusterNetworks {
        &self.networks
    }

    /// The VIPs of which nodes have blocks, or had them: the direct path is or was theirs, and as
    /// long as a VIP is named here its holder translates with ports that are in no block. It may be a
    /// VIP without a route id.
    pub fn blocks(&self) -> &BTreeMap<Vip, VipBlocks> {
        &self.blocks
    }

    /// Every VIP that pods name and that has no route id, in ascending order.
    ///
    /// Looks at every pod each time: for reports, not for the path of a change.
    pub fn problems(&self) -> Vec<Problem> {
        let mut waiting: BTreeMap<Vip, Vec<PodIp>> = BTreeMap::new();
        for (&pod, &vip) in &self.pods {
            if let Some(vip) = vip.filter(|vip| !self.vips.contains_key(vip)) {
                waiting.entry(vip).or_default().push(pod);
            }
        }
        waiting.into_iter().map(|(vip, pods)| Problem { vip, pods }).collect()
    }

    fn violation_of_pod(&self, pod: PodIp) -> Option<Violation> {
        if self.networks.node_addresses().contains(&pod.addr()) {
            return Some(Violation::PodIsNode { pod });
        }
        let vip = Vip::try_from(pod.addr()).ok()?;
        self.vips.contains_key(&vip).then_some(Violation::PodIsVip { pod })
    }
}

/// A VIP that pods name although no VIP of that address has a route id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The address they name.
    pub vip: Vip,
    /// The pods whose external traffic is dropped for it, ascending, at least one.
    pub pods: Vec<PodIp>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let Self { vip, pods } = self;
        write!(f, "VIP {vip} has no route id, so external traffic is dropped for ")?;
        for (position, pod) in pods.iter().take(SHOWN).enumerate() {
            write!(f, "{}{pod}", if position == 0 { "" } else { ", " })?;
        }
        if pods.len() > SHOWN {
            write!(f, " and {} more", pods.len() - SHOWN)?;
        }
        write!(f, "; give the VIP a route id or map the pods to another VIP")
    }
}

/// How an entry breaks a guarantee of [`Mappings`], and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Violation {
    #[error("route id {route_id} of VIP {vip} belongs to VIP {by}; give it a free one")]
    RouteIdTaken { vip: Vip, route_id: RouteId, by: Vip },
    #[error("VIP {vip} is the address of a node; choose an address that no host has")]
    VipIsNode { vip: Vip },
    #[error("VIP {vip} lies in pod subnet {net}; choose an address outside the cluster's networks")]
    VipInPodSubnet { vip: Vip, net: IpNet },
    #[error(
        "VIP {vip} lies in service subnet {net}; choose an address outside the cluster's networks"
    )]
    VipInServiceSubnet { vip: Vip, net: IpNet },
    #[error("pod IP {pod} is the address of a node; map only pods that have their own address")]
    PodIsNode { pod: PodIp },
    #[error("pod IP {pod} is itself a VIP; remove the one or the other")]
    PodIsVip { pod: PodIp },
    #[error(
        "pod {pod} is held because VIP {vip} is of the other address family; map it to a VIP of its \
         own family, or to an empty value to hold it"
    )]
    OtherFamily { pod: PodIp, vip: Vip },
}

impl Violation {
    /// The VIP that is left out; `None` if it is about a pod.
    fn vip(self) -> Option<Vip> {
        match self {
            Self::RouteIdTaken { vip, .. }
            | Self::VipIsNode { vip }
            | Self::VipInPodSubnet { vip, .. }
            | Self::VipInServiceSubnet { vip, .. } => Some(vip),
            Self::PodIsNode { .. } | Self::PodIsVip { .. } | Self::OtherFamily { .. } => None,
        }
    }
}

/// The VIP, if the pod can leave with it.
pub(crate) fn same_family(pod: PodIp, vip: Vip) -> Result<Vip, Violation> {
    if pod.is_ipv4() == vip.is_ipv4() { Ok(vip) } else { Err(Violation::OtherFamily { pod, vip }) }
}

fn fitting_vips(
    declared: BTreeMap<Vip, RouteId>,
    networks: &ClusterNetworks,
) -> (BTreeMap<Vip, RouteId>, Vec<Violation>) {
    let mut owners: BTreeMap<RouteId, Vip> = BTreeMap::new();
    let mut violations = Vec::new();
    let mut vips = BTreeMap::new();
    for (vip, route_id) in declared {
        if let Some(violation) = misplaced(vip, networks) {
            violations.push(violation);
        } else if let Some(&by) = owners.get(&route_id) {
            violations.push(Violation::RouteIdTaken { vip, route_id, by });
        } else {
            owners.insert(route_id, vip);
            vips.insert(vip, route_id);
        }
    }
    (vips, violations)
}

fn misplaced(vip: Vip, networks: &ClusterNetworks) -> Option<Violation> {
    let holds = |net: &&IpNet| net.contains(&vip.addr());
    if networks.node_addresses().contains(&vip.addr()) {
        return Some(Violation::VipIsNode { vip });
    }
    if let Some(&net) = networks.pod_subnets().iter().find(holds) {
        return Some(Violation::VipInPodSubnet { vip, net });
    }
    let net = *networks.service_subnets().iter().find(holds)?;
    Some(Violation::VipInServiceSubnet { vip, net })
}

/// Every address that no pod can have.
fn taken_addresses(mappings: &Mappings) -> BTreeSet<PodIp> {
    let nodes = mappings.networks.node_addresses().iter().copied();
    let vips = mappings.vips.keys().map(|vip| vip.addr());
    nodes.chain(vips).filter_map(|addr| PodIp::try_from(addr).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_named() {
        let [a, b, node, inside] = ["192.168.0.1", "192.168.0.2", "192.168.0.3", "10.0.0.9"]
            .map(|vip| vip.parse().unwrap());
        let id = RouteId::MIN;
        let networks = ClusterNetworks::default()
            .with_pod_subnets(["10.0.0.0/24".parse().unwrap()])
            .with_node_addresses([node].map(Vip::addr));
        let pod = |text: &str| text.parse::<PodIp>().unwrap();
        let pods = [
            (pod("10.0.0.1"), Some(b)),
            (pod("192.168.0.1"), None),
            (pod("192.168.0.3"), None),
            (pod("fd00::1"), Some(a)),
        ];
        let vips = [(b, id), (a, id), (node, RouteId::MAX), (inside, RouteId::MAX)];
        let (mappings, mut violations) = Mappings::new(vips, pods, networks);

        assert_eq!(mappings.vips(), &BTreeMap::from([(a, id)]));
        assert_eq!(
            mappings.pods(),
            &BTreeMap::from([(pod("10.0.0.1"), Some(b)), (pod("fd00::1"), None)])
        );
        assert_eq!(mappings.problems(), [Problem { vip: b, pods: vec![pod("10.0.0.1")] }]);
        let mut expected = [
            Violation::RouteIdTaken { vip: b, route_id: id, by: a },
            Violation::VipIsNode { vip: node },
            Violation::VipInPodSubnet { vip: inside, net: "10.0.0.0/24".parse().unwrap() },
            Violation::PodIsVip { pod: pod("192.168.0.1") },
            Violation::PodIsNode { pod: pod("192.168.0.3") },
            Violation::OtherFamily { pod: pod("fd00::1"), vip: a },
        ];
        violations.sort();
        expected.sort();
        assert_eq!(violations, expected);
    }

    #[test]
    fn a_problem_names_few_of_many_pods() {
        let pods = (1..=9).map(|n| format!("10.0.0.{n}").parse().unwrap()).collect();
        let problem = Problem { vip: "192.168.0.1".parse().unwrap(), pods };
        assert_eq!(
            problem.to_string(),
            "VIP 192.168.0.1 has no route id, so external traffic is dropped for 10.0.0.1, 10.0.0.2, \
             10.0.0.3 and 6 more; give the VIP a route id or map the pods to another VIP"
        );
    }
}
