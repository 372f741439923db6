//! The kernel of this node: the only place that speaks netlink or runs `nft`.

pub mod nft;
