//! What can be watched, and how it is selected.

use std::fmt;

use kube::api::{ListParams, WatchParams};
use shared::config_map::{
    BLOCKS_LABEL, BLOCKS_OF_NODE_PREFIX, BLOCKS_PREFIX, CANDIDATES, NETWORKS, NODE_LABEL,
    NODE_REPORT_PREFIX, Object, PODS_OF_NODE_PREFIX, REPORT_LABEL, ROUTE_IDS, VIPS, label_of_node,
    pods_of_node,
};

/// One object by its name, or many by their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watch {
    Vips,
    RouteIds,
    Networks,
    Candidates,
    PodsOfNode,
    /// Of every other node.
    PodsOfOthers,
    /// What every other node has learnt of its new pods: a shorter way than over the controller.
    ReportsOfOthers,
    /// The blocks of VIPs that are this node's.
    BlocksOfNode,
    /// Those of every node.
    BlocksOfAll,
}

/// What a node that may hold VIPs watches besides.
pub(super) const WIDER: [Watch; 3] =
    [Watch::PodsOfOthers, Watch::BlocksOfAll, Watch::ReportsOfOthers];

impl Watch {
    /// The object's name, on that node; none if there are many.
    pub(super) fn name(self, node: &str) -> Option<String> {
        Some(match self {
            Self::Vips => VIPS.to_owned(),
            Self::RouteIds => ROUTE_IDS.to_owned(),
            Self::Networks => NETWORKS.to_owned(),
            Self::Candidates => CANDIDATES.to_owned(),
            Self::PodsOfNode => pods_of_node(node),
            Self::PodsOfOthers | Self::ReportsOfOthers | Self::BlocksOfNode | Self::BlocksOfAll => {
                return None;
            }
        })
    }

    /// Whether an object of that name is meant, whatever the server says.
    pub(super) fn means(self, object: &str, node: &str) -> bool {
        match self.name(node) {
            Some(name) => name == object,
            // The node's own object has a watch of its own, and two would overtake each other.
            None => match (self, Object::of_name(object)) {
                (Self::PodsOfOthers, Some(Object::PodsOfNode(other)))
                | (Self::ReportsOfOthers, Some(Object::ReportOfNode(other))) => other != node,
                (Self::BlocksOfNode | Self::BlocksOfAll, Some(Object::BlocksOfVip(_))) => true,
                _ => false,
            },
        }
    }

    pub(super) fn list(self, node: &str) -> ListParams {
        let all = ListParams::default();
        match self.name(node) {
            Some(name) => all.fields(&format!("metadata.name={name}")),
            None => all.labels(&self.selector(node)),
        }
    }

    pub(super) fn watch(self, node: &str, seconds: u32) -> WatchParams {
        let all = WatchParams::default().timeout(seconds);
        match self.name(node) {
            Some(name) => all.fields(&format!("metadata.name={name}")),
            None => all.labels(&self.selector(node)),
        }
    }

    /// The label that objects have.
    fn selector(self, node: &str) -> String {
        match self {
            Self::ReportsOfOthers => REPORT_LABEL.to_owned(),
            Self::BlocksOfAll => BLOCKS_LABEL.to_owned(),
            Self::BlocksOfNode => format!("{BLOCKS_OF_NODE_PREFIX}{}", label_of_node(node)),
            _ => NODE_LABEL.to_owned(),
        }
    }

    /// Whether an object may have lost the label by which it was found, and still be there.
    pub(super) const fn may_lose_label(self) -> bool {
        matches!(self, Self::BlocksOfNode)
    }

    /// What metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vips => VIPS,
            Self::RouteIds => ROUTE_IDS,
            Self::Networks => NETWORKS,
            Self::Candidates => CANDIDATES,
            Self::PodsOfNode => "pods-of-this-node",
            Self::PodsOfOthers => "pods-of-other-nodes",
            Self::ReportsOfOthers => "reports-of-other-nodes",
            Self::BlocksOfNode => "blocks-of-this-node",
            Self::BlocksOfAll => "blocks-of-all-nodes",
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodsOfNode => write!(f, "{PODS_OF_NODE_PREFIX}<this node>"),
            Self::PodsOfOthers => write!(f, "{PODS_OF_NODE_PREFIX}<other nodes>"),
            Self::ReportsOfOthers => write!(f, "{NODE_REPORT_PREFIX}<other nodes>"),
            Self::BlocksOfNode => write!(f, "{BLOCKS_PREFIX}<VIPs of this node>"),
            Self::BlocksOfAll => write!(f, "{BLOCKS_PREFIX}<VIPs>"),
            named => f.write_str(named.label()),
        }
    }
}
