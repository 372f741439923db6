//! A model of gateways and launchers: what becomes of holders as lists and nodes change.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::Lists;
use crate::candidates::{Address, Nodes, Vip, candidates};

/// Gateways and VIPs in time: as the launchers of keepalived agree on holders.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) usual: BTreeSet<String>,
    pub(super) spare: BTreeSet<String>,
    pub(super) emptied: BTreeSet<String>,
    /// Those whose keepalived does not run, though nobody has noticed.
    pub(super) dead: BTreeSet<String>,
    pub(super) unsynced: BTreeSet<String>,
    pub(super) published: Lists,
    pub(super) holders: BTreeMap<Address, String>,
    pub(super) preferred: BTreeMap<Address, String>,
    pub(super) movable: BTreeSet<Address>,
    pub(super) moves: usize,
}

impl Cluster {
    fn alive(&self) -> impl Iterator<Item = &String> {
        let all = self.usual.iter().chain(&self.spare).chain(&self.emptied);
        all.filter(|node| !self.dead.contains(*node))
    }

    pub(super) fn decide(&self) -> Lists {
        fn all(nodes: &BTreeSet<String>) -> BTreeSet<&str> {
            nodes.iter().map(String::as_str).collect()
        }
        let in_sync = self.usual.difference(&self.unsynced).map(String::as_str).collect();
        let nodes = Nodes {
            usual: all(&self.usual),
            in_sync,
            spare: all(&self.spare),
            emptied: all(&self.emptied),
        };
        let vip = |vip: &Address| Vip {
            holder: self.holders.get(vip).map(String::as_str),
            preferred: self.preferred.get(vip).map(String::as_str),
            movable: self.movable.contains(vip),
        };
        let vips = self.published.keys().map(|of| (*of, vip(of))).collect();
        candidates(&vips, &nodes, &self.published)
    }

    /// The nodes read the lists, agree, and report; whether anything is new.
    pub(super) fn turn(&mut self) -> bool {
        let lists = self.decide();
        let mut news = lists != self.published;
        for (vip, list) in &lists {
            let alive: BTreeSet<&String> = self.alive().collect();
            let held = self.holders.get(vip).filter(|holder| alive.contains(holder));
            let listed = list.iter().find(|node| alive.contains(node));
            let next = match held {
                Some(holder) if list.contains(holder) || listed.is_none() => Some(holder.clone()),
                _ => listed.or(alive.first().copied()).cloned(),
            };
            if next.as_ref() != self.holders.get(vip) {
                news = true;
                self.moves += usize::from(held.is_some());
                match next {
                    Some(next) => drop(self.holders.insert(*vip, next)),
                    None => drop(self.holders.remove(vip)),
                }
            }
        }
        self.published = lists;
        news
    }

    pub(super) fn settle(&mut self) {
        self.moves = 0;
        let turns = (0..10).take_while(|_| self.turn()).count();
        assert!(turns < 6, "does not come to rest: {self:?}");
        let gateways = self.usual.len() + self.spare.len() + self.emptied.len();
        assert!(gateways == 0 || self.published.values().all(|list| !list.is_empty()));
    }

    pub(super) fn held(&self, nodes: &BTreeSet<String>) -> Vec<usize> {
        let count = |node: &String| self.holders.values().filter(|holder| *holder == node).count();
        nodes.iter().map(count).collect()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// From one kind of node to another.
    Becomes(u8, u8),
    Dies(u8),
    Revives(u8),
    Syncs(u8, bool),
    Prefers(u8, Option<u8>),
    Movable(u8, bool),
}

pub(super) fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (1..5u8, 0..4u8).prop_map(|(node, kind)| Fault::Becomes(node, kind)),
        (1..5u8).prop_map(Fault::Dies),
        (1..5u8).prop_map(Fault::Revives),
        (1..5u8, any::<bool>()).prop_map(|(node, synced)| Fault::Syncs(node, synced)),
        (1..9u8, proptest::option::of(1..6u8)).prop_map(|(vip, node)| Fault::Prefers(vip, node)),
        (1..9u8, any::<bool>()).prop_map(|(vip, movable)| Fault::Movable(vip, movable)),
    ]
}

impl Cluster {
    pub(super) fn suffer(&mut self, fault: Fault) {
        let node = |n: u8| format!("node{n}");
        let vip = |n: u8| format!("192.0.2.{n}").parse::<Address>().unwrap();
        match fault {
            Fault::Becomes(n, kind) => {
                for nodes in [&mut self.usual, &mut self.spare, &mut self.emptied] {
                    nodes.remove(&node(n));
                }
                let kinds = [&mut self.usual, &mut self.spare, &mut self.emptied];
                if let Some(nodes) = kinds.into_iter().nth(kind.into()) {
                    nodes.insert(node(n));
                }
            }
            Fault::Dies(n) => drop(self.dead.insert(node(n))),
            Fault::Revives(n) => drop(self.dead.remove(&node(n))),
            Fault::Syncs(n, true) => drop(self.unsynced.remove(&node(n))),
            Fault::Syncs(n, false) => drop(self.unsynced.insert(node(n))),
            Fault::Prefers(n, Some(to)) => drop(self.preferred.insert(vip(n), node(to))),
            Fault::Prefers(n, None) => drop(self.preferred.remove(&vip(n))),
            Fault::Movable(n, true) => drop(self.movable.insert(vip(n))),
            Fault::Movable(n, false) => drop(self.movable.remove(&vip(n))),
        }
    }
}
