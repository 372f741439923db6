//! The kernel of this node: the only place that speaks netlink or runs `nft`.

pub mod links;
pub mod nft;
pub mod route_socket;
pub mod routing;
pub mod sysctl;

#[cfg(test)]
mod scratch_netns;
