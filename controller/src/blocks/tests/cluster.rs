//! A cluster whose agents do as they should, unless they are deaf.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use shared::config_map::{BlockUse, NodeBlocks, VipBlocks, encode_blocks};
use shared::{Block, Vip, VipPath};
use tokio::time::Instant;

use super::super::{Allocator, Situation, Wanted};
use crate::model::PathVerdict;

pub(super) fn vip() -> Vip {
    "192.168.0.222".parse().unwrap()
}

pub(super) struct Cluster {
    pub(super) allocator: Allocator,
    pub(super) now: Instant,
    pub(super) direct: bool,
    pub(super) nodes: BTreeMap<String, Vec<IpAddr>>,
    pub(super) with_pods: BTreeSet<String>,
    pub(super) published: Option<VipBlocks>,
    pub(super) reports: BTreeMap<String, BTreeMap<Vip, BlockUse>>,
    /// Their agents neither read nor write.
    pub(super) deaf: BTreeSet<String>,
    /// Blocks that have connections.
    pub(super) connections: BTreeMap<String, BTreeSet<Block>>,
    pub(super) used: BTreeMap<String, u16>,
    pub(super) verdict: Option<PathVerdict>,
    pub(super) next: Option<Instant>,
    pub(super) writes: usize,
}

impl Cluster {
    /// Nodes n1 to n*count*.
    pub(super) fn new(count: u32) -> Self {
        let mut cluster = Self {
            allocator: Allocator::default(),
            now: Instant::now(),
            direct: true,
            nodes: BTreeMap::new(),
            with_pods: BTreeSet::new(),
            published: None,
            reports: BTreeMap::new(),
            deaf: BTreeSet::new(),
            connections: BTreeMap::new(),
            used: BTreeMap::new(),
            verdict: None,
            next: None,
            writes: 0,
        };
        (1..=count).for_each(|number| cluster.join(number));
        cluster
    }

    pub(super) fn join(&mut self, number: u32) {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 168, 0, 0)) + number);
        self.nodes.insert(format!("n{number}"), vec![address.into()]);
    }

    pub(super) fn pods(&mut self, nodes: &[&str]) {
        self.with_pods = nodes.iter().map(|node| (*node).to_owned()).collect();
    }

    /// One pass and its write.
    pub(super) fn pass(&mut self) {
        let with_pods = self.with_pods.iter().map(String::as_str).collect();
        let mut plan = self.allocator.plan(&Situation {
            now: self.now,
            direct: self.direct.then_some((vip(), with_pods)).into_iter().collect(),
            published: self.published.iter().map(|blocks| (vip(), blocks)).collect(),
            nodes: self.nodes.iter().map(|(name, of)| (name.as_str(), of.as_slice())).collect(),
            reports: self.reports.iter().map(|(name, of)| (name.as_str(), of)).collect(),
        });
        self.verdict = plan.verdicts.remove(&vip());
        self.next = plan.next;
        let wanted = match plan.wanted.remove(&vip()) {
            Some(Wanted::Blocks(blocks)) => Some(blocks),
            Some(Wanted::Deleted) | None => None,
        };
        if wanted != self.published {
            self.writes += 1;
            self.published = wanted;
        }
        let all: Vec<Block> =
            self.published.iter().flat_map(BTreeMap::values).flat_map(NodeBlocks::all).collect();
        let distinct: BTreeSet<Block> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len(), "{:?}", self.published);
    }

    /// Agents read what is published, and report.
    pub(super) fn agents(&mut self) {
        for node in self.nodes.keys().filter(|node| !self.deaf.contains(*node)) {
            let of = self.published.as_ref().and_then(|blocks| blocks.get(node));
            let open = of.map(|of| of.open.clone()).unwrap_or_default();
            let connections = self.connections.get(node).cloned().unwrap_or_default();
            let blocks = &open | &connections;
            let path = if open.is_empty() { VipPath::ViaHolder } else { VipPath::Direct };
            let used = self.used.get(node).copied().unwrap_or_default();
            let message = String::new();
            let of =
                (!blocks.is_empty()).then_some((vip(), BlockUse { blocks, path, used, message }));
            self.reports.insert(node.clone(), of.into_iter().collect());
        }
    }

    /// A pass each minute, agents in between.
    pub(super) fn minutes(&mut self, count: u64) {
        for _ in 0..count {
            self.now += Duration::from_mins(1);
            self.pass();
            self.agents();
        }
        self.pass();
    }

    /// Until nothing changes any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..4 {
            self.pass();
            self.agents();
        }
        let before = self.writes;
        self.pass();
        assert_eq!(self.writes, before, "it does not settle");
    }

    /// What is published of the node, without the address; empty if it is not named.
    pub(super) fn of(&self, node: &str) -> String {
        let data = self.published.as_ref().map(encode_blocks).unwrap_or_default();
        let text = data.get(node).cloned().unwrap_or_default();
        text.split("via").next().unwrap_or_default().trim().to_owned()
    }

    pub(super) fn open(&self, node: &str) -> BTreeSet<Block> {
        let of = self.published.as_ref().and_then(|blocks| blocks.get(node));
        of.map(|of| of.open.clone()).unwrap_or_default()
    }

    /// Reason and message of what is said.
    pub(super) fn says(&self) -> String {
        let finding = self.verdict.as_ref().and_then(|verdict| verdict.direct.as_ref());
        finding.map(|of| format!("{:?}: {}", of.reason, of.message)).unwrap_or_default()
    }

    pub(super) fn reason(&self) -> String {
        self.says().split(':').next().unwrap_or_default().to_owned()
    }
}

pub(super) fn blocks(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<Block> {
    numbers.into_iter().map(|number| number.try_into().unwrap()).collect()
}
