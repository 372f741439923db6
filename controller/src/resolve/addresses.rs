//! Which pod an address belongs to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use shared::PodIp;
use shared::config_map::NodeReport;

use crate::model::Pod;

/// The addresses of the pods that can send, each with the one pod it belongs to.
pub(super) struct Addresses<'a> {
    owners: HashMap<PodIp, &'a Pod>,
    reports: &'a BTreeMap<String, NodeReport>,
    /// By UID, of pods of which the API knows addresses: others that their nodes have learnt.
    moved: HashMap<&'a str, Vec<PodIp>>,
}

impl<'a> Addresses<'a> {
    /// Of two pods with one address the newer has it: what the older had was given away.
    pub(super) fn new(
        pods: &'a [Arc<Pod>],
        reports: &'a BTreeMap<String, NodeReport>,
        nodes: &BTreeSet<IpAddr>,
    ) -> Self {
        let mut owners = Owners::with_capacity(pods.len());
        let (mut moved, mut moved_to) = (HashMap::new(), Owners::new());
        let tell = reports.iter().filter(|(_, report)| !report.pods.is_empty());
        let tell: HashMap<&str, &NodeReport> = tell.map(|(name, of)| (name.as_str(), of)).collect();
        for pod in pods.iter().map(|pod| &**pod).filter(|pod| can_be_mapped(pod)) {
            for ip in ips(pod, reports).iter().filter(|ip| !nodes.contains(&ip.addr())) {
                give(&mut owners, *ip, pod);
            }
            let report = || tell.get(pod.node.as_deref()?);
            let Some(report) = report().filter(|_| !pod.ips.is_empty()) else { continue };
            let learnt = pod.uid.parse().ok().and_then(|uid| report.pods.get(&uid));
            let others = learnt.into_iter().flatten().filter(|ip| !pod.ips.contains(ip));
            let others: Vec<_> = others.filter(|ip| !nodes.contains(&ip.addr())).copied().collect();
            if !others.is_empty() {
                for ip in &others {
                    give(&mut moved_to, *ip, pod);
                }
                moved.insert(pod.uid.as_str(), others);
            }
        }
        for (ip, pod) in moved_to {
            owners.entry(ip).or_insert(pod);
        }
        Self { owners, reports, moved }
    }

    /// The pod with that address.
    pub(super) fn owner(&self, addr: IpAddr) -> Option<&'a Pod> {
        self.owners.get(&PodIp::try_from(addr).ok()?).copied()
    }

    /// The addresses that are the pod's own. One whose sandbox is made anew has another before the API
    /// knows: until then it has both.
    pub(super) fn of(&self, pod: &'a Pod) -> impl Iterator<Item = PodIp> {
        let is_its =
            |ip: &PodIp| self.owners.get(ip).is_some_and(|owner| std::ptr::eq(*owner, pod));
        let moved = self.moved.get(pod.uid.as_str()).into_iter().flatten();
        self.known(pod).iter().chain(moved).copied().filter(is_its)
    }

    /// The addresses that are known of the pod, its own or not.
    pub(super) fn known(&self, pod: &'a Pod) -> &'a [PodIp] {
        ips(pod, self.reports)
    }
}

type Owners<'a> = HashMap<PodIp, &'a Pod>;

fn give<'a>(owners: &mut Owners<'a>, ip: PodIp, pod: &'a Pod) {
    let owner = owners.entry(ip).or_insert(pod);
    if (pod.created, &pod.uid) > (owner.created, &owner.uid) {
        *owner = pod;
    }
}

/// What the API says of the pod or, while it says nothing, what the pod's own node does: that has
/// learnt them when they were assigned. No other node is asked.
fn ips<'a>(pod: &'a Pod, reports: &'a BTreeMap<String, NodeReport>) -> &'a [PodIp] {
    if !pod.ips.is_empty() {
        return &pod.ips;
    }
    let learnt = || {
        let report = reports.get(pod.node.as_ref()?)?;
        report.pods.get(&pod.uid.parse().ok()?)
    };
    learnt().map_or(&[], Vec::as_slice)
}

/// Whether the pod sends with an address of its own, or will.
pub(super) fn can_be_mapped(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}
