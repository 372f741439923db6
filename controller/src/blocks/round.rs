//! Who gets, keeps and gives back blocks of one VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::config_map::{BlockUse, NodeBlocks, VipBlocks};
use shared::{Block, Vip};
use tokio::time::Instant;

use super::node::{address_for, needed, runs_short, start_share};
use super::since::Since;
use super::{KEEP_EMPTY, MOST, PATIENCE, PATIENCE_IN_NEED, Situation, Timers, Wanted};

/// What is the same for all VIPs.
pub(super) struct Common<'a> {
    pub(super) situation: &'a Situation<'a>,
    /// No pass was made before.
    pub(super) fresh: bool,
    /// The nodes that are gone for long.
    pub(super) released: BTreeSet<&'a str>,
    /// What nodes make of their blocks, by VIP.
    uses: BTreeMap<Vip, BTreeMap<&'a str, &'a BlockUse>>,
    /// How many nodes have an IPv4 address, and an IPv6 one.
    families: [usize; 2],
}

impl<'a> Common<'a> {
    pub(super) fn new(situation: &'a Situation<'a>, fresh: bool) -> Self {
        let mut uses: BTreeMap<Vip, BTreeMap<&str, &BlockUse>> = BTreeMap::new();
        for (node, report) in &situation.reports {
            for (vip, of) in *report {
                uses.entry(*vip).or_default().insert(node, of);
            }
        }
        let with = |ipv4: bool| {
            let nodes = situation.nodes.values();
            nodes.filter(|of| of.iter().any(|addr| addr.is_ipv4() == ipv4)).count()
        };
        let families = [with(true), with(false)];
        Self { situation, fresh, released: BTreeSet::new(), uses, families }
    }
}

/// One VIP in one pass.
pub(super) struct Round<'a> {
    pub(super) vip: Vip,
    pub(super) common: &'a Common<'a>,
    pub(super) situation: &'a Situation<'a>,
    pub(super) timers: &'a mut Timers,
    /// The blocks that nodes may use by their own account, each with these nodes.
    listings: BTreeMap<Block, Vec<&'a str>>,
    /// What is to be published.
    pub(super) wanted: VipBlocks,
    /// When to look again.
    pub(super) next: Option<Instant>,
}

static NOTHING: BTreeSet<Block> = BTreeSet::new();

impl<'a> Round<'a> {
    pub(super) fn new(vip: Vip, common: &'a Common<'a>, timers: &'a mut Timers) -> Self {
        let situation = common.situation;
        let wanted = situation.published.get(&vip).map_or_else(VipBlocks::new, |of| (*of).clone());
        // Reports of nodes that are gone stay for good, so they do not count here.
        let uses = common.uses.get(&vip).into_iter().flatten();
        let mut listings: BTreeMap<Block, Vec<&str>> = BTreeMap::new();
        for (node, of) in uses.filter(|(node, _)| situation.nodes.contains_key(*node)) {
            for block in &of.blocks {
                listings.entry(*block).or_default().push(*node);
            }
        }
        Self { vip, common, situation, timers, listings, wanted, next: None }
    }

    pub(super) fn decide(&mut self) -> Option<Wanted> {
        if !self.is_direct() && !self.situation.published.contains_key(&self.vip) {
            return None;
        }
        self.readdress();
        self.free();
        self.adopt();
        self.drain();
        if self.is_direct() {
            self.give();
        }
        self.forget();
        let over = !self.is_direct() && self.wanted.values().all(|of| of.all().next().is_none());
        if over {
            self.wanted.clear();
        }
        let published_empty =
            self.situation.published.get(&self.vip).is_some_and(|blocks| blocks.is_empty());
        let (now, next) = (self.situation.now, &mut self.next);
        if self.timers.empty.lasts("", over && published_empty, KEEP_EMPTY, now, next) {
            return Some(Wanted::Deleted);
        }
        Some(Wanted::Blocks(self.wanted.clone()))
    }

    pub(super) fn is_direct(&self) -> bool {
        self.situation.direct.contains_key(&self.vip)
    }

    fn has_pods(&self, node: &str) -> bool {
        self.situation.direct.get(&self.vip).is_some_and(|nodes| nodes.contains(node))
    }

    pub(super) fn exists(&self, node: &str) -> bool {
        self.situation.nodes.contains_key(node)
    }

    /// The address that answers for the node are passed on to.
    pub(super) fn address(&self, node: &str) -> Option<IpAddr> {
        address_for(self.vip, self.situation.nodes.get(node)?)
    }

    pub(super) fn use_of(&self, node: &str) -> Option<&'a BlockUse> {
        self.common.uses.get(&self.vip)?.get(node).copied()
    }

    /// The blocks that the node may use by its own account; `None` if it gives none.
    pub(super) fn listed(&self, node: &str) -> Option<&'a BTreeSet<Block>> {
        let says = self.situation.reports.contains_key(node);
        says.then(|| self.use_of(node).map_or(&NOTHING, |of| &of.blocks))
    }

    fn readdress(&mut self) {
        let names: Vec<String> = self.wanted.keys().cloned().collect();
        for node in names {
            if let (Some(via), Some(of)) = (self.address(&node), self.wanted.get_mut(&node)) {
                of.via = via;
            }
        }
    }

    /// Rule 3, and what nodes had that are gone for long.
    fn free(&mut self) {
        let names: Vec<String> = self.wanted.keys().cloned().collect();
        for node in names {
            let listed = self.listed(&node);
            let released = self.common.released.contains(node.as_str());
            let Some(of) = self.wanted.get_mut(&node) else { continue };
            if released {
                of.open.clear();
                of.draining.clear();
            } else if let Some(listed) = listed {
                of.draining.retain(|block| listed.contains(block));
            }
        }
    }

    /// Rule 4: what is nobody's and is used nevertheless.
    fn adopt(&mut self) {
        let owned: BTreeSet<Block> = self.wanted.values().flat_map(NodeBlocks::all).collect();
        let strays = self.listings.iter().filter(|(block, _)| !owned.contains(block));
        let strays: Vec<(Block, &str)> = strays
            .filter_map(|(block, nodes)| match nodes[..] {
                [node] => Some((*block, node)),
                _ => None,
            })
            .collect();
        for (block, node) in strays {
            if let Some(of) = self.wanted.get_mut(node) {
                of.draining.insert(block);
            } else if let Some(via) = self.address(node) {
                let of = NodeBlocks { open: BTreeSet::new(), draining: [block].into(), via };
                self.wanted.insert(node.to_owned(), of);
            }
        }
    }

    /// The blocks that can be given, in ascending order.
    pub(super) fn unowned(&self) -> BTreeSet<Block> {
        let taken: BTreeSet<Block> = self.wanted.values().flat_map(NodeBlocks::all).collect();
        let is_free = |block: &Block| !taken.contains(block) && !self.listings.contains_key(block);
        Block::all().filter(is_free).collect()
    }

    fn drain(&mut self) {
        let names: Vec<String> = self.wanted.keys().cloned().collect();
        self.timers.unused.keep_only(|node| self.wanted.contains_key(node));
        self.timers.idle.keep_only(|node| self.wanted.contains_key(node));
        let now = self.situation.now;
        for node in &names {
            let held = self.open(node);
            let used = self.has_pods(node) || held == 0;
            let unused = self.timers.unused.lasts(node, !used, PATIENCE, now, &mut self.next);
            let keeps = self.needed(node).unwrap_or(held);
            let idle = used && keeps < held;
            let idle = self.timers.idle.lasts(node, idle, PATIENCE, now, &mut self.next);
            if unused || !self.is_direct() || !self.exists(node) {
                self.drain_down_to(node, 0);
            } else if idle {
                self.drain_down_to(node, keeps);
            }
        }
    }

    /// How many open blocks the node has.
    pub(super) fn open(&self, node: &str) -> usize {
        self.wanted.get(node).map_or(0, |of| of.open.len())
    }

    /// How many blocks are enough for what the node does; `None` if it does not know of all it has.
    fn needed(&self, node: &str) -> Option<usize> {
        let of = self.use_of(node)?;
        let open = &self.wanted.get(node)?.open;
        let share = start_share(self.sharing());
        open.is_subset(&of.blocks).then(|| needed(of.used).max(share))
    }

    /// How many nodes may come to share the blocks: all that could.
    fn sharing(&self) -> usize {
        let [ipv4, ipv6] = self.common.families;
        if self.vip.is_ipv4() { ipv4 } else { ipv6 }
    }

    /// Rule 1: the highest blocks of the node become draining until it has `keeps` open ones.
    fn drain_down_to(&mut self, node: &str, keeps: usize) {
        let Some(listed) = self.listed(node) else { return };
        let Some(of) = self.wanted.get_mut(node) else { return };
        let surplus = of.open.len().saturating_sub(keeps);
        let goes: Vec<Block> = of
            .open
            .iter()
            .rev()
            .filter(|block| listed.contains(block))
            .take(surplus)
            .copied()
            .collect();
        for block in goes {
            of.open.remove(&block);
            of.draining.insert(block);
        }
    }

    fn give(&mut self) {
        let Some(nodes) = self.situation.direct.get(&self.vip) else { return };
        let mut free = self.unowned();
        let share = start_share(self.sharing());
        let mut starving = 0;
        for &node in nodes {
            if !self.exists(node) || self.open(node) > 0 {
                continue;
            }
            let Some(via) = self.address(node) else { continue };
            let count = share.min(free.len() / 2).max(1).min(free.len());
            if count == 0 {
                starving += 1;
                continue;
            }
            self.hand_out(node, via, count, &mut free);
        }
        for &node in nodes {
            let held = self.open(node);
            let Some(of) = self.use_of(node).filter(|_| held > 0 && self.exists(node)) else {
                continue;
            };
            let knows_all = self.wanted.get(node).is_some_and(|has| has.open.is_subset(&of.blocks));
            if let Some(via) = self.address(node)
                && knows_all
                && runs_short(of.used, held)
            {
                let count = held.min(free.len() / 2).min(MOST.saturating_sub(held));
                self.hand_out(node, via, count, &mut free);
            }
        }
        self.relieve(starving);
    }

    fn hand_out(&mut self, node: &str, via: IpAddr, count: usize, free: &mut BTreeSet<Block>) {
        let new = || NodeBlocks { open: BTreeSet::new(), draining: BTreeSet::new(), via };
        let of = self.wanted.entry(node.to_owned()).or_insert_with(new);
        for _ in 0..count {
            of.open.extend(free.pop_first());
        }
    }

    /// Takes back for nodes that have none what others can spare.
    fn relieve(&mut self, starving: usize) {
        let coming: usize = self.wanted.values().map(|of| of.draining.len()).sum();
        let now = self.situation.now;
        let spare = |node: &String| -> Option<(usize, String)> {
            let lasts =
                |since: &Since| since.of(node).is_some_and(|since| since + PATIENCE_IN_NEED <= now);
            let held = self.open(node);
            let spare = if lasts(&self.timers.unused) {
                held
            } else if lasts(&self.timers.idle) {
                held.saturating_sub(self.needed(node)?)
            } else {
                0
            };
            (spare > 0).then(|| (spare, node.clone()))
        };
        let mut spare: Vec<(usize, String)> = self.wanted.keys().filter_map(spare).collect();
        for _ in coming..starving {
            // From who can spare most.
            let Some((left, node)) = spare.iter_mut().max().filter(|(left, _)| *left > 0) else {
                break;
            };
            *left -= 1;
            let node = node.clone();
            let keeps = self.open(&node).saturating_sub(1);
            self.drain_down_to(&node, keeps);
        }
        if starving > coming {
            let soon = self.timers.unused.all().chain(self.timers.idle.all());
            let soon = soon.map(|since| since + PATIENCE_IN_NEED).filter(|at| *at > now).min();
            self.next = [self.next, soon].into_iter().flatten().min();
        }
    }

    /// Nodes that have had time to read that they have no blocks are named no longer.
    fn forget(&mut self) {
        let (timers, next, now) = (&mut self.timers.bare, &mut self.next, self.situation.now);
        let wanted = &mut self.wanted;
        timers.keep_only(|node| wanted.contains_key(node));
        wanted.retain(|node, of| {
            !timers.lasts(node, of.all().next().is_none(), KEEP_EMPTY, now, next)
        });
    }
}
