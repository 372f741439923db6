//! A packet of a pod, and what connection tracking knows of its connection.

use std::net::IpAddr;

use shared::PodIp;

/// What connection tracking knows of a connection that a pod has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) pod: PodIp,
    pub(super) mark: u32,
    /// The source that it is translated to, once that is decided; the pod's own is possible.
    pub(super) source: Option<IpAddr>,
    /// The port that it is translated to, once that is decided.
    pub(super) port: Option<u16>,
    /// TCP rather than UDP.
    pub(super) session: bool,
}

impl Connection {
    /// One that a pod is about to begin.
    pub(super) fn new(pod: PodIp, session: bool) -> Self {
        Self { pod, mark: 0, source: None, port: None, session }
    }
}

/// The port from which pods send.
pub(super) const PODS_PORT: u16 = 40_000;

/// A packet of a pod on its way through this node.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) saddr: IpAddr,
    pub(super) daddr: IpAddr,
    pub(super) iif: String,
    pub(super) mark: u32,
    pub(super) nexthop: IpAddr,
    pub(super) connection: Connection,
    /// The first of its connection.
    pub(super) new: bool,
    /// What comes out where rules ask for a number by chance, before it is brought below the limit.
    pub(super) chance: u32,
    pub(super) dport: u16,
}
