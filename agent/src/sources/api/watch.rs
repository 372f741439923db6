//! What can be watched, and how it is selected.

use std::fmt;

use kube::api::{ListParams, WatchParams};
use shared::config_map::{
    CANDIDATES, NETWORKS, NODE_LABEL, NODE_REPORT_PREFIX, Object, PODS_OF_NODE_PREFIX,
    REPORT_LABEL, ROUTE_IDS, VIPS, pods_of_node,
};

/// One object by its name, or the pods of all nodes.
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
}

impl Watch {
    /// The object's name, on that node; none if there are many.
    pub(super) fn name(self, node: &str) -> Option<String> {
        Some(match self {
            Self::Vips => VIPS.to_owned(),
            Self::RouteIds => ROUTE_IDS.to_owned(),
            Self::Networks => NETWORKS.to_owned(),
            Self::Candidates => CANDIDATES.to_owned(),
            Self::PodsOfNode => pods_of_node(node),
            Self::PodsOfOthers | Self::ReportsOfOthers => return None,
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
                _ => false,
            },
        }
    }

    pub(super) fn list(self, node: &str) -> ListParams {
        let all = ListParams::default();
        match self.name(node) {
            Some(name) => all.fields(&format!("metadata.name={name}")),
            None => all.labels(self.selector()),
        }
    }

    pub(super) fn watch(self, node: &str, seconds: u32) -> WatchParams {
        let all = WatchParams::default().timeout(seconds);
        match self.name(node) {
            Some(name) => all.fields(&format!("metadata.name={name}")),
            None => all.labels(self.selector()),
        }
    }

    fn selector(self) -> &'static str {
        if self == Self::ReportsOfOthers { REPORT_LABEL } else { NODE_LABEL }
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
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodsOfNode => write!(f, "{PODS_OF_NODE_PREFIX}<this node>"),
            Self::PodsOfOthers => write!(f, "{PODS_OF_NODE_PREFIX}<other nodes>"),
            Self::ReportsOfOthers => write!(f, "{NODE_REPORT_PREFIX}<other nodes>"),
            named => f.write_str(named.label()),
        }
    }
}
