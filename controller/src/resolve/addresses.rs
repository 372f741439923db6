//! Which pod an address belongs to.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use shared::PodIp;

use crate::model::Pod;

/// The addresses of the pods that can send, each with the one pod it belongs to.
pub(super) struct Addresses<'a>(HashMap<PodIp, &'a Pod>);

impl<'a> Addresses<'a> {
    /// Of two pods with one address the newer has it: what the older had was given away.
    pub(super) fn new(pods: &'a [Arc<Pod>], nodes: &BTreeSet<IpAddr>) -> Self {
        let mut owners: HashMap<PodIp, &Pod> = HashMap::with_capacity(pods.len());
        for pod in pods.iter().map(|pod| &**pod).filter(|pod| can_be_mapped(pod)) {
            for ip in pod.ips.iter().filter(|ip| !nodes.contains(&ip.addr())) {
                let owner = owners.entry(*ip).or_insert(pod);
                if (pod.created, &pod.uid) > (owner.created, &owner.uid) {
                    *owner = pod;
                }
            }
        }
        Self(owners)
    }

    /// The pod with that address.
    pub(super) fn owner(&self, addr: IpAddr) -> Option<&'a Pod> {
        self.0.get(&PodIp::try_from(addr).ok()?).copied()
    }

    /// The addresses that are the pod's own.
    pub(super) fn of(&self, pod: &'a Pod) -> impl Iterator<Item = PodIp> {
        let is_its = |ip: &PodIp| self.0.get(ip).is_some_and(|owner| std::ptr::eq(*owner, pod));
        pod.ips.iter().copied().filter(is_its)
    }
}

/// Whether the pod sends with an address of its own, or will.
pub(super) fn can_be_mapped(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}
