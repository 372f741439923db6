//! A model of all that takes part: two replicas of the controller that may both believe to lead, the API
//! server between them and the agents, and the agents' nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use shared::config_map::{BlockUse, VipBlocks};
use shared::{Block, Vip, VipPath};
use tokio::time::Instant;

use super::{NAMES, NODES, Op};
use crate::blocks::{Allocator, QUARANTINE, Situation, Wanted};

fn vip() -> Vip {
    "192.168.0.222".parse().unwrap()
}

/// One version of the object; `None` once it is deleted.
#[derive(Clone, Debug)]
pub(super) struct Version {
    at: u64,
    blocks: Option<VipBlocks>,
    /// The nodes with a label on it.
    labels: BTreeSet<String>,
}

/// A node with its agent.
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that happens to a node")]
#[derive(Clone, Debug)]
struct Node {
    exists: bool,
    gone: Option<Instant>,
    /// The machine is off.
    off: bool,
    pods: bool,
    used: u16,
    /// It may hold no VIP, so it reads the object only while it has its label.
    by_label: bool,
    /// How many versions its agent has read, and what it believes since.
    read: usize,
    belief: Option<VipBlocks>,
    connections: BTreeSet<Block>,
    /// The report that is under way.
    sending: Option<BlockUse>,
}

/// A replica that believes to lead.
#[derive(Debug)]
struct Replica {
    allocator: Allocator,
    /// Up to where it has seen what was written.
    seen: u64,
    /// What it has written itself and got an answer to.
    own: Option<Version>,
}

/// A request under way.
#[derive(Debug)]
struct Request {
    by: usize,
    /// The version it was made for; 0 if there is to be none.
    expected: u64,
    wanted: Wanted,
    /// Whoever sent it still waits for an answer.
    awaited: bool,
}

pub(super) struct Model {
    now: Instant,
    clock: u64,
    direct: bool,
    versions: Vec<Version>,
    reports: [Vec<(u64, BTreeMap<Vip, BlockUse>)>; NODES],
    nodes: [Node; NODES],
    replicas: [Replica; 2],
    requests: Vec<Request>,
    addresses: [Vec<IpAddr>; NODES],
    /// How many blocks have another owner than before.
    pub(super) moved: usize,
    owners: BTreeMap<Block, usize>,
}

impl Model {
    pub(super) fn new() -> Self {
        let node = |number: usize| Node {
            exists: true,
            gone: None,
            off: false,
            pods: false,
            used: 0,
            by_label: number % 2 == 1,
            read: 0,
            belief: None,
            connections: BTreeSet::new(),
            sending: None,
        };
        let replica = || Replica { allocator: Allocator::default(), seen: 0, own: None };
        let address = |number: usize| vec![format!("192.168.0.1{number}").parse().unwrap()];
        Self {
            now: Instant::now(),
            clock: 0,
            direct: true,
            versions: Vec::new(),
            reports: Default::default(),
            nodes: std::array::from_fn(node),
            replicas: [replica(), replica()],
            requests: Vec::new(),
            addresses: std::array::from_fn(address),
            moved: 0,
            owners: BTreeMap::new(),
        }
    }

    pub(super) fn latest(&self) -> Option<&Version> {
        self.versions.last().filter(|version| version.blocks.is_some())
    }

    /// The object as the replica knows it.
    fn known(&self, replica: usize) -> Option<&Version> {
        let Replica { seen, own, .. } = &self.replicas[replica];
        let told = self.versions.iter().rfind(|version| version.at <= *seen);
        let known = own.iter().chain(told).max_by_key(|version| version.at);
        known.filter(|version| version.blocks.is_some())
    }

    fn plan(&mut self, replica: usize) -> Option<(u64, Option<VipBlocks>, Wanted)> {
        let known = self.known(replica).cloned();
        let seen = self.replicas[replica].seen;
        let with_pods = NAMES.into_iter().zip(&self.nodes).filter(|(_, node)| node.pods);
        let with_pods: BTreeSet<&str> = with_pods.map(|(name, _)| name).collect();
        let exist = NAMES.into_iter().zip(&self.nodes).zip(&self.addresses);
        let exist = exist.filter(|((_, node), _)| node.exists);
        let reports = NAMES.into_iter().zip(&self.reports).filter_map(|(name, all)| {
            let (_, report) = all.iter().rfind(|(at, _)| *at <= seen)?;
            Some((name, report))
        });
        let blocks = known.as_ref().and_then(|version| version.blocks.as_ref());
        let situation = Situation {
            now: self.now,
            direct: self.direct.then_some((vip(), with_pods)).into_iter().collect(),
            published: blocks.map(|blocks| (vip(), blocks)).into_iter().collect(),
            nodes: exist.map(|((name, _), addresses)| (name, addresses.as_slice())).collect(),
            reports: reports.collect(),
        };
        let mut plan = self.replicas[replica].allocator.plan(&situation);
        let wanted = plan.wanted.remove(&vip())?;
        Some((known.as_ref().map_or(0, |version| version.at), blocks.cloned(), wanted))
    }

    fn pass(&mut self, replica: usize) {
        if self.requests.iter().any(|request| request.by == replica && request.awaited) {
            return;
        }
        let Some((expected, before, wanted)) = self.plan(replica) else { return };
        if wanted != before.map_or(Wanted::Deleted, Wanted::Blocks) {
            self.requests.push(Request { by: replica, expected, wanted, awaited: true });
        }
    }

    fn arrive(&mut self, place: usize) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.remove(place % self.requests.len());
        if self.latest().map_or(0, |version| version.at) != request.expected {
            return;
        }
        self.clock += 1;
        let blocks = match request.wanted {
            Wanted::Blocks(blocks) => Some(blocks),
            Wanted::Deleted => None,
        };
        let before = self.versions.last().map(|version| version.labels.clone()).unwrap_or_default();
        let labels = match &blocks {
            Some(blocks) if !blocks.is_empty() => blocks.keys().cloned().collect(),
            _ => before,
        };
        let version = Version { at: self.clock, blocks, labels };
        if request.awaited {
            self.replicas[request.by].own = Some(version.clone());
        }
        self.versions.push(version);
    }

    fn see(&mut self, replica: usize, count: u64) {
        let replica = &mut self.replicas[replica];
        replica.seen = (replica.seen + count).min(self.clock);
    }

    fn hear(&mut self, node: usize, count: usize) {
        for _ in 0..count {
            let Some(version) = self.versions.get(self.nodes[node].read) else { return };
            let of = &mut self.nodes[node];
            of.read += 1;
            let visible = !of.by_label || version.labels.contains(NAMES[node]);
            match version.blocks.as_ref().filter(|_| visible) {
                Some(blocks) => of.belief = Some(blocks.clone()),
                // What is missing keeps its last content, unless that names nobody.
                None => of.belief = of.belief.take().filter(|blocks| !blocks.is_empty()),
            }
        }
    }

    fn agent_restarts(&mut self, node: usize) {
        let visible =
            |version: &&Version| !self.nodes[node].by_label || version.labels.contains(NAMES[node]);
        let belief = self.latest().filter(visible).and_then(|version| version.blocks.clone());
        let of = &mut self.nodes[node];
        of.sending = None;
        of.belief = belief;
        of.read = self.versions.len();
    }

    fn open(&self, node: usize) -> BTreeSet<Block> {
        let belief = self.nodes[node].belief.as_ref().and_then(|blocks| blocks.get(NAMES[node]));
        belief.map(|of| of.open.clone()).unwrap_or_default()
    }

    pub(super) fn may_use(&self, node: usize) -> BTreeSet<Block> {
        let of = &self.nodes[node];
        if of.off { BTreeSet::new() } else { &self.open(node) | &of.connections }
    }

    fn report(&mut self, node: usize) {
        let blocks = self.may_use(node);
        let of = &mut self.nodes[node];
        if !of.off && of.sending.is_none() {
            let path = VipPath::Direct;
            of.sending = Some(BlockUse { blocks, path, used: of.used, message: String::new() });
        }
    }

    fn land(&mut self, node: usize) {
        if let Some(of) = self.nodes[node].sending.take() {
            self.clock += 1;
            // One without blocks says nothing of the VIP.
            let report = (!of.blocks.is_empty()).then_some((vip(), of));
            self.reports[node].push((self.clock, report.into_iter().collect()));
        }
    }

    fn serve(&mut self, node: usize) {
        if !self.nodes[node].off {
            self.hear(node, usize::MAX);
            self.report(node);
            self.land(node);
        }
    }

    fn work(&mut self, replica: usize) {
        self.see(replica, u64::MAX - self.clock);
        self.pass(replica);
        if let Some(place) = self.requests.iter().rposition(|request| request.by == replica) {
            self.arrive(place);
        }
    }

    /// News of nodes come to every replica that runs.
    fn node_news(&mut self) {
        for replica in 0..2 {
            self.plan(replica);
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        for node in &mut self.nodes {
            if node.gone.is_some_and(|since| since + QUARANTINE <= self.now) {
                node.off = true;
                node.connections.clear();
                node.belief = None;
                node.sending = None;
            }
        }
    }

    pub(super) fn apply(&mut self, op: Op) {
        match op {
            Op::See(replica, count) => self.see(replica, count),
            Op::Pass(replica) => self.pass(replica),
            Op::Arrive(place) => self.arrive(place),
            Op::GiveUp(replica) => {
                let of = self.requests.iter_mut().filter(|request| request.by == replica);
                of.for_each(|request| request.awaited = false);
            }
            Op::Restart(replica) => {
                let of = self.requests.iter_mut().filter(|request| request.by == replica);
                of.for_each(|request| request.awaited = false);
                let allocator = Allocator::default();
                self.replicas[replica] = Replica { allocator, seen: self.clock, own: None };
            }
            Op::Work(replica) => self.work(replica),
            Op::Hear(node, count) if !self.nodes[node].off => self.hear(node, count),
            Op::Connect(node, which) if !self.nodes[node].off => {
                let open = self.open(node);
                let block = open.iter().nth(which % open.len().max(1)).copied();
                self.nodes[node].connections.extend(block);
            }
            Op::Close(node, which) => {
                let connections = &mut self.nodes[node].connections;
                if let Some(block) = connections.iter().nth(which).copied() {
                    connections.remove(&block);
                }
            }
            Op::Report(node) => self.report(node),
            Op::Land(node) => self.land(node),
            Op::Serve(node) => self.serve(node),
            Op::AgentRestarts(node) if !self.nodes[node].off => self.agent_restarts(node),
            Op::Pods(node, pods) => self.nodes[node].pods = pods,
            Op::Use(node, used) => self.nodes[node].used = used,
            Op::Gone(node) if self.nodes[node].exists => {
                self.nodes[node].exists = false;
                self.nodes[node].gone = Some(self.now);
                self.node_news();
            }
            Op::Back(node) if !self.nodes[node].exists => {
                if self.nodes[node].off {
                    self.nodes[node].off = false;
                    self.agent_restarts(node);
                }
                self.nodes[node].exists = true;
                self.nodes[node].gone = None;
                self.node_news();
            }
            Op::Wait(seconds) => self.wait(seconds),
            Op::Path(direct) => self.direct = direct,
            Op::Hear(..) | Op::Connect(..) | Op::AgentRestarts(_) | Op::Gone(_) | Op::Back(_) => {}
        }
    }

    /// Two nodes that may use one block.
    pub(super) fn clash(&mut self) -> Option<String> {
        let mut users: BTreeMap<Block, usize> = BTreeMap::new();
        for node in 0..NODES {
            for block in self.may_use(node) {
                if let Some(other) = users.insert(block, node) {
                    return Some(format!("block {block} of n{other} and n{node}"));
                }
                let owner = self.owners.insert(block, node);
                self.moved += usize::from(owner.is_some_and(|owner| owner != node));
            }
        }
        None
    }

    /// Everybody works, nobody uses the VIP any more.
    pub(super) fn wind_up(&mut self) {
        self.direct = false;
        self.requests.clear();
        for node in 0..NODES {
            self.apply(Op::Back(node));
            self.nodes[node].connections.clear();
        }
        for _ in 0..40 {
            (0..NODES).for_each(|node| self.serve(node));
            self.work(0);
            self.wait(60);
        }
    }
}
