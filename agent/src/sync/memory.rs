//! What the agent knows of the kernel, and what of it has to be looked at again.
//!
//! What was seen is kept, and what was done is added to it. Notices and time only say what may
//! have changed; a look then reads that and nothing else.

use std::collections::BTreeSet;

use shared::PodIp;

use crate::kernel::notifications::Notice;
use crate::kernel::{Kernel, KernelError};
use crate::kernel_state::{LoadedDigests, Observed, SeenTable};
use crate::node_facts::NodeFacts;
use crate::plan::{Step, TableChange, TablesChange};
use crate::pod_tables::PodSet;

/// Parts of the kernel that are looked at by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    /// Devices, addresses, networks.
    Facts,
    /// Policy rules and routes.
    Routing,
    /// The tables, but for their pods.
    Tables,
    /// The tables' pods: dear, when they are many.
    Pods,
    /// Reverse path filters.
    Filters,
}

impl View {
    const ALL: [Self; 5] = [Self::Facts, Self::Routing, Self::Tables, Self::Pods, Self::Filters];
}

/// What is known.
#[derive(Debug)]
pub(super) struct Memory {
    /// What the node is like.
    pub(super) facts: NodeFacts,
    /// What the kernel holds of ours.
    pub(super) observed: Observed,
    /// What the tables' rules were when we loaded them.
    pub(super) loaded: [LoadedDigests; 3],
    /// The only pods that may differ from what is desired; `None` when any may.
    pub(super) touched: Option<BTreeSet<PodIp>>,
    /// The interfaces whose reverse path filters were looked at.
    filters_seen: BTreeSet<String>,
    doubted: BTreeSet<View>,
    /// What hooks in at devices may be another without a transaction.
    link_changed: bool,
    /// Tables and pods were seen after this transaction of anybody's.
    generation: u32,
    /// In which set of which table the pods are that were seen, by their numbers.
    holders: [Option<(u64, u64)>; 6],
}

impl Default for Memory {
    /// Nothing.
    fn default() -> Self {
        Self {
            facts: NodeFacts::default(),
            observed: Observed::default(),
            loaded: Default::default(),
            touched: None,
            filters_seen: BTreeSet::new(),
            doubted: View::ALL.into(),
            link_changed: false,
            generation: 0,
            holders: [None; 6],
        }
    }
}

impl Memory {
    /// Takes in that these pods may differ from what is desired.
    pub(super) fn pods_changed(&mut self, pods: BTreeSet<PodIp>) {
        if let Some(touched) = &mut self.touched {
            touched.extend(pods);
        }
    }

    /// Takes in that the kernel holds all that is desired.
    pub(super) fn settled(&mut self) {
        if !self.doubted.contains(&View::Pods) {
            self.touched = Some(BTreeSet::new());
        }
    }

    /// Takes in what a notice says may have changed, and whether that is anything. `interface` is
    /// the one that leads to every VIP, if an operator said so.
    pub(super) fn doubt(&mut self, notice: &Notice, interface: Option<&str>) -> bool {
        if !self.matters(notice, interface) {
            return false;
        }
        let views: &[View] = match notice {
            Notice::Address { .. } | Notice::Networks | Notice::Routed { .. } => &[View::Facts],
            // Routes, settings and what hooks in at devices go with them, without a notice.
            Notice::Link { .. } | Notice::LinkGone { .. } => {
                &[View::Facts, View::Routing, View::Filters, View::Tables]
            }
            Notice::Routing => &[View::Routing],
            Notice::NetConf { .. } => &[View::Filters],
            Notice::Nftables { .. } => &[View::Tables],
            Notice::Elements { .. } => &[View::Pods],
            Notice::Overrun => &View::ALL,
        };
        self.doubted.extend(views);
        self.link_changed |= matches!(notice, Notice::Link { .. } | Notice::LinkGone { .. });
        true
    }

    /// All but what happens to pods' devices, which come and go all the time. One that is to matter
    /// later is told of again then, with its address or its route.
    fn matters(&self, notice: &Notice, interface: Option<&str>) -> bool {
        let (index, name) = match notice {
            Notice::Link { index, name, .. } => (index, Some(name.as_str())),
            Notice::LinkGone { index } => (index, None),
            _ => return true,
        };
        let before = self.facts.links.get(index).map(|link| link.device.name.as_str());
        let is_named = interface.is_some() && (name == interface || before == interface);
        is_named || self.facts.is_used(*index)
    }

    /// Has everything looked at again but pods: reading them takes long, and every change of them
    /// by others is told of, or that it was lost. What shows of them with the tables has to agree.
    pub(super) fn doubt_all(&mut self) {
        self.doubted.extend([View::Facts, View::Routing, View::Tables, View::Filters]);
    }

    /// Reads what is doubted, but for reverse path filters. Whether the node is another now.
    pub(super) async fn look(&mut self, kernel: &mut Kernel) -> Result<bool, KernelError> {
        let mut node_changed = false;
        if self.doubted.contains(&View::Facts) {
            let facts = kernel.node_facts().await?;
            node_changed = facts != self.facts;
            self.facts = facts;
            self.doubted.remove(&View::Facts);
        }
        if self.doubted.contains(&View::Routing) {
            self.observed.routing = kernel.observe_routing().await?;
            self.doubted.remove(&View::Routing);
        }
        let of_nftables = [View::Tables, View::Pods];
        if of_nftables.iter().any(|view| self.doubted.contains(view))
            && kernel.generation()? == self.generation
            && !std::mem::take(&mut self.link_changed)
        {
            // Nobody has changed any table since: whatever was told or lost was older.
            self.doubted.retain(|view| !of_nftables.contains(view));
        }
        if self.doubted.contains(&View::Tables) {
            self.look_at_tables(kernel)?;
            if self.contents_differ() {
                self.doubted.insert(View::Pods);
            }
        }
        if self.doubted.contains(&View::Pods) {
            self.touched = None;
            self.observed.pods = kernel.dump_pods()?;
            self.holders = PodSet::ALL.map(|set| self.holder(set));
            self.doubted.remove(&View::Pods);
        }
        Ok(node_changed)
    }

    /// Reads the reverse path filters of these interfaces, if any may have changed or was not
    /// looked at before.
    pub(super) fn look_at_filters(&mut self, kernel: &Kernel, interfaces: &BTreeSet<String>) {
        if self.doubted.remove(&View::Filters) || !interfaces.is_subset(&self.filters_seen) {
            self.observed.strict = kernel.strict(interfaces.iter());
            self.filters_seen.clone_from(interfaces);
        }
    }

    /// Takes in that a step was done, or failed, so that what it changes is no longer known.
    pub(super) fn remember(
        &mut self,
        step: &Step,
        done: bool,
        kernel: &mut Kernel,
    ) -> Result<(), KernelError> {
        match step {
            Step::Loosen(_) => self.doubted.extend([View::Filters]),
            Step::AddRoute(_)
            | Step::AddRule(_)
            | Step::DeleteRule(_)
            | Step::DeleteRoute(_)
            | Step::DeleteStray(_) => self.doubted.extend([View::Routing]),
            Step::ChangeTables(change) if done => self.tables_changed(change, kernel)?,
            Step::ChangeIngress(_) => {
                self.look_at_tables(kernel)?;
                if done {
                    let seen = self.observed.ingress.as_ref();
                    self.loaded[2] = seen.map(LoadedDigests::of).unwrap_or_default();
                } else {
                    self.generation = 0;
                    self.doubted.extend([View::Tables]);
                }
            }
            Step::ChangeTables(_) => {
                self.generation = 0;
                self.doubted.extend([View::Tables, View::Pods]);
            }
            Step::ChangePods(changes) if done => {
                self.observed.pods.apply(changes);
                // Else somebody else has changed something too: the next look finds out what.
                let next = self.generation.wrapping_add(1);
                if kernel.generation()? == next {
                    self.generation = next;
                }
            }
            Step::ChangePods(_) => {
                self.generation = 0;
                self.doubted.extend([View::Pods]);
            }
            Step::Rebind { places, .. } if done => self.observed.places = Some(places.clone()),
            Step::ForgetPods(_)
            | Step::ForgetUndecided { .. }
            | Step::ForgetHolder { .. }
            | Step::Keep(_)
            | Step::Rebind { .. } => {}
        }
        Ok(())
    }

    /// Looks at what was just loaded, to know it again.
    fn tables_changed(
        &mut self,
        change: &TablesChange,
        kernel: &mut Kernel,
    ) -> Result<(), KernelError> {
        self.look_at_tables(kernel)?;
        let TablesChange { main, guard } = change;
        let digests =
            |seen: &Option<SeenTable>| seen.as_ref().map(LoadedDigests::of).unwrap_or_default();
        let anew = |change: &Option<_>| matches!(change, Some(TableChange::Replace(_)));
        if main.is_some() {
            self.loaded[0] = digests(&self.observed.main);
        }
        if guard.is_some() {
            self.loaded[1] = digests(&self.observed.guard);
        }
        let pods = &mut self.observed.pods;
        if anew(main) {
            pods.vips.clear();
            pods.known.clear();
            pods.unsure = Default::default();
        }
        if anew(guard) {
            pods.guarded.clear();
        }
        let is_anew = |set: PodSet| anew(if set.is_main() { main } else { guard });
        pods.strays.retain(|stray| !is_anew(stray.set));
        for (at, set) in PodSet::ALL.into_iter().enumerate() {
            if is_anew(set) {
                self.holders[at] = self.holder(set);
            }
        }
        Ok(())
    }

    fn look_at_tables(&mut self, kernel: &mut Kernel) -> Result<(), KernelError> {
        let seen = kernel.look_at_tables()?;
        self.observed.main = seen.main;
        self.observed.guard = seen.guard;
        self.observed.ingress = seen.ingress;
        self.generation = seen.generation;
        self.doubted.remove(&View::Tables);
        Ok(())
    }

    /// Which set in which table it is that holds these pods, by their numbers.
    fn holder(&self, set: PodSet) -> Option<(u64, u64)> {
        let table = if set.is_main() { &self.observed.main } else { &self.observed.guard };
        let table = table.as_ref()?;
        Some((table.handle, table.contents.get(set.name())?.handle))
    }

    /// Whether the maps and sets that were just looked at cannot hold the pods that are remembered:
    /// they are others, or hold another number.
    fn contents_differ(&self) -> bool {
        let counts = self.observed.pods.counts();
        PodSet::ALL.into_iter().zip(self.holders).any(|(set, holder)| {
            let table = if set.is_main() { &self.observed.main } else { &self.observed.guard };
            let seen = table.as_ref().and_then(|table| table.contents.get(set.name()));
            let count = seen.and_then(|seen| seen.count);
            self.holder(set) != holder
                || count.is_some_and(|count| usize::try_from(count) != Ok(counts.of(set)))
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::node_facts::{Link, LocalAddress};
    use crate::routing::Device;

    /// 2 eth0, 3 spare (no address), 9 a pod's; all looked at.
    fn looked_at() -> Memory {
        let link = |index, name: &str| {
            let device = Device { index, name: name.to_owned() };
            (index, Link { device, up: true, loopback: false })
        };
        let address =
            |addr: &str, device| LocalAddress { addr: addr.parse().unwrap(), device, usable: true };
        let facts = NodeFacts {
            links: [link(2, "eth0"), link(3, "spare"), link(9, "veth9")].into(),
            addresses: [address("192.0.2.7", 2), address("fe80::2", 2), address("fe80::9", 9)]
                .into(),
            ..NodeFacts::default()
        };
        Memory { facts, doubted: BTreeSet::new(), ..Memory::default() }
    }

    #[rstest]
    #[case::uplink(2, "eth0", true)]
    #[case::of_a_pod(9, "veth9", false)]
    #[case::of_a_new_pod(10, "veth10", false)]
    #[case::named_by_the_operator(3, "spare", true)]
    #[case::gets_that_name(9, "spare", true)]
    #[case::had_that_name(3, "other", true)]
    fn only_devices_that_lead_somewhere_are_looked_at(
        #[case] index: u32,
        #[case] name: &str,
        #[case] expected: bool,
    ) {
        let mut memory = looked_at();
        let notice = Notice::Link { index, name: name.to_owned(), up: false };
        assert_eq!(memory.doubt(&notice, Some("spare")), expected);
        assert_eq!(!memory.doubted.is_empty(), expected);
        assert_eq!(memory.link_changed, expected);
    }

    #[rstest]
    #[case::uplink(2, true)]
    #[case::of_a_pod(9, false)]
    #[case::unknown(10, false)]
    fn what_goes_with_a_pod_is_not_looked_at(#[case] index: u32, #[case] expected: bool) {
        let mut memory = looked_at();
        assert_eq!(memory.doubt(&Notice::LinkGone { index }, None), expected);
        assert_eq!(!memory.doubted.is_empty(), expected);
    }
}
