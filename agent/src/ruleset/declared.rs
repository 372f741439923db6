//! How the maps and sets of the tables are declared.

use std::fmt;

use super::{LEAVING_SECONDS, forward};
use crate::routing::Family;

/// How a map or set of pods is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What it holds.
    pub kind: DeclaredKind,
    /// Of which family its addresses are.
    pub family: Family,
    /// How many elements it may have; 0 is any number.
    pub size: u32,
}

/// What a declared map or set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclaredKind {
    /// Addresses → addresses.
    Map,
    /// Addresses.
    Set,
    /// Addresses that go by themselves, after [`LEAVING_SECONDS`] unless they are given a time.
    Passing,
    /// Fragmented packets by source, destination and id, put there by rules and gone by themselves
    /// after [`FRAGMENT_SECONDS`].
    Fragments,
    /// Whom new connections are for, by protocol, address and port, each with how many there may be;
    /// put there by rules and gone after [`BURST_SECONDS`] without one.
    Bursts,
    /// Connections by VIP, protocol, the VIP's port, the other address and its port.
    Connections,
    /// Echo requests by VIP, id and whom they are for.
    Echoes,
}

/// How long after its first fragment the others of a packet may come, in seconds.
pub const FRAGMENT_SECONDS: u32 = 2;

/// After how long as many new connections as ever may come at once, in seconds.
pub const BURST_SECONDS: u32 = 90;

impl Declared {
    /// What nft calls such a thing.
    pub const fn keyword(self) -> &'static str {
        match self.kind {
            DeclaredKind::Map => "map",
            _ => "set",
        }
    }

    /// Whether what is declared like this can serve where `wanted` is: it may have room for more.
    pub const fn serves_as(self, wanted: Self) -> bool {
        let Self { kind, family, size } = self;
        let alike = kind as u8 == wanted.kind as u8 && family as u8 == wanted.family as u8;
        alike && (size == 0 || (wanted.size != 0 && size >= wanted.size))
    }
}

/// As nft reads it, but for its keyword and name.
impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, family, size } = *self;
        let address = address_type(family);
        match kind {
            DeclaredKind::Connections => write!(f, "{{ typeof {}; ", forward::connection(family))?,
            DeclaredKind::Echoes => write!(f, "{{ typeof {}; ", forward::echo(family))?,
            DeclaredKind::Map => write!(f, "{{ type {address} : {address}; ")?,
            DeclaredKind::Set => write!(f, "{{ type {address}; ")?,
            DeclaredKind::Passing => {
                write!(f, "{{ type {address}; flags timeout; timeout {LEAVING_SECONDS}s; ")?;
            }
            DeclaredKind::Fragments => {
                let key = forward::fragment(family);
                let timeout = format!("timeout {FRAGMENT_SECONDS}s");
                write!(f, "{{ typeof {key}; flags dynamic,timeout; {timeout}; ")?;
            }
            DeclaredKind::Bursts => {
                let key = format!("inet_proto . {address} . inet_service");
                let timeout = format!("timeout {BURST_SECONDS}s");
                write!(f, "{{ type {key}; flags dynamic,timeout; {timeout}; ")?;
            }
        }
        if size != 0 {
            write!(f, "size {size}; ")?;
        }
        f.write_str("}")
    }
}

/// How many elements maps and sets need to have room for, with that many mapped pods.
///
/// With a size the kernel makes a hash table that is never reordered: that halves what it takes to
/// fill and to read it. Each of the four costs two 8-byte buckets for every element there is room
/// for, 2 MiB at the least (8 MiB for all), besides some 64 bytes for every element there is.
///
/// There is a fifth more room than there are pods: a stranger's elements take some, and few more
/// pods shall not make the tables anew. What a transaction removes makes room within it.
pub fn capacity(pods: usize) -> u32 {
    const LEAST: usize = 1 << 17;
    let needed = pods.saturating_add(pods / 4).max(LEAST);
    needed.checked_next_power_of_two().and_then(|size| u32::try_from(size).ok()).unwrap_or(u32::MAX)
}

const fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}
