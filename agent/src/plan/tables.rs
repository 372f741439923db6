//! What has to change in the nft tables, and when their pods are changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::PodIp;

use super::{Step, pod_changes};
use crate::desired::Desired;
use crate::kernel_state::{LoadedDigests, Observed, SeenHook, SeenTable};
use crate::pod_tables::{PodChanges, PodStray, PodTables};
use crate::ruleset::{Ruleset, Table};
use crate::unsure::Unsure;

/// Changes to both tables, in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesChange {
    /// Of the main table.
    pub main: Option<TableChange>,
    /// Of the guard table.
    pub guard: Option<TableChange>,
}

/// How a table becomes what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// Whatever is there goes, its pods included, and the table is made anew.
    Replace(Table),
    /// The maps stay as they are.
    Amend {
        /// Chains that are made if they are missing, and filled with exactly these rules.
        fill: Box<Table>,
        /// Chains that go.
        remove_chains: BTreeSet<String>,
        /// Maps and sets that somebody else has declared.
        remove_declared: BTreeSet<String>,
    },
}

impl TableChange {
    /// What makes `seen` into `wanted`; `None` when it is that already.
    pub(super) fn between(
        wanted: &Table,
        seen: Option<&SeenTable>,
        loaded: &LoadedDigests,
    ) -> Option<Self> {
        let Some(seen) = seen.filter(|seen| !seen.is_beyond_repair(wanted)) else {
            return Some(Self::Replace(wanted.clone()));
        };
        let Table { counters, declared, chains } = wanted;
        let fill = Table {
            counters: counters
                .iter()
                .copied()
                .filter(|name| !seen.counters.contains_key(*name))
                .collect(),
            declared: declared
                .iter()
                .filter(|(name, _)| !seen.declared.contains_key(name.as_ref()))
                .map(|(name, declared)| (name.clone(), *declared))
                .collect(),
            chains: seen
                .differing_chains(wanted, loaded)
                .filter_map(|name| chains.get_key_value(name))
                .map(|(name, chain)| (name.clone(), chain.clone()))
                .collect(),
        };
        let remove_chains: BTreeSet<String> =
            seen.surplus_chains(wanted).map(str::to_owned).collect();
        let remove_declared: BTreeSet<String> =
            seen.surplus_declared(wanted).map(str::to_owned).collect();
        let is_right =
            fill == Table::default() && remove_chains.is_empty() && remove_declared.is_empty();
        (!is_right).then(|| Self::Amend { fill: Box::new(fill), remove_chains, remove_declared })
    }

    /// Fills what is named, and removes nothing.
    pub(super) fn amend(fill: Table) -> Self {
        let (remove_chains, remove_declared) = (BTreeSet::new(), BTreeSet::new());
        Self::Amend { fill: Box::new(fill), remove_chains, remove_declared }
    }

    const fn replaces(change: Option<&Self>) -> bool {
        matches!(change, Some(Self::Replace(_)))
    }
}

impl TablesChange {
    /// A table that is there loses its pods.
    pub(super) fn empties_one_of(&self, observed: &Observed) -> bool {
        let Self { main, guard } = self;
        (TableChange::replaces(main.as_ref()) && observed.main.is_some())
            || (TableChange::replaces(guard.as_ref()) && observed.guard.is_some())
    }
}

impl fmt::Display for TableChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace(table) => write!(f, "make anew with {} chains", table.chains.len()),
            Self::Amend { fill, remove_chains, remove_declared } => {
                let declared = fill.declared.len() + fill.counters.len();
                let parts = [
                    few("fill", fill.chains.keys()),
                    (declared > 0).then(|| format!("declare {declared} maps or counters")),
                    few("remove", remove_chains.iter()),
                    (!remove_declared.is_empty())
                        .then(|| format!("remove {} maps", remove_declared.len())),
                ];
                let parts: Vec<_> = parts.into_iter().flatten().collect();
                f.write_str(&parts.join(", "))
            }
        }
    }
}

/// What is done to chains: they are named if they are few.
fn few<'a>(verb: &str, chains: impl ExactSizeIterator<Item = &'a String>) -> Option<String> {
    const SHOWN: usize = 4;
    match chains.len() {
        0 => None,
        1..=SHOWN => {
            let names: Vec<_> = chains.map(String::as_str).collect();
            let noun = if names.len() == 1 { "chain" } else { "chains" };
            Some(format!("{verb} {noun} {}", names.join(", ")))
        }
        more => Some(format!("{verb} {more} chains")),
    }
}

impl fmt::Display for TablesChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("change tables")?;
        if let Some(main) = &self.main {
            write!(f, "; main: {main}")?;
        }
        if let Some(guard) = &self.guard {
            write!(f, "; guard: {guard}")?;
        }
        Ok(())
    }
}

/// The pods that the steps of [`steps`] touch.
pub(super) struct Touched {
    /// Their VIP changes.
    pub(super) changed: BTreeSet<PodIp>,
    /// They were not guarded: something may have begun while nobody looked.
    pub(super) guarded: BTreeSet<PodIp>,
    /// After this many steps the guard is complete, and the main table is still to come.
    pub(super) guard_first: Option<usize>,
}

/// Whether a table that is not as it should be is asked all the same: one of another version is,
/// one that was switched off is not.
fn is_asked(seen: Option<&SeenTable>) -> bool {
    seen.is_some_and(|seen| {
        !seen.dormant && seen.chains.values().all(|chain| chain.hook != SeenHook::Other)
    })
}

/// The same of the guard, of which no chain is ever empty.
fn guards(seen: Option<&SeenTable>) -> bool {
    is_asked(seen) && seen.is_some_and(|seen| seen.chains.values().all(|c| !c.rules.is_empty()))
}

/// The steps for both tables and their pods, and the pods they touch.
pub(super) fn steps(
    desired: &Desired<'_>,
    observed: &Observed,
    touched: Option<&BTreeSet<PodIp>>,
    [loaded_main, loaded_guard, _]: &[LoadedDigests; 3],
) -> (Vec<Step>, Touched) {
    let Ruleset { main, guard, ingress: _ } = desired.ruleset;
    let main = TableChange::between(main, observed.main.as_ref(), loaded_main);
    let guard = TableChange::between(guard, observed.guard.as_ref(), loaded_guard);
    // A table made anew is empty, whatever was in it.
    let (no_vips, no_pods) = (BTreeMap::new(), BTreeSet::new());
    let PodTables { vips, guarded, known, unsure, strays } = &observed.pods;
    let anew = (TableChange::replaces(main.as_ref()), TableChange::replaces(guard.as_ref()));
    let mut pods = pod_changes(
        desired.pods,
        if anew.0 { &no_vips } else { vips },
        if anew.1 { &no_pods } else { guarded },
        touched.filter(|_| anew == (false, false)),
    );
    if anew.0 {
        pods.vouch(desired.vouched, &no_pods, &[Unsure::No; 2]);
    } else {
        pods.vouch(desired.vouched, known, unsure);
    }
    let stays = |stray: &&PodStray| if stray.set.is_main() { !anew.0 } else { !anew.1 };
    pods.strays = strays.iter().filter(stays).cloned().collect();
    let mut touched = Touched {
        changed: pods.changed(),
        guarded: pods.guard.iter().copied().collect(),
        guard_first: None,
    };

    let mut steps = Vec::new();
    let mut push = |main: Option<TableChange>, guard: Option<TableChange>, pods: PodChanges| {
        if main.is_some() || guard.is_some() {
            steps.push(Step::ChangeTables(TablesChange { main, guard }));
        }
        if !pods.is_empty() {
            steps.push(Step::ChangePods(pods));
        }
        steps.len()
    };
    // A table that loses its pods leaves the work to the other, which has to be complete by then.
    match anew {
        (false, false) => {
            push(main, guard, pods);
        }
        (true, false) => {
            let (of_main, of_guard) = pods.split();
            push(None, None, of_guard);
            push(main, guard, of_main);
        }
        (main_anew, true) => {
            let (of_main, of_guard) = pods.split();
            let guard_is_needed =
                guards(observed.guard.as_ref()) && !(main_anew && is_asked(observed.main.as_ref()));
            if guard_is_needed {
                push(main, None, of_main);
                push(None, guard, of_guard);
            } else {
                let complete = push(None, guard, of_guard);
                touched.guard_first = main_anew.then_some(complete);
                push(main, None, of_main);
            }
        }
    }
    (steps, touched)
}
