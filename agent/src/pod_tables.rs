//! What the kernel's maps know of pods, and how two such states differ.
//!
//! Two tables hold pods (see `ruleset`): the map that gives a pod its VIP, and the guard's set of
//! mapped pods. They are kept alike, but each is observed by itself: a stranger may change one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::{PodIp, Vip};

/// Every pod entry of both tables and both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTables {
    /// `pod_vip4` and `pod_vip6` of the main table: pod → VIP. `None` is a held pod; the kernel
    /// has the unspecified address there, which no VIP can be.
    pub vips: BTreeMap<PodIp, Option<Vip>>,
    /// `mapped4` and `mapped6` of the guard table.
    pub guarded: BTreeSet<PodIp>,
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
    /// Entries to remove from the guard table.
    pub unguard: Vec<PodIp>,
    /// Entries to add to the guard table.
    pub guard: Vec<PodIp>,
}

impl PodChanges {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { unmap, map, unguard, guard } = self;
        unmap.is_empty() && map.is_empty() && unguard.is_empty() && guard.is_empty()
    }

    /// Every pod whose VIP these changes touch.
    pub fn changed(&self) -> BTreeSet<PodIp> {
        self.unmap.iter().copied().chain(self.map.iter().map(|(pod, _)| *pod)).collect()
    }

    /// The changes of the main table, and those of the guard.
    pub fn split(self) -> (Self, Self) {
        let Self { unmap, map, unguard, guard } = self;
        (Self { unmap, map, ..Self::default() }, Self { unguard, guard, ..Self::default() })
    }
}

impl fmt::Display for PodChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unmap, map, unguard, guard } = self;
        write!(
            f,
            "change pods: {} mapped, {} unmapped, {} guarded, {} unguarded",
            map.len(),
            unmap.len(),
            guard.len(),
            unguard.len()
        )
    }
}

impl PodTables {
    /// What the tables hold after `changes`.
    pub fn apply(&mut self, changes: &PodChanges) {
        let PodChanges { unmap, map, unguard, guard } = changes;
        for pod in unmap {
            self.vips.remove(pod);
        }
        self.vips.extend(map.iter().copied());
        for pod in unguard {
            self.guarded.remove(pod);
        }
        self.guarded.extend(guard.iter().copied());
    }
}
