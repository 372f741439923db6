//! What the nodes report of each VIP: who holds it, and who else uses it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use shared::Vip;

use crate::model::Observed;

/// For how long two nodes may say that they hold a VIP while it moves: one of them reports late,
/// or is gone and was not noticed yet.
const MOVES_WITHIN: Duration = Duration::from_mins(2);

/// What is reported, by VIP. Nodes that do not exist do not count.
#[derive(Debug, Default)]
pub(super) struct Reported<'a> {
    holders: BTreeMap<Vip, Vec<Holder<'a>>>,
    conflicts: BTreeMap<Vip, Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
struct Holder<'a> {
    ready: bool,
    since: Timestamp,
    node: &'a str,
}

impl<'a> Reported<'a> {
    pub(super) fn new(observed: &'a Observed) -> Self {
        let mut all = Self::default();
        for node in &observed.nodes {
            let Some(report) = observed.reports.get(&node.name) else { continue };
            for (&vip, &since) in &report.holds {
                let holder = Holder { ready: node.ready, since, node: &node.name };
                all.holders.entry(vip).or_default().push(holder);
            }
            for (&vip, seen) in &report.conflicts {
                let text = format!("Node {}: {seen}", node.name);
                all.conflicts.entry(vip).or_default().push(text);
            }
        }
        for holders in all.holders.values_mut() {
            holders.sort_by_key(|of| (Reverse((of.ready, of.since)), of.node));
        }
        all.conflicts.values_mut().for_each(|texts| texts.sort());
        all
    }

    /// The nodes that have the address; the first of them counts: a ready one, and the one that got
    /// it last. A node that lost its power cannot take back what it reported. Others only if they
    /// are ready and it is not just that the VIP moves.
    pub(super) fn holders(&self, vip: Vip, now: Timestamp) -> Vec<&'a str> {
        let holders = self.holders.get(&vip).map(Vec::as_slice).unwrap_or_default();
        let Some((first, others)) = holders.split_first() else { return Vec::new() };
        let lasts = first.since + MOVES_WITHIN <= now;
        let others = others.iter().filter(|other| lasts && other.ready);
        [first].into_iter().chain(others).map(|holder| holder.node).collect()
    }

    /// What nodes have seen of other machines that use the VIP, with the nodes' names.
    pub(super) fn conflicts(&mut self, vip: Vip) -> Vec<String> {
        self.conflicts.remove(&vip).unwrap_or_default()
    }
}
