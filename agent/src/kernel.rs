//! The kernel of this node: the only place that speaks netlink or runs `nft`.
//!
//! Nothing here decides what ought to be there. Much of it blocks, so all of it belongs on a
//! thread of its own.

pub mod conntrack;
pub mod elements;
pub mod links;
mod nfnetlink;
pub mod nft;
pub mod route_socket;
pub mod routing;
mod seen;
pub mod sysctl;
pub mod tables;

#[cfg(test)]
mod scratch_netns;

pub use nfnetlink::NfnetlinkError;

pub use crate::ruleset::TableNames;
