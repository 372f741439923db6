//! What is decided: what to publish, and what to say of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::crd::{BlocksStatus, PathTaken};
use shared::mappings::Expected;
use shared::{ClusterNetworks, PodIp, PodUid, RouteId, Vip, VipPath};

use super::reason::{
    DirectReason, EgressReason, HeldReason, InUseReason, MapperReason, PlacedReason, Reason,
    UniqueReason, VipReason,
};

/// All that follows from what was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The accepted VIPs and the route id of each.
    pub route_ids: BTreeMap<Vip, RouteId>,
    /// By node: the addresses of the mapped pods there, each with its VIP; `None` holds the pod.
    /// Nodes without any are not named.
    pub shards: BTreeMap<String, BTreeMap<PodIp, Option<Vip>>>,
    /// By node: what is said of pods there by their UIDs. Nodes without any are not named.
    pub named: BTreeMap<String, Named>,
    /// The cluster's own networks.
    pub networks: ClusterNetworks,
    /// The accepted VIPs, each with its Vip and the path that its pods are to leave on.
    pub paths: BTreeMap<Vip, (ObjectKey, VipPath)>,
    /// The accepted VIPs and the nodes that may hold each, best first.
    pub candidates: BTreeMap<Vip, Vec<String>>,
    /// What is said of each Vip.
    pub vips: BTreeMap<ObjectKey, VipVerdict>,
    /// What is said of each Egress.
    pub egresses: BTreeMap<ObjectKey, EgressVerdict>,
    /// What is said of each `EgressMapper`.
    pub mappers: BTreeMap<ObjectKey, MapperVerdict>,
}

/// What is said of the pods on one node by their UIDs; of each pod in one place at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// What pods will get whose addresses nobody knows yet.
    pub expected: BTreeMap<PodUid, Expected>,
    /// The addresses of the mapped pods: an address may have another pod before that is known here,
    /// and the node can tell.
    pub addresses: BTreeMap<PodUid, Vec<PodIp>>,
    /// Pods that the node asked about and that nothing is published for.
    pub uncovered: BTreeSet<PodUid>,
    /// Pods that were covered and do not exist any more: they may still send.
    pub gone: BTreeSet<PodUid>,
}

impl Named {
    /// Whether the pod is to have a VIP, or to be held for want of one.
    pub fn covers(&self, uid: &PodUid) -> bool {
        self.expected.contains_key(uid) || self.addresses.contains_key(uid)
    }
}

/// Which object of a kind it is; shown as `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One condition of an object, but for its bookkeeping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<R> {
    pub reason: R,
    /// For people: what is the case, which object is in the way, and what to do.
    pub message: String,
}

impl<R: Reason> Finding<R> {
    pub(crate) fn new(reason: R, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Whether the condition's status is True.
    pub fn holds(&self) -> bool {
        self.reason.holds()
    }
}

/// What is said of a Vip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipVerdict {
    pub accepted: Finding<VipReason>,
    pub held: Finding<HeldReason>,
    pub in_use: Finding<InUseReason>,
    pub placed: Finding<PlacedReason>,
    pub unique: Finding<UniqueReason>,
    /// The route id, if it is accepted.
    pub route_id: Option<RouteId>,
    /// The node that holds the address, if it is accepted.
    pub holder: Option<String>,
    /// The Egresses that use it, in order; a finalizer keeps it while there are any.
    pub used_by: Vec<ObjectKey>,
    /// How many pods leave with it.
    pub pods: usize,
    /// On which path they do, if it is accepted.
    pub path: Option<PathVerdict>,
}

/// What is said of the path of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathVerdict {
    pub taken: PathTaken,
    /// Who has how many blocks, where it matters.
    pub blocks: Option<BlocksStatus>,
    /// Whether nodes translate on their own; `None` where they neither are to nor were.
    pub direct: Option<Finding<DirectReason>>,
}

impl PathVerdict {
    /// Over the holder, and nothing is left of another path.
    pub fn via_holder() -> Self {
        Self { taken: PathTaken::ViaHolder, blocks: None, direct: None }
    }
}

/// What is said of an Egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressVerdict {
    pub ready: Finding<EgressReason>,
    /// How many live pods match, apart from those on the host network.
    pub pods: usize,
    /// How many of them leave with the VIP.
    pub mapped: usize,
    /// How many pods match and are on the host network or finished.
    pub left_out: usize,
}

/// What is said of an `EgressMapper`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapperVerdict {
    pub accepted: Finding<MapperReason>,
    /// It is the one that counts.
    pub counts: bool,
    /// How many nodes may hold VIPs, if it counts.
    pub gateways: usize,
    /// How many of them take VIPs now, if it counts.
    pub ready_gateways: usize,
}
