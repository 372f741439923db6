//! What the resolver sees, and what it answers: plain data, no client, no clock.

mod observed;
mod reason;
mod verdict;

pub use self::observed::{Node, Observed, Owned, Owner, Pod};
pub use self::reason::{
    DirectReason, EgressReason, HeldReason, InUseReason, MapperReason, PlacedReason, Reason,
    UniqueReason, VipReason,
};
pub use self::verdict::{
    EgressVerdict, Finding, MapperVerdict, Named, ObjectKey, PathVerdict, Resolved, VipVerdict,
};
