//! The kernel as the agent sees it through netlink: what is there, and how it is changed.
//!
//! Everything here blocks, so it belongs on a thread of its own. Nothing here decides what ought to
//! be there.

pub mod conntrack;
pub mod elements;
mod nfnetlink;
pub mod tables;

pub use nfnetlink::NfnetlinkError;

/// What our two nftables tables of family `inet` are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableNames {
    /// The table that steers and translates.
    pub main: String,
    /// The table that only drops, and stays when the main one is replaced.
    pub guard: String,
}
