//! The shell around the kernel: the only place that speaks netlink and runs `nft`.

pub mod links;
pub mod route_socket;
pub mod routing;
pub mod sysctl;

#[cfg(test)]
mod scratch_netns;
