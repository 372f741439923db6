//! Which nodes may hold VIPs.

use std::collections::BTreeSet;
use std::sync::Arc;

use shared::crd::EgressMapper;

use crate::model::Node;

/// The names of the nodes that may hold VIPs.
pub(super) struct Gateways<'a> {
    pub(super) usual: BTreeSet<&'a str>,
    /// Those that are being emptied (`kubectl cordon`, `kubectl drain`).
    pub(super) spare: BTreeSet<&'a str>,
}

impl<'a> Gateways<'a> {
    /// Those that the `EgressMapper` selects; all by default.
    ///
    /// A node that is not ready stays: keepalived knows sooner who is there, and a list that changed
    /// with every hiccup would move VIPs that need not move.
    pub(super) fn new(mapper: Option<&EgressMapper>, nodes: &'a [Arc<Node>]) -> Self {
        let selector = mapper.and_then(|mapper| mapper.spec.gateway_selector.as_ref());
        let selected =
            |node: &&Arc<Node>| selector.is_none_or(|selector| selector.matches(&node.labels));
        let (spare, usual): (Vec<_>, Vec<_>) =
            nodes.iter().filter(selected).partition(|node| node.unschedulable);
        let names =
            |nodes: Vec<&'a Arc<Node>>| nodes.into_iter().map(|node| node.name.as_str()).collect();
        Self { usual: names(usual), spare: names(spare) }
    }

    pub(super) fn count(&self) -> usize {
        self.usual.len() + self.spare.len()
    }
}
