//! What is said of the path of a VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::VipPath;
use shared::crd::{BlocksStatus, PathTaken};
use tokio::time::Instant;

use super::node::is_exhausted;
use super::round::Round;
use crate::model::{DirectReason, Finding, PathVerdict};
use crate::resolve::wording::listed;

/// How long a node may take to prove that it can use its blocks before anything is said.
const GRACE: Duration = Duration::from_secs(10);
/// For how long a node has to have ports left before it is said that it has.
const RECOVERED: Duration = Duration::from_mins(1);

/// How a node is that has pods of the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It translates on its own.
    Proven,
    /// It does not yet; that takes a moment.
    Starting,
    /// It cannot, or not fully.
    Hindered(DirectReason),
}

impl Round<'_> {
    /// What is said once it was decided.
    pub(super) fn verdict(&mut self) -> PathVerdict {
        let blocks = self.counts();
        let Some(nodes) = self.situation.direct.get(&self.vip) else {
            let named: BTreeSet<&str> = self.wanted.keys().map(String::as_str).collect();
            let any = blocks.given > 0;
            return PathVerdict {
                taken: self.taken(&named),
                blocks: any.then_some(blocks),
                direct: any.then(|| self.draining()),
            };
        };
        self.timers.unproven.keep_only(|node| nodes.contains(node));
        self.timers.exhausted.retain(|node, _| nodes.contains(node.as_str()));
        let mut states: BTreeMap<&str, State> = BTreeMap::new();
        for &node in nodes {
            // Pods of a node that is gone are about to be deleted.
            if self.exists(node) {
                let state = self.state(node);
                states.insert(node, state);
            }
        }
        let taken = if nodes.is_empty() { PathTaken::Direct } else { self.taken(nodes) };
        PathVerdict { taken, blocks: Some(blocks), direct: Some(self.finding(&states)) }
    }

    fn counts(&self) -> BlocksStatus {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let having = self.wanted.values().filter(|of| of.all().next().is_some());
        BlocksStatus {
            nodes: count(having.clone().count()),
            given: count(having.clone().map(|of| of.all().count()).sum()),
            draining: count(having.map(|of| of.draining.len()).sum()),
            free: count(self.unowned().len()),
        }
    }

    /// What these nodes do with new connections.
    fn taken(&self, nodes: &BTreeSet<&str>) -> PathTaken {
        match nodes.iter().filter(|node| self.is_on_its_own(node)).count() {
            0 => PathTaken::ViaHolder,
            direct if direct == nodes.len() => PathTaken::Direct,
            _ => PathTaken::Mixed,
        }
    }

    /// Whether the node translates new connections itself, by its own account.
    fn is_on_its_own(&self, node: &str) -> bool {
        self.use_of(node).is_some_and(|of| of.path == VipPath::Direct) && self.has_heard(node)
    }

    /// Whether the node knows of a block that it has.
    fn has_heard(&self, node: &str) -> bool {
        let both = self.wanted.get(node).zip(self.listed(node));
        both.is_some_and(|(has, listed)| has.all().any(|block| listed.contains(&block)))
    }

    fn state(&mut self, node: &str) -> State {
        let now = self.situation.now;
        let held = self.open(node);
        if held == 0 {
            return State::Hindered(match self.address(node) {
                Some(_) => DirectReason::NoFreeBlock,
                None => DirectReason::NoAddress,
            });
        }
        let proven = self.is_on_its_own(node);
        if !proven && self.common.fresh && self.situation.published.contains_key(&self.vip) {
            // Whoever wrote the condition that is there has waited.
            self.timers.unproven.begin(node, now.checked_sub(GRACE).unwrap_or(now));
        }
        let unproven = self.timers.unproven.lasts(node, !proven, GRACE, now, &mut self.next);
        if unproven && self.has_heard(node) {
            return State::Hindered(DirectReason::NotProven);
        }
        if unproven {
            return State::Hindered(DirectReason::NoAnswer);
        }
        if !proven {
            return State::Starting;
        }
        if self.use_of(node).is_some_and(|of| is_exhausted(of.used, held)) {
            self.timers.exhausted.insert(node.to_owned(), now);
        }
        match self.timers.exhausted.get(node) {
            Some(at) if *at + RECOVERED > now => {
                let over = *at + RECOVERED;
                self.next = Some(self.next.map_or(over, |next: Instant| next.min(over)));
                State::Hindered(DirectReason::Exhausted)
            }
            _ => State::Proven,
        }
    }

    fn finding(&self, states: &BTreeMap<&str, State>) -> Finding<DirectReason> {
        // The first of these that there is gives its name; the message has all.
        let order = [
            DirectReason::NoFreeBlock,
            DirectReason::Exhausted,
            DirectReason::NoAnswer,
            DirectReason::NotProven,
            DirectReason::NoAddress,
        ];
        let hindered = order.into_iter().filter_map(|reason| {
            let is = |(_, state): &(&&str, &State)| **state == State::Hindered(reason);
            let nodes: Vec<&str> = states.iter().filter(is).map(|(node, _)| *node).collect();
            (!nodes.is_empty()).then(|| (reason, self.message(reason, &nodes)))
        });
        let hindered: Vec<(DirectReason, String)> = hindered.collect();
        if let Some((reason, _)) = hindered.first() {
            let texts: Vec<&str> = hindered.iter().map(|(_, text)| text.as_str()).collect();
            return Finding::new(*reason, texts.join("; "));
        }
        if states.is_empty() {
            let text = "no node has pods of it; each gets ports of the VIP with its first pod";
            return Finding::new(DirectReason::NoPods, text);
        }
        if states.values().all(|state| *state == State::Starting) {
            let text = "nodes have ports of the VIP and prove that they can use them; until then \
                        their pods leave over the holder";
            return Finding::new(DirectReason::Starting, text);
        }
        let text = "the nodes of its pods translate to it, each with ports of its own";
        Finding::new(DirectReason::Proven, text)
    }

    fn message(&self, reason: DirectReason, nodes: &[&str]) -> String {
        let who = if nodes.len() == 1 { "Node" } else { "Nodes" };
        let names = listed(nodes);
        let of = |node: &str| self.use_of(node).map(|of| of.message.as_str());
        let with_why = |node: &&str| match of(node) {
            Some(why) if !why.is_empty() => format!("{node} ({why})"),
            _ => (*node).to_owned(),
        };
        let with_whys = listed(nodes.iter().map(with_why));
        match reason {
            DirectReason::NoFreeBlock => format!(
                "{who} {names} got none of its blocks of ports, for none is free: pods there leave \
                 over the holder; run its pods on fewer nodes, or give some of them another Vip"
            ),
            DirectReason::Exhausted => format!(
                "{who} {with_whys} used up nearly all ports towards a destination, and gets no more: \
                 further connections there go over the holder; spread its pods over more nodes, or \
                 give some another Vip"
            ),
            DirectReason::NoAnswer => format!(
                "{who} {names} did not report to have read of blocks of ports: pods there leave over \
                 the holder; look at the pod of DaemonSet kube-egress there"
            ),
            DirectReason::NoAddress => format!(
                "{who} {names} has no InternalIP of the VIP's family, so answers could not be passed \
                 on: pods there leave over the holder; run its pods on other nodes"
            ),
            _ => format!(
                "{who} {with_whys} cannot use the ports: pods there leave over the holder if they reach it; \
                 see that the network lets addresses pass that are not the sender's, or choose path ViaHolder"
            ),
        }
    }

    /// It is not the path any more.
    fn draining(&self) -> Finding<DirectReason> {
        let having = self.wanted.iter().filter(|(_, of)| of.all().next().is_some());
        let (waiting, silent): (Vec<_>, Vec<_>) = having.partition(|(_, of)| of.open.is_empty());
        let mut texts = Vec::new();
        if !waiting.is_empty() {
            texts.push(format!(
                "new connections go over the holder; those that Node {} translates end as they began",
                listed(waiting.iter().map(|(node, _)| node))
            ));
        }
        if !silent.is_empty() {
            texts.push(format!(
                "the agent on Node {} is yet to say that it has read of its ports; if it does not, \
                 look at the pod of DaemonSet kube-egress there",
                listed(silent.iter().map(|(node, _)| node))
            ));
        }
        Finding::new(DirectReason::Draining, texts.join("; "))
    }
}
