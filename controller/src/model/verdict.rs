//! What is decided: what to publish, and what to say of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::crd::{BlocksStatus, PathTaken, egress, egress_mapper, vip};
use shared::mappings::Expected;
use shared::{ClusterNetworks, PodIp, PodUid, RouteId, Vip, VipPath};

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

/// Whether a condition holds and why, in one word.
pub trait Reason: Copy {
    /// The type of the condition.
    const CONDITION: &'static str;

    /// Whether the condition's status is True.
    fn holds(self) -> bool;

    /// As it stands in the condition.
    fn as_str(self) -> &'static str;
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

/// Why a Vip is accepted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipReason {
    Accepted,
    InvalidAddress,
    AddressConflict,
    RouteIdConflict,
    NoFreeRouteId,
    WrongNamespace,
}

/// Whether a node holds a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeldReason {
    Held,
    /// More than one node has the address, and not just for a moment.
    SeveralHolders,
    NoHolder,
    NotAccepted,
}

/// Whether a VIP is where it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlacedReason {
    Placed,
    /// It leaves the node that holds it for another one.
    Moving,
    PreferredNodeNotFound,
    /// The preferred node exists, but cannot be expected to hold it.
    PreferredNodeUnusable,
    NoGateway,
    NotAccepted,
}

/// Whether nobody else uses a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UniqueReason {
    NoConflict,
    Conflict,
    NotAccepted,
}

/// Whether nodes translate to a VIP on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DirectReason {
    /// Every node with pods of it does.
    Proven,
    /// No node has pods of it.
    NoPods,
    /// Nodes have blocks and have not yet proven that they can use them.
    Starting,
    /// Nodes have no address of the VIP's family.
    NoAddress,
    /// There are too few blocks for all nodes.
    NoFreeBlock,
    /// A node has used up its ports towards a destination.
    Exhausted,
    /// A node's agent does not say what it makes of its blocks.
    NoAnswer,
    /// A node says that it cannot use its blocks.
    NotProven,
    /// It is not the path any more, and connections are still on it.
    Draining,
}

/// Whether Egresses use a Vip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InUseReason {
    InUse,
    NotInUse,
    NotAccepted,
}

/// Why the pods of an Egress leave with its VIP or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EgressReason {
    Mapped,
    NoMatchingPods,
    VipNotFound,
    VipNotAccepted,
    /// No node holds the VIP and the Egress says `NodeAddress`.
    VipNotHeld,
    NotPermitted,
    UnknownKind,
    /// The fields do not fit together (admission refuses that).
    InvalidSpec,
    Overridden,
}

/// Whether an `EgressMapper` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapperReason {
    Accepted,
    WrongNamespace,
    /// An older one counts.
    NotTheOldest,
    /// It counts, but not all of its networks can be used.
    InvalidNetworks,
}

impl Reason for VipReason {
    const CONDITION: &'static str = vip::condition::ACCEPTED;

    fn holds(self) -> bool {
        self == Self::Accepted
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::InvalidAddress => "InvalidAddress",
            Self::AddressConflict => "AddressConflict",
            Self::RouteIdConflict => "RouteIdConflict",
            Self::NoFreeRouteId => "NoFreeRouteId",
            Self::WrongNamespace => "WrongNamespace",
        }
    }
}

impl Reason for HeldReason {
    const CONDITION: &'static str = vip::condition::HELD;

    fn holds(self) -> bool {
        matches!(self, Self::Held | Self::SeveralHolders)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Held => "Held",
            Self::SeveralHolders => "SeveralHolders",
            Self::NoHolder => "NoHolder",
            Self::NotAccepted => "NotAccepted",
        }
    }
}

impl Reason for PlacedReason {
    const CONDITION: &'static str = vip::condition::PLACED;

    fn holds(self) -> bool {
        self == Self::Placed
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "Placed",
            Self::Moving => "Moving",
            Self::PreferredNodeNotFound => "PreferredNodeNotFound",
            Self::PreferredNodeUnusable => "PreferredNodeUnusable",
            Self::NoGateway => "NoGateway",
            Self::NotAccepted => "NotAccepted",
        }
    }
}

impl Reason for UniqueReason {
    const CONDITION: &'static str = vip::condition::UNIQUE;

    fn holds(self) -> bool {
        self == Self::NoConflict
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::NoConflict => "NoConflict",
            Self::Conflict => "Conflict",
            Self::NotAccepted => "NotAccepted",
        }
    }
}

impl Reason for InUseReason {
    const CONDITION: &'static str = vip::condition::IN_USE;

    fn holds(self) -> bool {
        self == Self::InUse
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "InUse",
            Self::NotInUse => "NotInUse",
            Self::NotAccepted => "NotAccepted",
        }
    }
}

impl Reason for DirectReason {
    const CONDITION: &'static str = vip::condition::DIRECT_PATH;

    fn holds(self) -> bool {
        matches!(self, Self::Proven | Self::NoPods)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "Proven",
            Self::NoPods => "NoPods",
            Self::Starting => "Starting",
            Self::NoAddress => "NoAddress",
            Self::NoFreeBlock => "NoFreeBlock",
            Self::Exhausted => "Exhausted",
            Self::NoAnswer => "NoAnswer",
            Self::NotProven => "NotProven",
            Self::Draining => "Draining",
        }
    }
}

impl Reason for EgressReason {
    const CONDITION: &'static str = egress::condition::READY;

    fn holds(self) -> bool {
        self == Self::Mapped
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Mapped => "Mapped",
            Self::NoMatchingPods => "NoMatchingPods",
            Self::VipNotFound => "VipNotFound",
            Self::VipNotAccepted => "VipNotAccepted",
            Self::VipNotHeld => "VipNotHeld",
            Self::NotPermitted => "NotPermitted",
            Self::UnknownKind => "UnknownKind",
            Self::InvalidSpec => "InvalidSpec",
            Self::Overridden => "Overridden",
        }
    }
}

impl Reason for MapperReason {
    const CONDITION: &'static str = egress_mapper::condition::ACCEPTED;

    fn holds(self) -> bool {
        self == Self::Accepted
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::WrongNamespace => "WrongNamespace",
            Self::NotTheOldest => "NotTheOldest",
            Self::InvalidNetworks => "InvalidNetworks",
        }
    }
}
