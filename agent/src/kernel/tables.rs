//! Looks at our tables as the kernel holds them: chains, rules, sets, counters. Changes nothing.
//!
//! Enough to tell whether they are still as they were loaded, without `nft`: every look is a few
//! system calls. The elements of sets are the business of [`super::elements`].

mod decode;

use std::collections::BTreeMap;

use netlink_packet_core::{DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::NfTablesMessageType;
use netlink_packet_netfilter::{NetfilterProtoFamily, NetfilterSubsystem};
use nix::errno::Errno;

use super::nfnetlink::{Kind, Message, Messages, Nfnetlink, NfnetlinkError, undisturbed};
use crate::kernel_state::Count;
use crate::ruleset::TableNames;

/// The tables at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesState {
    /// The kernel's count of nftables transactions in this namespace, by anyone.
    pub generation: u32,
    /// The main table, if it exists.
    pub main: Option<Table>,
    /// The guard table, if it exists.
    pub guard: Option<Table>,
    /// The ingress table, if it exists.
    pub ingress: Option<Table>,
}

/// A table and what is in it, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its number in this namespace; a table deleted and loaded again has another.
    pub handle: u64,
    /// `NFT_TABLE_F_*`; a table with bit 0 is dormant, it does nothing.
    pub flags: u32,
    /// Its chains.
    pub chains: BTreeMap<String, Chain>,
    /// Its maps and sets, but for the anonymous ones, which are part of rules.
    pub sets: BTreeMap<String, Set>,
    /// Its named counters.
    pub counters: BTreeMap<String, Count>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where it is called from, if from outside at all.
    pub base: Option<Base>,
    /// In the order they run in.
    pub rules: Vec<Rule>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `enum nf_inet_hooks`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting; of a device
    /// `enum nf_dev_hooks`: 0 ingress.
    pub hook: u32,
    /// The devices that it is hooked in at, if it is at devices.
    pub devices: Vec<String>,
    /// Lower runs earlier.
    pub priority: i32,
    /// `NF_DROP` 0 or `NF_ACCEPT` 1.
    pub policy: u32,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its number in its table; never used again for another.
    pub handle: u64,
    /// Its comment, if it has one.
    pub comment: Option<String>,
    /// A fingerprint of what it does: the same rule loaded twice into one kernel has the same.
    /// Packets do not change it. Of an anonymous set or map only the name is in it: its elements
    /// cannot change while the table exists.
    pub digest: u64,
}

/// How a map or set is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// nft's number of the key's type: 7 `ipv4_addr`, 8 `ipv6_addr`.
    pub key_type: u32,
    /// The key's length in bytes.
    pub key_len: u32,
    /// nft's number of the value's type; 0 for a set.
    pub data_type: u32,
    /// The value's length in bytes; 0 for a set.
    pub data_len: u32,
    /// `NFT_SET_*`.
    pub flags: u32,
    /// How many elements it may have; 0 is any number.
    pub size: u32,
    /// Its number in its table; never used again for another.
    pub handle: u64,
    /// How many elements it has; kernels before 6.16 do not tell.
    pub count: Option<u32>,
}

/// The named counters of the tables; those of a missing table are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of the main table.
    pub main: BTreeMap<String, Count>,
    /// Of the guard table.
    pub guard: BTreeMap<String, Count>,
    /// Of the ingress table.
    pub ingress: BTreeMap<String, Count>,
}

/// Why tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// No socket.
    #[error("cannot reach the kernel's nftables")]
    Open(#[source] NfnetlinkError),
    /// The count of transactions could not be read.
    #[error("cannot read the generation of nftables")]
    Generation(#[source] NfnetlinkError),
    /// The tables could not be read.
    #[error(
        "cannot read tables inet {}, inet {} and netdev {}", names.main, names.guard, names.ingress()
    )]
    Read {
        /// Which.
        names: TableNames,
        /// Why; [`NfnetlinkError::Interrupted`] when others keep changing nftables.
        source: NfnetlinkError,
    },
}

/// Reads tables in the network namespace of the thread that opened it.
pub struct Tables {
    netfilter: Nfnetlink,
    names: TableNames,
}

impl Tables {
    /// Needs `CAP_NET_ADMIN`.
    pub fn open(names: TableNames) -> Result<Self, TablesError> {
        Ok(Self { netfilter: Nfnetlink::open().map_err(TablesError::Open)?, names })
    }

    /// The kernel's count of nftables transactions in this namespace, by anyone.
    pub fn generation(&mut self) -> Result<u32, TablesError> {
        generation(&mut self.netfilter).map_err(TablesError::Generation)
    }

    /// The tables, as they were between two transactions.
    pub fn look(&mut self) -> Result<TablesState, TablesError> {
        let Self { netfilter, names } = self;
        undisturbed(|| {
            let generation = generation(netfilter)?;
            let main = table(netfilter, INET, &names.main)?;
            let guard = table(netfilter, INET, &names.guard)?;
            let ingress = table(netfilter, NETDEV, names.ingress())?;
            if self::generation(netfilter)? == generation {
                Ok(TablesState { generation, main, guard, ingress })
            } else {
                Err(NfnetlinkError::Interrupted)
            }
        })
        .map_err(|source| TablesError::Read { names: names.clone(), source })
    }

    /// The named counters alone.
    pub fn counters(&mut self) -> Result<Counters, TablesError> {
        let Self { netfilter, names } = self;
        undisturbed(|| {
            let main = counters(netfilter, INET, &names.main)?;
            let guard = counters(netfilter, INET, &names.guard)?;
            let ingress = counters(netfilter, NETDEV, names.ingress())?;
            Ok(Counters { main, guard, ingress })
        })
        .map_err(|source| TablesError::Read { names: names.clone(), source })
    }
}

fn generation(netfilter: &mut Nfnetlink) -> Result<u32, NfnetlinkError> {
    let mut generation = None;
    let mut request = netfilter.requests();
    put_request(&mut request, NfTablesMessageType::GetGen, NLM_F_ACK, INET);
    netfilter.read(&request, |message| {
        generation = decode::generation(message.attributes)?.or(generation);
        Ok(())
    })?;
    generation.ok_or(NfnetlinkError::Silent)
}

const INET: NetfilterProtoFamily = NetfilterProtoFamily::Inet;
const NETDEV: NetfilterProtoFamily = NetfilterProtoFamily::NetDev;

fn table(
    netfilter: &mut Nfnetlink,
    family: NetfilterProtoFamily,
    name: &str,
) -> Result<Option<Table>, NfnetlinkError> {
    let mut request = netfilter.requests();
    put_request(&mut request, NfTablesMessageType::GetTable, NLM_F_ACK, family);
    request.text(decode::TABLE_NAME, name);
    let mut table = Table::default();
    match netfilter.read(&request, |message| {
        (table.handle, table.flags) = decode::table(message.attributes)?;
        Ok(())
    }) {
        Err(NfnetlinkError::Refused(Errno::ENOENT)) => return Ok(None),
        result => result?,
    }

    let of_table = |request: &mut Messages| request.text(decode::OF_TABLE, name);
    // Of chains the kernel dumps those of every table of the family, whatever is asked for.
    dump(netfilter, family, NfTablesMessageType::GetChain, of_table, |message| {
        let chain = decode::chain(message.attributes, name)?;
        table.chains.extend(chain);
        Ok(())
    })?;
    let mut rules = Vec::new();
    dump(netfilter, family, NfTablesMessageType::GetRule, of_table, |message| {
        rules.extend(decode::rule(message.attributes, name)?);
        Ok(())
    })?;
    for (chain, rule) in rules {
        table.chains.entry(chain).or_default().rules.push(rule);
    }
    dump(netfilter, family, NfTablesMessageType::GetSet, of_table, |message| {
        table.sets.extend(decode::set(message.attributes, name)?);
        Ok(())
    })?;
    table.counters = counters(netfilter, family, name)?;
    Ok(Some(table))
}

fn counters(
    netfilter: &mut Nfnetlink,
    family: NetfilterProtoFamily,
    table: &str,
) -> Result<BTreeMap<String, Count>, NfnetlinkError> {
    let mut counters = BTreeMap::new();
    let filter = |request: &mut Messages| {
        request.text(decode::OF_TABLE, table);
        request.number(decode::OBJECT_TYPE, decode::COUNTER);
    };
    dump(netfilter, family, NfTablesMessageType::GetObject, filter, |message| {
        counters.extend(decode::counter(message.attributes, table)?);
        Ok(())
    })?;
    Ok(counters)
}

fn dump(
    netfilter: &mut Nfnetlink,
    family: NetfilterProtoFamily,
    what: NfTablesMessageType,
    filter: impl Fn(&mut Messages),
    each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
) -> Result<(), NfnetlinkError> {
    let mut request = netfilter.requests();
    put_request(&mut request, what, NLM_F_DUMP, family);
    filter(&mut request);
    netfilter.read(&request, each)
}

fn put_request(
    request: &mut Messages,
    what: NfTablesMessageType,
    flags: u16,
    family: NetfilterProtoFamily,
) {
    let kind = Kind::new(NetfilterSubsystem::NfTables, what.into());
    request.message(kind, NLM_F_REQUEST | flags, family, 0);
}
