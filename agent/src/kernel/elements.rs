//! Reads and changes the elements of the maps and sets that hold pods, and nothing else of them.
//!
//! Not through `nft`: with 100 000 pods that takes tens of milliseconds per change, and this takes
//! microseconds. The maps and sets themselves come with the rule set.

mod batch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator, parse_u64_be};
use netlink_packet_netfilter::nftables::NfTablesMessageType;
use netlink_packet_netfilter::{NetfilterProtoFamily, NetfilterSubsystem};
use nix::errno::Errno;
use shared::{PodIp, Vip};

use self::batch::Batch;
use super::nfnetlink::{
    Kind, Message, Nfnetlink, NfnetlinkError, find, number, undisturbed, value,
};
use crate::pod_tables::{PodChanges, PodSet, PodStray, PodTables};
use crate::ruleset::TableNames;
use crate::unsure::Unsure;

// enum nft_set_elem_list_attributes
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
// enum nft_list_attributes
const ELEMENT: u16 = 1;
// enum nft_set_elem_attributes
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
// enum nft_data_attributes
const VALUE: u16 = 1;
// enum nft_set_elem_flags
const CATCH_ALL: u32 = 2;

/// What was being done to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `nft add element`.
    Add,
    /// `nft delete element`.
    Remove,
}

/// Why elements could not be read or changed. Nothing has changed but where said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ElementsError {
    /// No socket.
    #[error("cannot reach the kernel's nftables")]
    Open(#[source] NfnetlinkError),
    /// The table or the set is not there: load the rule set.
    #[error("there is no {} in table inet {table}", set.name())]
    Missing {
        /// What was looked for.
        set: PodSet,
        /// Where.
        table: String,
    },
    /// A set could not be read.
    #[error("cannot read {} of table inet {table}", set.name())]
    Read {
        /// Which.
        set: PodSet,
        /// Of which table.
        table: String,
        /// Why.
        source: NfnetlinkError,
    },
    /// The kernel refused a change: `EEXIST` on adding a pod that has another VIP, `ENOENT` on
    /// removing one that is not there (so the state that was compared is not the kernel's; look
    /// again), `ENOMEM`, `ENFILE` (the set is full), …
    #[error(
        "cannot {} {} {} of table inet {table}",
        match action { Action::Add => "add", Action::Remove => "remove" },
        match element {
            Some(address) => format!("{address}"),
            None => "elements".to_owned(),
        },
        match action {
            Action::Add => format!("to {}", set.name()),
            Action::Remove => format!("from {}", set.name()),
        }
    )]
    Refused {
        /// What was tried.
        action: Action,
        /// On which set.
        set: PodSet,
        /// Of which table.
        table: String,
        /// The first element that was refused, if the kernel names it.
        element: Option<IpAddr>,
        /// The kernel's reason.
        source: Errno,
    },
    /// The kernel refused the transaction as such.
    #[error("cannot commit a transaction of {elements} elements")]
    Commit {
        /// How many elements it would have changed.
        elements: usize,
        /// The kernel's reason.
        source: Errno,
    },
    /// The transaction could not be sent, or its outcome is unknown (look again).
    #[error("cannot carry out a transaction of {elements} elements")]
    Transact {
        /// How many elements it would have changed.
        elements: usize,
        /// Why.
        source: NfnetlinkError,
    },
}

/// The elements of the maps and sets, in the network namespace of the thread that opened it.
pub struct Elements {
    netfilter: Nfnetlink,
    names: TableNames,
}

impl Elements {
    /// Needs `CAP_NET_ADMIN`.
    pub fn open(names: TableNames) -> Result<Self, ElementsError> {
        Ok(Self { netfilter: Nfnetlink::open().map_err(ElementsError::Open)?, names })
    }

    /// The port id that the kernel's notifications of our own changes carry.
    pub fn port_id(&self) -> u32 {
        self.netfilter.port_id()
    }

    /// Reads all that hold pods. Each is a snapshot by itself; others may change one between two of them.
    /// One that does not exist holds nothing.
    pub fn dump(&mut self) -> Result<PodTables, ElementsError> {
        let mut tables = PodTables::default();
        for set in PodSet::ALL {
            match self.dump_set(set) {
                Ok(SetElements { mut vips, mut pods, strays, unsure: _ }) => {
                    tables.vips.append(&mut vips);
                    let of_set =
                        if set.is_known() { &mut tables.known } else { &mut tables.guarded };
                    of_set.append(&mut pods);
                    tables.strays.extend(strays);
                }
                Err(ElementsError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for (family, set) in [PodSet::Unsure4, PodSet::Unsure6].into_iter().enumerate() {
            match self.dump_set(set) {
                Ok(elements) => tables.unsure[family] = elements.unsure,
                Err(ElementsError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tables)
    }

    /// Makes the changes in one transaction: all of it, or nothing.
    ///
    /// Whatever its size: a million pods are one datagram of some 50 MB.
    pub fn apply(&mut self, changes: &PodChanges) -> Result<(), ElementsError> {
        if changes.is_empty() {
            return Ok(());
        }
        let batch = Batch::of(changes, &self.names, self.netfilter.batch(NFTABLES));
        batch.commit(&mut self.netfilter)
    }

    fn dump_set(&mut self, set: PodSet) -> Result<SetElements, ElementsError> {
        let table = set.table(&self.names);
        let netfilter = &mut self.netfilter;
        undisturbed(|| {
            let mut request = netfilter.requests();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            request.message(kind(NfTablesMessageType::GetSetElement), flags, INET, 0);
            request.text(LIST_TABLE, table);
            request.text(LIST_SET, set.name());
            let mut elements = Arrivals::default();
            netfilter.read(&request, |message| elements.take(set, message))?;
            elements.complete()
        })
        .map_err(|error| match error {
            NfnetlinkError::Refused(Errno::ENOENT) => {
                ElementsError::Missing { set, table: table.to_owned() }
            }
            source => ElementsError::Read { set, table: table.to_owned(), source },
        })
    }
}

const NFTABLES: NetfilterSubsystem = NetfilterSubsystem::NfTables;
const INET: NetfilterProtoFamily = NetfilterProtoFamily::Inet;

fn kind(message: NfTablesMessageType) -> Kind {
    Kind::new(NFTABLES, message.into())
}

/// The elements of one set.
struct SetElements {
    vips: BTreeMap<PodIp, Option<Vip>>,
    pods: BTreeSet<PodIp>,
    strays: BTreeSet<PodStray>,
    unsure: Unsure,
}

/// The elements of one set, as they come.
#[derive(Default)]
struct Arrivals {
    vips: Vec<(PodIp, Option<Vip>)>,
    pods: Vec<PodIp>,
    strays: Vec<PodStray>,
    unsure: Unsure,
}

impl Arrivals {
    /// Sorts them, if they are all.
    ///
    /// The kernel finds its place again for each part of a dump by counting, and gives no warning
    /// when its hash table has been reordered in between (it grows in the background after many
    /// additions). Then some elements come twice and others not at all. As many come as the set
    /// holds, at least, so none is missing if none came twice.
    fn complete(self) -> Result<SetElements, NfnetlinkError> {
        let Self { vips, pods, strays, unsure } = self;
        let arrived = (vips.len(), pods.len(), strays.len());
        // Collected, not inserted one by one: that sorts once, and is several times faster.
        let vips = BTreeMap::from_iter(vips);
        let pods = BTreeSet::from_iter(pods);
        let strays = BTreeSet::from_iter(strays);
        if (vips.len(), pods.len(), strays.len()) == arrived {
            Ok(SetElements { vips, pods, strays, unsure })
        } else {
            Err(NfnetlinkError::Interrupted)
        }
    }

    fn take(&mut self, set: PodSet, message: Message<'_>) -> Result<(), DecodeError> {
        let Some(list) = find(message.attributes, LIST_ELEMENTS)? else { return Ok(()) };
        for element in NlasIterator::new(list) {
            self.take_element(set, value(&element?))?;
        }
        Ok(())
    }

    fn take_element(&mut self, set: PodSet, element: &[u8]) -> Result<(), DecodeError> {
        let (mut key, mut data, mut flags, mut expires) = ([].as_slice(), None, 0, 0);
        for attribute in NlasIterator::new(element) {
            let attribute = attribute?;
            match attribute.kind() {
                KEY => key = find(value(&attribute), VALUE)?.unwrap_or_default(),
                DATA => data = find(value(&attribute), VALUE)?,
                FLAGS => flags = number(value(&attribute))?,
                EXPIRATION => expires = parse_u64_be(value(&attribute))?,
                _ => {}
            }
        }
        if [PodSet::Unsure4, PodSet::Unsure6].contains(&set) {
            if address(key).is_some_and(|addr| addr.is_unspecified()) {
                let end = || Unsure::Until(Instant::now() + Duration::from_millis(expires));
                self.unsure = if expires == 0 { Unsure::Always } else { end() };
            }
            return Ok(());
        }
        let pod = address(key).and_then(|addr| PodIp::try_from(addr).ok()).filter(|_| flags == 0);
        match (pod, data.map(|data| address(data).map(held_or_vip))) {
            (Some(pod), None) if !set.is_map() => self.pods.push(pod),
            (Some(pod), Some(Some(Ok(vip)))) if set.is_map() => self.vips.push((pod, vip)),
            _ => self.strays.push(PodStray { set, key: key.to_vec() }),
        }
        Ok(())
    }
}

/// The value of a map's element: the unspecified address is a held pod.
fn held_or_vip(addr: IpAddr) -> Result<Option<Vip>, shared::vip::InvalidVip> {
    if addr.is_unspecified() { Ok(None) } else { Vip::try_from(addr).map(Some) }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
