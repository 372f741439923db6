//! Why what is said of an object is so: one word for each case, as it stands in conditions.

use shared::crd::{egress, egress_mapper, vip};

/// Whether a condition holds and why, in one word.
pub trait Reason: Copy {
    /// The type of the condition.
    const CONDITION: &'static str;

    /// Whether the condition's status is True.
    fn holds(self) -> bool;

    /// As it stands in the condition.
    fn as_str(self) -> &'static str;
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
