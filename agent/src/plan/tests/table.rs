//! A model of an nft table: takes changes as nft would, refusing rules that name what is not there.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use crate::kernel_state::{Count, SeenChain, SeenHook, SeenRule, SeenTable};
use crate::plan::TableChange;
use crate::ruleset::{Chain, Declared, Table};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelRule {
    pub(super) text: String,
    pub(super) comment: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelChain {
    pub(super) hook: SeenHook,
    pub(super) rules: Vec<ModelRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelTable {
    pub(super) dormant: bool,
    pub(super) chains: BTreeMap<String, ModelChain>,
    pub(super) declared: BTreeMap<String, Option<Declared>>,
    pub(super) counters: BTreeSet<String>,
}

impl ModelTable {
    pub(super) fn fill(&mut self, fill: &Table) {
        let Table { counters, declared, chains } = fill;
        self.counters.extend(counters.iter().map(|name| (*name).to_owned()));
        self.declared.extend(
            declared.iter().map(|(name, declared)| (name.clone().into_owned(), Some(*declared))),
        );
        for (name, Chain { hook, rules }) in chains {
            let made = ModelChain {
                hook: hook.clone().map_or(SeenHook::None, SeenHook::Known),
                rules: Vec::new(),
            };
            self.chains.entry(name.clone()).or_insert(made).rules = rules
                .iter()
                .map(|rule| ModelRule {
                    text: rule.text.clone(),
                    comment: Some(rule.comment.clone()),
                })
                .collect();
        }
    }

    pub(super) fn changed(seen: Option<&Self>, change: &TableChange) -> Result<Self, String> {
        let mut table;
        match change {
            TableChange::Replace(wanted) => {
                table = Self::default();
                table.fill(wanted);
            }
            TableChange::Amend { fill, remove_chains, remove_declared } => {
                table = seen.ok_or("no such table")?.clone();
                table.fill(fill);
                for name in remove_chains {
                    table.chains.remove(name).ok_or(format!("no chain {name}"))?;
                }
                for name in remove_declared {
                    table.declared.remove(name).ok_or(format!("no map {name}"))?;
                }
            }
        }
        table.check()?;
        Ok(table)
    }

    /// Whatever rules name has to be there.
    fn check(&self) -> Result<(), String> {
        for rule in self.chains.values().flat_map(|chain| &chain.rules) {
            let mut words = rule.text.split_whitespace().peekable();
            while let Some(word) = words.next() {
                let next = words.peek().map_or("", |next| next.trim_matches([',', '"']));
                let there = match (word, word.strip_prefix('@')) {
                    ("goto", _) => self.chains.contains_key(next),
                    ("name", _) => self.counters.contains(next),
                    // A part of the packet by its place.
                    (_, Some(place)) if place.contains(',') => true,
                    (_, Some(set)) => self.declared.contains_key(set),
                    _ => true,
                };
                if !there {
                    return Err(format!("nothing called {next:?}: {}", rule.text));
                }
            }
        }
        Ok(())
    }

    pub(super) fn seen(&self) -> SeenTable {
        let Self { dormant, chains, declared, counters } = self;
        let rule = |ModelRule { text, comment }: &ModelRule| SeenRule {
            comment: comment.clone(),
            digest: xxh3_64(text.as_bytes()),
        };
        SeenTable {
            handle: 0,
            contents: BTreeMap::new(),
            dormant: *dormant,
            chains: chains
                .iter()
                .map(|(name, ModelChain { hook, rules })| {
                    let rules = rules.iter().map(rule).collect();
                    (name.clone(), SeenChain { hook: hook.clone(), rules })
                })
                .collect(),
            declared: declared.clone(),
            counters: counters.iter().map(|name| (name.clone(), Count::default())).collect(),
        }
    }
}
