//! What the kernel of this node holds of ours, as it was last seen.
//!
//! Pure types: `kernel` fills them, [`plan`](crate::plan) compares them with what is desired.

use std::collections::{BTreeMap, BTreeSet};

use shared::RouteId;

use crate::desired::Place;
use crate::pod_tables::PodTables;
use crate::routing::ObservedRouting;
use crate::ruleset::{Chain, Declared, Hook, Table};

/// Everything that a plan looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Policy rules and routes in our ranges.
    pub routing: ObservedRouting,
    /// The main table; `None` when it does not exist.
    pub main: Option<SeenTable>,
    /// The guard table; `None` when it does not exist.
    pub guard: Option<SeenTable>,
    /// The ingress table; `None` when it does not exist.
    pub ingress: Option<SeenTable>,
    /// The elements of the first two tables' maps of pods.
    pub pods: PodTables,
    /// Interfaces whose effective `rp_filter` is strict.
    pub strict: BTreeSet<String>,
    /// Which decision connections are known to be bound to; `None` when that is not known, as
    /// after a start.
    pub places: Option<BTreeMap<RouteId, Place>>,
}

/// A table of ours, but for the elements of its declared maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTable {
    /// Its number; a table deleted and made again has another.
    pub handle: u64,
    /// What is known of the elements of declared maps and sets without reading them, by name.
    pub contents: BTreeMap<String, Contents>,
    /// Switched off: none of its chains is asked.
    pub dormant: bool,
    /// Chains by name.
    pub chains: BTreeMap<String, SeenChain>,
    /// Declared maps and sets by name; `None` for a type that we never declare.
    pub declared: BTreeMap<String, Option<Declared>>,
    /// Named counters.
    pub counters: BTreeMap<String, Count>,
}

/// The elements of a map or set, from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The set's number in its table; one deleted and made again has another.
    pub handle: u64,
    /// How many there are, if the kernel tells (6.16 and later).
    pub count: Option<u32>,
}

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, headers from the network layer on included.
    pub bytes: u64,
}

/// A chain in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenChain {
    /// Where it is hooked in, if it is.
    pub hook: SeenHook,
    /// In order.
    pub rules: Vec<SeenRule>,
}

/// Where a chain is hooked in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeenHook {
    /// Nowhere: others go to it.
    #[default]
    None,
    /// As we would do it, with policy `accept`.
    Known(Hook),
    /// At another hook, as another kind, or with another policy.
    Other,
}

/// A rule in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRule {
    /// Its comment; ours all have one.
    pub comment: Option<String>,
    /// A digest of its expressions as the kernel lists them.
    pub digest: u64,
}

/// Digests of the rules of every chain as they were right after we loaded them.
///
/// A comment says what a rule was when it was loaded; a digest that has changed since says that
/// somebody has replaced it. Unknown (empty) after a start, when comments have to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedDigests(BTreeMap<String, Vec<u64>>);

impl LoadedDigests {
    /// The digests of a table that was just loaded and looked at.
    pub fn of(table: &SeenTable) -> Self {
        let digests = |chain: &SeenChain| chain.rules.iter().map(|rule| rule.digest).collect();
        Self(table.chains.iter().map(|(name, chain)| (name.clone(), digests(chain))).collect())
    }

    fn contradict(&self, name: &str, chain: &SeenChain) -> bool {
        self.0
            .get(name)
            .is_some_and(|loaded| !chain.rules.iter().map(|rule| &rule.digest).eq(loaded))
    }
}

impl SeenTable {
    /// The table has to be made anew: what cannot be changed in place is not what it should be.
    pub fn is_beyond_repair(&self, wanted: &Table) -> bool {
        let declared_otherwise = wanted.declared.iter().any(|(name, declared)| {
            self.declared
                .get(name.as_ref())
                .is_some_and(|seen| !seen.is_some_and(|seen| seen.serves_as(*declared)))
        });
        let hooked_otherwise = wanted.chains.iter().any(|(name, chain)| {
            self.chains.get(name).is_some_and(|seen| !same_hook(&seen.hook, chain))
        });
        self.dormant || declared_otherwise || hooked_otherwise
    }

    /// The chains that are missing, or whose rules are not exactly the wanted ones.
    pub fn differing_chains<'a>(
        &'a self,
        wanted: &'a Table,
        loaded: &'a LoadedDigests,
    ) -> impl Iterator<Item = &'a str> {
        wanted
            .chains
            .iter()
            .filter(move |(name, chain)| {
                self.chains
                    .get(*name)
                    .is_none_or(|seen| !same_rules(seen, chain) || loaded.contradict(name, seen))
            })
            .map(|(name, _)| name.as_str())
    }

    /// The chains that should not be in the table.
    pub fn surplus_chains<'a>(&'a self, wanted: &'a Table) -> impl Iterator<Item = &'a str> {
        self.chains.keys().map(String::as_str).filter(|name| !wanted.chains.contains_key(*name))
    }

    /// The declared maps and sets that should not be in the table.
    pub fn surplus_declared<'a>(&'a self, wanted: &'a Table) -> impl Iterator<Item = &'a str> {
        self.declared.keys().map(String::as_str).filter(|name| !wanted.declared.contains_key(*name))
    }
}

fn same_hook(seen: &SeenHook, wanted: &Chain) -> bool {
    match seen {
        SeenHook::None => wanted.hook.is_none(),
        SeenHook::Known(hook) => wanted.hook.as_ref() == Some(hook),
        SeenHook::Other => false,
    }
}

fn same_rules(seen: &SeenChain, wanted: &Chain) -> bool {
    let seen = seen.rules.iter().map(|rule| rule.comment.as_deref());
    seen.eq(wanted.rules.iter().map(|rule| Some(rule.comment.as_str())))
}
