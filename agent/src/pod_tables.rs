//! What the kernel's maps know of pods, and how two such states differ.
//!
//! Two tables hold pods (see `ruleset`): the map that gives a pod its VIP, and the guard's set of
//! mapped pods. They are kept alike, but each is observed by itself: a stranger may change one.
//! Beside the map are the addresses of this node's other pods, for when unknown ones are held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::{PodIp, Vip};

use crate::ruleset::TableNames;
use crate::unsure::Unsure;

/// One of the maps and sets that hold pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodSet {
    /// `map pod_vip4 { type ipv4_addr : ipv4_addr }` of the main table.
    Vip4,
    /// `map pod_vip6 { type ipv6_addr : ipv6_addr }` of the main table.
    Vip6,
    /// `set mapped4 { type ipv4_addr }` of the guard table.
    Mapped4,
    /// `set mapped6 { type ipv6_addr }` of the guard table.
    Mapped6,
    /// `set known4 { type ipv4_addr }` of the main table.
    Known4,
    /// `set known6 { type ipv6_addr }` of the main table.
    Known6,
    /// `set unsure4 { type ipv4_addr; flags timeout }` of the main table.
    Unsure4,
    /// `set unsure6 { type ipv6_addr; flags timeout }` of the main table.
    Unsure6,
    /// `set leaving4 { type ipv4_addr; flags timeout }` of the guard table.
    Leaving4,
    /// `set leaving6 { type ipv6_addr; flags timeout }` of the guard table.
    Leaving6,
}

impl PodSet {
    /// Those that hold what they should, or are put right. What is in others goes by itself.
    pub const ALL: [Self; 6] =
        [Self::Vip4, Self::Vip6, Self::Mapped4, Self::Mapped6, Self::Known4, Self::Known6];

    /// Its name in its table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vip4 => "pod_vip4",
            Self::Vip6 => "pod_vip6",
            Self::Mapped4 => "mapped4",
            Self::Mapped6 => "mapped6",
            Self::Known4 => "known4",
            Self::Known6 => "known6",
            Self::Unsure4 => "unsure4",
            Self::Unsure6 => "unsure6",
            Self::Leaving4 => "leaving4",
            Self::Leaving6 => "leaving6",
        }
    }

    /// The table it is in.
    pub fn table(self, names: &TableNames) -> &str {
        if self.is_main() { &names.main } else { &names.guard }
    }

    /// Whether it is in the main table; else it is in the guard.
    pub const fn is_main(self) -> bool {
        match self {
            Self::Vip4
            | Self::Vip6
            | Self::Known4
            | Self::Known6
            | Self::Unsure4
            | Self::Unsure6 => true,
            Self::Mapped4 | Self::Mapped6 | Self::Leaving4 | Self::Leaving6 => false,
        }
    }

    /// Whether its elements are pods of this node that are not mapped.
    pub const fn is_known(self) -> bool {
        matches!(self, Self::Known4 | Self::Known6)
    }

    /// Whether it maps pods to VIPs; else it is a set of pods.
    pub const fn is_map(self) -> bool {
        matches!(self, Self::Vip4 | Self::Vip6)
    }
}

/// An element that none of ours can be: its key is no pod IP, or its value no VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodStray {
    /// Where it is.
    pub set: PodSet,
    /// Its key as the kernel has it; empty is the catch-all element `*`.
    pub key: Vec<u8>,
}

/// Every pod entry of both tables and both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTables {
    /// `pod_vip4` and `pod_vip6` of the main table: pod → VIP. `None` is a held pod; the kernel
    /// has the unspecified address there, which no VIP can be.
    pub vips: BTreeMap<PodIp, Option<Vip>>,
    /// `mapped4` and `mapped6` of the guard table.
    pub guarded: BTreeSet<PodIp>,
    /// `known4` and `known6` of the main table.
    pub known: BTreeSet<PodIp>,
    /// What `unsure4` and `unsure6` of the main table amount to.
    pub unsure: [Unsure; 2],
    /// Whatever else somebody has put there.
    pub strays: BTreeSet<PodStray>,
}

/// What turns one [`PodTables`] into another, in one transaction.
///
/// A pod whose VIP changes is in `unmap` with its old and in `map` with its new value: removals
/// come before additions in the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodChanges {
    /// Entries to remove from the main table.
    pub unmap: Vec<PodIp>,
    /// Entries to add to the main table.
    pub map: Vec<(PodIp, Option<Vip>)>,
    /// Entries to remove from the guard table. For a moment they are in its sets of pods that are
    /// leaving.
    pub unguard: Vec<PodIp>,
    /// Entries to add to the guard table.
    pub guard: Vec<PodIp>,
    /// Entries to remove from the main table's known addresses.
    pub disown: Vec<PodIp>,
    /// Entries to add to the main table's known addresses.
    pub know: Vec<PodIp>,
    /// What becomes of unknown pods from now on.
    pub unsure: Option<Unsure>,
    /// Elements of somebody else's to remove.
    pub strays: Vec<PodStray>,
}

impl PodChanges {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { unmap, map, unguard, guard, disown, know, unsure, strays } = self;
        [unmap, unguard, guard, disown, know].into_iter().all(Vec::is_empty)
            && map.is_empty()
            && unsure.is_none()
            && strays.is_empty()
    }

    /// Every pod whose VIP these changes touch, or that becomes guarded: one that somebody else had
    /// mapped as it should be may have connections from before.
    pub fn changed(&self) -> BTreeSet<PodIp> {
        let mapped = self.map.iter().map(|(pod, _)| pod);
        self.unmap.iter().chain(mapped).chain(&self.guard).copied().collect()
    }

    /// The changes of the main table, and those of the guard.
    pub fn split(self) -> (Self, Self) {
        let Self { unmap, map, unguard, guard, disown, know, unsure, strays } = self;
        let (of_main, of_guard) = strays.into_iter().partition(|stray| stray.set.is_main());
        (
            Self { unmap, map, disown, know, unsure, strays: of_main, ..Self::default() },
            Self { unguard, guard, strays: of_guard, ..Self::default() },
        )
    }
}

impl fmt::Display for PodChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unmap, map, unguard, guard, disown, know, unsure, strays } = self;
        let mapped: BTreeSet<PodIp> = map.iter().map(|(pod, _)| *pod).collect();
        let gone: Vec<_> = unmap.iter().filter(|pod| !mapped.contains(pod)).collect();
        let to = map.iter().map(|(pod, vip)| match vip {
            Some(vip) => format!("{pod} to {vip}"),
            None => format!("{pod} to no VIP"),
        });
        let parts = [
            few("map", to),
            few("unmap", gone.into_iter()),
            few("guard", guard.iter()),
            few("unguard", unguard.iter()),
            few("know", know.iter()),
            few("disown", disown.iter()),
            unsure.map(|unsure| unsure.to_string()),
            (!strays.is_empty()).then(|| format!("remove {} elements not ours", strays.len())),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        write!(f, "change pods: {}", parts.join(", "))
    }
}

/// What is done to pods: they are named if they are few.
fn few<T: fmt::Display>(verb: &str, pods: impl ExactSizeIterator<Item = T>) -> Option<String> {
    const SHOWN: usize = 4;
    match pods.len() {
        0 => None,
        1..=SHOWN => {
            let names: Vec<_> = pods.map(|pod| pod.to_string()).collect();
            Some(format!("{verb} {}", names.join(", ")))
        }
        more => Some(format!("{verb} {more} pods")),
    }
}

/// How many elements each of [`PodSet::ALL`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCounts([usize; 6]);

impl PodCounts {
    /// In one of them; 0 for one that is not counted.
    pub fn of(&self, set: PodSet) -> usize {
        self.0.get(set as usize).copied().unwrap_or_default()
    }
}

impl PodTables {
    /// How many elements there are. Looks at each.
    pub fn counts(&self) -> PodCounts {
        let v4 = |pods: usize, all: usize| (pods, all - pods);
        // IPv4 sorts before IPv6.
        let (vip4, vip6) =
            v4(self.vips.keys().take_while(|pod| pod.is_ipv4()).count(), self.vips.len());
        let (mapped4, mapped6) =
            v4(self.guarded.iter().take_while(|pod| pod.is_ipv4()).count(), self.guarded.len());
        let (known4, known6) =
            v4(self.known.iter().take_while(|pod| pod.is_ipv4()).count(), self.known.len());
        let mut counts = [vip4, vip6, mapped4, mapped6, known4, known6];
        for stray in &self.strays {
            counts[stray.set as usize] += 1;
        }
        PodCounts(counts)
    }

    /// What the tables hold after `changes`.
    pub fn apply(&mut self, changes: &PodChanges) {
        let PodChanges { unmap, map, unguard, guard, disown, know, unsure, strays } = changes;
        for pod in unmap {
            self.vips.remove(pod);
        }
        self.vips.extend(map.iter().copied());
        for pod in unguard {
            self.guarded.remove(pod);
        }
        self.guarded.extend(guard.iter().copied());
        for pod in disown {
            self.known.remove(pod);
        }
        self.known.extend(know.iter().copied());
        if let Some(unsure) = unsure {
            self.unsure = [*unsure; 2];
        }
        for stray in strays {
            self.strays.remove(stray);
        }
    }
}
