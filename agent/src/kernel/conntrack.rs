//! Finds and deletes connections in the kernel's connection tracking. Creates and changes none.
//!
//! What is deleted is looked up again by the connection's next packet, in today's rules.

mod entry;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::{NetfilterProtoFamily, NetfilterSubsystem};
use nix::errno::Errno;

use super::nfnetlink::{Kind, Messages, Nfnetlink, NfnetlinkError};

pub use entry::Entry;

// enum cntl_msg_types
const GET: u8 = 1;
const DELETE: u8 = 2;
// enum ctattr_filter
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// Compare the tuple's source address only.
const FILTER_BY_SOURCE: u32 = 1;

/// Beyond this one dump of everything is cheaper than one filtered dump per pod: each walks all
/// buckets of a table that the whole machine shares (14 ms for the usual 262144), and to read an
/// entry that is not wanted takes a third of a microsecond.
const FILTERED_DUMPS: usize = 2;
/// Refusals of one datagram's requests fit into the socket's buffer.
const DELETIONS_PER_DATAGRAM: usize = 1000;

/// Connections whose mark is `value` under `mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkFilter {
    /// What the masked bits are.
    pub value: u32,
    /// Which bits are compared.
    pub mask: u32,
}

/// Why connections could not be read or deleted. Some may have been deleted.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("cannot reach the kernel's connection tracking")]
    Open(#[source] NfnetlinkError),
    /// The connections could not be read.
    #[error("cannot read connections")]
    Read(#[source] NfnetlinkError),
    /// The flush would have hit connections that are not marked at all.
    #[error("cannot flush connections by mark {value:#x}/{mask:#x}: it would hit unmarked ones")]
    Unmarked {
        /// The mark.
        value: u32,
        /// Its mask.
        mask: u32,
    },
    /// Connections could not be flushed.
    #[error("cannot flush connections with mark {value:#x}/{mask:#x}")]
    Flush {
        /// The mark.
        value: u32,
        /// Its mask.
        mask: u32,
        /// Why.
        source: NfnetlinkError,
    },
    /// A connection could not be deleted.
    #[error("cannot delete connections")]
    Delete(#[source] NfnetlinkError),
}

/// The connections in the network namespace of the thread that opened it.
pub struct Conntrack {
    netfilter: Nfnetlink,
}

impl Conntrack {
    /// Needs `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self { netfilter: Nfnetlink::open().map_err(ConntrackError::Open)? })
    }

    /// Deletes every connection with this mark, of both families, in the kernel alone.
    pub fn flush_mark(&mut self, value: u32, mask: u32) -> Result<(), ConntrackError> {
        if value & mask == 0 {
            return Err(ConntrackError::Unmarked { value, mask });
        }
        let mut request = self.netfilter.requests();
        // A flush with version 0, as all our requests are, is for both families.
        request.message(kind(DELETE), NLM_F_REQUEST | NLM_F_ACK, NetfilterProtoFamily::Unspec, 0);
        put_mark(&mut request, MarkFilter { value, mask });
        self.submit(request).map(drop).map_err(|source| ConntrackError::Flush {
            value,
            mask,
            source,
        })
    }

    /// Hands each connection of both families to `each`; with a filter, those with that mark.
    ///
    /// Connections that come or go meanwhile may or may not be among them.
    pub fn entries(
        &mut self,
        filter: Option<MarkFilter>,
        each: impl FnMut(Entry<'_>),
    ) -> Result<(), ConntrackError> {
        self.read(Narrow { mark: filter, ..Narrow::default() }, each)
    }

    /// Deletes a connection. It is no error that it has ended already.
    pub fn delete(&mut self, entry: &Entry<'_>) -> Result<(), ConntrackError> {
        self.delete_all(std::slice::from_ref(entry)).map(drop)
    }

    /// Deletes every connection the predicate picks, and returns how many were there to delete.
    pub fn delete_where(
        &mut self,
        mut doomed: impl FnMut(&Entry<'_>) -> bool,
    ) -> Result<usize, ConntrackError> {
        let mut entries = Vec::new();
        self.read(Narrow::default(), |entry| {
            if doomed(&entry) {
                entries.push(entry.into_owned());
            }
        })?;
        self.delete_all(&entries)
    }

    /// Deletes the connections these pods opened that the predicate picks, and returns how many
    /// were there to delete. For few pods the kernel does the looking.
    pub fn delete_of(
        &mut self,
        pods: &BTreeSet<IpAddr>,
        doomed: impl Fn(&Entry<'_>) -> bool,
    ) -> Result<usize, ConntrackError> {
        let v4: Vec<_> = pods
            .iter()
            .filter_map(|pod| match pod {
                IpAddr::V4(pod) => Some(*pod),
                IpAddr::V6(_) => None,
            })
            .collect();
        let whole = |family| Narrow { family, ..Narrow::default() };
        let of_v4 = Some(NetfilterProtoFamily::IPv4);
        // The kernel's filter by address is inverted for IPv6: it returns all the others.
        let views = match (v4.len(), pods.len() - v4.len()) {
            (0, 0) => Vec::new(),
            (1..=FILTERED_DUMPS, 0) => {
                let by = |&source| Narrow { source: Some(source), ..whole(of_v4) };
                v4.iter().map(by).collect()
            }
            (_, 0) => vec![whole(of_v4)],
            (0, _) => vec![whole(Some(NetfilterProtoFamily::IPv6))],
            (_, _) => vec![whole(None)],
        };
        let mut entries = Vec::new();
        for view in views {
            self.read(view, |entry| {
                // Compared here too: kernels before 5.8 do not know the filter.
                if pods.contains(&entry.source) && doomed(&entry) {
                    entries.push(entry.into_owned());
                }
            })?;
        }
        self.delete_all(&entries)
    }

    fn read(
        &mut self,
        narrow: Narrow,
        mut each: impl FnMut(Entry<'_>),
    ) -> Result<(), ConntrackError> {
        let mut request = self.netfilter.requests();
        narrow.put(&mut request);
        self.netfilter
            .read(&request, |message| {
                if let Some(entry) = Entry::parse(message)? {
                    each(entry);
                }
                Ok(())
            })
            .map_err(ConntrackError::Read)
    }

    fn delete_all(&mut self, entries: &[Entry<'_>]) -> Result<usize, ConntrackError> {
        let mut deleted = 0;
        for entries in entries.chunks(DELETIONS_PER_DATAGRAM) {
            let mut requests = self.netfilter.requests();
            for entry in entries {
                requests.message(kind(DELETE), NLM_F_REQUEST, entry.family(), 0);
                entry.put_identity(&mut requests);
            }
            deleted += self.submit(requests).map_err(ConntrackError::Delete)?;
        }
        Ok(deleted)
    }

    /// How many of the requests found what they were about.
    fn submit(&mut self, requests: Messages) -> Result<usize, NfnetlinkError> {
        let count = requests.count();
        let refusals = self.netfilter.submit(requests)?;
        match refusals.iter().find(|refusal| refusal.errno != Errno::ENOENT) {
            Some(refusal) => Err(NfnetlinkError::Refused(refusal.errno)),
            None => Ok(count - refusals.len()),
        }
    }
}

/// Which connections the kernel is to dump.
#[derive(Clone, Copy, Default)]
struct Narrow {
    family: Option<NetfilterProtoFamily>,
    mark: Option<MarkFilter>,
    /// The original direction's source; wants the family, too.
    source: Option<Ipv4Addr>,
}

impl Narrow {
    fn put(self, request: &mut Messages) {
        let Self { family, mark, source } = self;
        let family = family.unwrap_or(NetfilterProtoFamily::Unspec);
        request.message(kind(GET), NLM_F_REQUEST | NLM_F_DUMP, family, 0);
        if let Some(mark) = mark {
            put_mark(request, mark);
        }
        if let Some(source) = source {
            let tuple = request.nest(entry::TUPLE_ORIGINAL);
            let ip = request.nest(entry::TUPLE_IP);
            request.attribute(entry::V4_SOURCE, &source.octets());
            request.end(ip);
            request.end(tuple);
            let filter = request.nest(entry::FILTER);
            request.attribute(FILTER_ORIGINAL, &FILTER_BY_SOURCE.to_ne_bytes());
            request.attribute(FILTER_REPLY, &0_u32.to_ne_bytes());
            request.end(filter);
        }
    }
}

fn kind(message: u8) -> Kind {
    Kind::new(NetfilterSubsystem::Conntrack, message)
}

fn put_mark(request: &mut Messages, MarkFilter { value, mask }: MarkFilter) {
    request.number(entry::MARK, value & mask);
    request.number(entry::MARK_MASK, mask);
}
