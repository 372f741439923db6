//! What the resolver sees, and what it answers: plain data, no client, no clock.

mod observed;
mod verdict;

pub use self::observed::{Node, Observed, Owned, Owner, Pod};
pub use self::verdict::{
    DirectReason, EgressReason, EgressVerdict, Finding, HeldReason, InUseReason, MapperReason,
    MapperVerdict, Named, ObjectKey, PathVerdict, PlacedReason, Reason, Resolved, UniqueReason,
    VipReason, VipVerdict,
};
