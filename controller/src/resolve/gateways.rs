//! Which nodes may hold VIPs, and how each of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use shared::address::usable;
use shared::config_map::{DRAIN_LABEL, NodeReport};
use shared::crd::EgressMapper;

use crate::candidates::Nodes;
use crate::model::{Node, Observed};

/// How long a node may be cordoned before its VIPs are moved away: what is over sooner moves none.
const CORDONED_FOR_LONG: Duration = Duration::from_mins(5);

/// The nodes that may hold VIPs: those that the `EgressMapper` selects; all by default.
pub(super) struct Gateways<'a> {
    states: BTreeMap<&'a str, State>,
    synced: BTreeSet<&'a str>,
}

/// How a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// It keeps its VIPs if it can: keepalived knows sooner who is there, and VIPs that moved with
    /// every hiccup would move needlessly.
    NotReady,
    /// It keeps its VIPs and takes no others.
    Cordoned,
    /// Its VIPs are moved away.
    CordonedForLong,
    /// Its VIPs are moved away.
    Drained,
}

impl State {
    fn of(node: &Node, now: Timestamp) -> Self {
        let is_drained = node.labels.get(DRAIN_LABEL).is_some_and(|value| value != "false");
        let for_long = |since: Timestamp| since + CORDONED_FOR_LONG <= now;
        if is_drained {
            Self::Drained
        } else if node.unschedulable && node.cordoned.is_some_and(for_long) {
            Self::CordonedForLong
        } else if !node.ready {
            Self::NotReady
        } else if node.unschedulable {
            Self::Cordoned
        } else {
            Self::Ready
        }
    }

    /// Whether it is to let go of what it has.
    pub(super) fn is_emptied(self) -> bool {
        matches!(self, Self::CordonedForLong | Self::Drained)
    }

    /// As it stands after the name of a node.
    pub(super) fn wording(self) -> &'static str {
        match self {
            Self::Ready => "is ready",
            Self::NotReady => "is not ready",
            Self::Cordoned => "is cordoned",
            Self::CordonedForLong => "is cordoned for long",
            Self::Drained => "is being drained",
        }
    }
}

impl<'a> Gateways<'a> {
    pub(super) fn new(mapper: Option<&EgressMapper>, observed: &'a Observed) -> Self {
        let selector = mapper.and_then(|mapper| mapper.spec.gateway_selector.as_ref());
        let selected =
            |node: &&Arc<Node>| selector.is_none_or(|selector| selector.matches(&node.labels));
        let state = |node: &'a Arc<Node>| (node.name.as_str(), State::of(node, observed.now));
        let states: BTreeMap<_, _> = observed.nodes.iter().filter(selected).map(state).collect();
        let reports = &observed.reports;
        let is_synced =
            |node: &&str| reports.get(*node).is_some_and(|report: &NodeReport| report.synced);
        Self { synced: states.keys().copied().filter(is_synced).collect(), states }
    }

    pub(super) fn state(&self, node: &str) -> Option<State> {
        self.states.get(node).copied()
    }

    /// Whether the node's agent says that it is in sync.
    pub(super) fn is_in_sync(&self, node: &str) -> bool {
        self.synced.contains(node)
    }

    /// Where they are, as far as that is known. Also those that are not ready: keepalived may work there.
    pub(super) fn addresses(&self, nodes: &'a [Arc<Node>]) -> impl Iterator<Item = IpAddr> {
        let selected = nodes.iter().filter(|node| self.states.contains_key(node.name.as_str()));
        let addresses = selected.flat_map(|node| node.reached_at());
        addresses.filter(|addr| usable(*addr).is_ok())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.states.len()
    }

    /// How many take VIPs and are known to do their work.
    pub(super) fn ready(&self) -> usize {
        self.nodes().in_sync.len()
    }

    pub(super) fn nodes(&self) -> Nodes<'a> {
        let mut nodes = Nodes::default();
        for (&node, state) in &self.states {
            match state {
                State::Ready => nodes.usual.insert(node),
                State::NotReady | State::Cordoned => nodes.spare.insert(node),
                State::CordonedForLong | State::Drained => nodes.emptied.insert(node),
            };
        }
        nodes.in_sync = nodes.usual.intersection(&self.synced).copied().collect();
        nodes
    }
}
