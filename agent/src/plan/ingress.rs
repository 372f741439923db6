//! What has to change in the ingress table, and when.
//!
//! What is for this node itself is said before a connection here can have such a port; what is passed
//! on, only when none has it any more.

use std::fmt;

use super::tables::TableChange;
use crate::kernel_state::{LoadedDigests, SeenTable};
use crate::ruleset::{Chain, Table, passes_on};

/// A change of the ingress table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressChange {
    /// It becomes what it should be.
    Make(TableChange),
    /// It goes.
    Remove,
}

impl fmt::Display for IngressChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make(change) => write!(f, "change the ingress table: {change}"),
            Self::Remove => f.write_str("remove the ingress table"),
        }
    }
}

/// What there is to do before connections get other ports, and what afterwards.
pub(super) fn changes(
    wanted: Option<&Table>,
    seen: Option<&SeenTable>,
    loaded: &LoadedDigests,
) -> [Option<IngressChange>; 2] {
    let Some(wanted) = wanted else {
        return [seen.map(|_| IngressChange::Remove), None];
    };
    let (first, then) = match TableChange::between(wanted, seen, loaded) {
        None => return [None, None],
        Some(TableChange::Replace(table)) => {
            let (first, then) = split(table, None);
            (TableChange::Replace(first), TableChange::amend(then))
        }
        Some(TableChange::Amend { fill, remove_chains, remove_declared }) => {
            let (first, then) = split(*fill, seen);
            let then = TableChange::Amend { fill: Box::new(then), remove_chains, remove_declared };
            (TableChange::amend(first), then)
        }
    };
    let nothing = TableChange::amend(Table::default());
    [first, then].map(|change| (change != nothing).then_some(IngressChange::Make(change)))
}

/// What does not pass anything on, and the rest. A chain that does, and is not there, is made without
/// rules at first, for others lead to it.
fn split(mut table: Table, seen: Option<&SeenTable>) -> (Table, Table) {
    let there = |name: &str| seen.is_some_and(|seen| seen.chains.contains_key(name));
    let (others, own): (Vec<_>, Vec<_>) =
        table.chains.into_iter().partition(|(name, _)| passes_on(name));
    let missing = others.iter().filter(|(name, _)| !there(name));
    table.chains =
        own.into_iter().chain(missing.map(|(name, _)| (name.clone(), Chain::default()))).collect();
    (table, Table { chains: others.into_iter().collect(), ..Table::default() })
}
