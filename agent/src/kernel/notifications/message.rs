//! What a notification of the kernel's means to us. Reads bytes, decides what is no concern of
//! ours.
//!
//! Only the few attributes that matter are looked at: most messages are about others, and an
//! attribute that is new to the libraries must not make one of ours unreadable.

use std::net::IpAddr;

use netlink_packet_core::{NLMSG_OVERRUN, NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Interest, Notice};
use crate::kernel::links::is_usable;
use crate::node_facts::is_link_local;

/// One message of a datagram.
pub(super) struct Message<'a> {
    kind: u16,
    /// Who made the change; 0 is the kernel.
    pub(super) port: u32,
    payload: &'a [u8],
}

/// A message is cut off or not what it claims to be.
#[derive(Debug)]
pub(super) struct Unreadable;

/// The messages of a datagram, up to one that cannot be read.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Unreadable>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Ok(buffer) = NetlinkBuffer::new_checked(rest) else {
            rest = &[];
            return Some(Err(Unreadable));
        };
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        let (kind, port) = (buffer.message_type(), buffer.port_number());
        let payload = rest.get(16..length);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(payload.map(|payload| Message { kind, port, payload }).ok_or(Unreadable))
    })
}

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const NEW_NETCONF: u16 = 80;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the number of a transaction, of whatever table.
const NEW_GENERATION: u16 = 15;
const NEW_ELEMENT: u16 = 12;
const DELETED_ELEMENT: u16 = 14;

/// What there is to look at, if anything.
pub(super) fn notices(
    protocol: isize,
    message: &Message<'_>,
    interest: &Interest,
) -> Result<Vec<Notice>, Unreadable> {
    if message.kind == NLMSG_OVERRUN {
        return Ok(vec![Notice::Overrun]);
    }
    if protocol != NETLINK_ROUTE {
        return nftables(message, interest);
    }
    route_notice(message, interest).map(|notice| notice.into_iter().collect())
}

fn route_notice(message: &Message<'_>, interest: &Interest) -> Result<Option<Notice>, Unreadable> {
    match message.kind {
        NEW_LINK => link(message.payload, true),
        DEL_LINK => link(message.payload, false),
        NEW_ADDRESS => address(message.payload, true),
        DEL_ADDRESS => address(message.payload, false),
        NEW_ROUTE => route(message.payload, interest, true),
        DEL_ROUTE => route(message.payload, interest, false),
        NEW_RULE | DEL_RULE => rule(message.payload, interest),
        NEW_NETCONF => netconf(message.payload),
        _ => Ok(None),
    }
}

const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;

/// `struct ifinfomsg`: family 0, index 4, flags 8
fn link(payload: &[u8], exists: bool) -> Result<Option<Notice>, Unreadable> {
    // a port that enters or leaves a bridge is told of once more, as the bridge's
    if byte(payload, 0)? == AF_BRIDGE {
        return Ok(None);
    }
    let index = word(payload, 4)?;
    if !exists {
        return Ok(Some(Notice::LinkGone { index }));
    }
    let up = word(payload, 8)? & IFF_UP != 0;
    let name = find(payload, 16, IFLA_IFNAME, text)?.unwrap_or_default();
    Ok(Some(Notice::Link { index, name, up }))
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// `struct ifaddrmsg`: flags 2, index 4
fn address(payload: &[u8], exists: bool) -> Result<Option<Notice>, Unreadable> {
    let device = word(payload, 4)?;
    let flags = find(payload, 8, IFA_FLAGS, number)?.unwrap_or(byte(payload, 2)?.into());
    // point to point: IFA_ADDRESS is the other end's
    let addr = match find(payload, 8, IFA_LOCAL, ip)? {
        Some(addr) => addr,
        None => find(payload, 8, IFA_ADDRESS, ip)?.ok_or(Unreadable)?,
    };
    // no VIP is one, and every interface of a pod has one
    if is_link_local(addr) {
        return Ok(None);
    }
    Ok(Some(Notice::Address { addr, device, usable: exists && is_usable(flags) }))
}

const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;

/// `struct rtmsg`: family 0, destination's length 1, table 4, protocol 5, type 7, flags 8
fn route(payload: &[u8], interest: &Interest, exists: bool) -> Result<Option<Notice>, Unreadable> {
    let table = find(payload, 12, RTA_TABLE, number)?.unwrap_or(byte(payload, 4)?.into());
    if byte(payload, 5)? == interest.owned.protocol() || interest.owned.tables().contains(&table) {
        return Ok(Some(Notice::Routing));
    }
    let full = if byte(payload, 0)? == 2 { 32 } else { 128 };
    let length = byte(payload, 1)?;
    if table == TABLE_LOCAL && length == full && byte(payload, 7)? == RTN_LOCAL {
        return local_route(payload, exists);
    }
    if table != TABLE_MAIN
        || length == full
        || byte(payload, 7)? != RTN_UNICAST
        || word(payload, 8)? & RTM_F_CLONED != 0
    {
        return Ok(None);
    }
    if find(payload, 12, RTA_DST, ip)?.is_some_and(is_link_local) {
        return Ok(None);
    }
    let by_gateway = find(payload, 12, RTA_GATEWAY, |_| Some(()))?.is_some()
        || find(payload, 12, RTA_VIA, |_| Some(()))?.is_some()
        || find(payload, 12, RTA_MULTIPATH, |_| Some(()))?.is_some();
    if length == 0 || !by_gateway {
        return Ok(Some(Notice::Networks));
    }
    let device = find(payload, 12, RTA_OIF, number)?.filter(|_| exists);
    Ok(device.map(|device| Notice::Routed { device }))
}

/// An address is told of a moment before it is in force, and before it no longer is; this is the moment.
fn local_route(payload: &[u8], exists: bool) -> Result<Option<Notice>, Unreadable> {
    let addr = find(payload, 12, RTA_DST, ip)?.ok_or(Unreadable)?;
    let device = find(payload, 12, RTA_OIF, number)?.unwrap_or_default();
    let address = Notice::Address { addr, device, usable: exists };
    Ok((!is_link_local(addr)).then_some(address))
}

const FRA_PRIORITY: u16 = 6;
const FRA_PROTOCOL: u16 = 21;

/// `struct fib_rule_hdr`
fn rule(payload: &[u8], interest: &Interest) -> Result<Option<Notice>, Unreadable> {
    let priority = find(payload, 12, FRA_PRIORITY, number)?.unwrap_or(0);
    let protocol = find(payload, 12, FRA_PROTOCOL, |value| value.first().copied())?;
    let concerns_us = interest.owned.priorities().contains(&priority)
        || protocol == Some(interest.owned.protocol());
    Ok(concerns_us.then_some(Notice::Routing))
}

const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;

/// `struct netconfmsg`: family
fn netconf(payload: &[u8]) -> Result<Option<Notice>, Unreadable> {
    let rp_filter = find(payload, 4, NETCONFA_RP_FILTER, |_| Some(()))?.is_some();
    let forwarding = find(payload, 4, NETCONFA_FORWARDING, |_| Some(()))?.is_some();
    // both at once: a device has come, and its link is told of as well
    let concerns_us = rp_filter != forwarding;
    // below zero: all devices, or the default for those to come
    let device =
        find(payload, 4, NETCONFA_IFINDEX, number)?.filter(|index| i32::try_from(*index).is_ok());
    Ok(concerns_us.then_some(Notice::NetConf { device }))
}

/// In every message but that of the generation, the first attribute is the table's name.
const NFTA_TABLE: u16 = 1;

/// `NFT_MSG_*` of what has no elements: new tables, chains, rules, new sets, objects.
const WITHOUT_ELEMENTS: [u16; 9] = [0, 3, 5, 6, 8, 9, 18, 19, 20];

/// `struct nfgenmsg`
fn nftables(message: &Message<'_>, interest: &Interest) -> Result<Vec<Notice>, Unreadable> {
    if message.kind >> 8 != NFTABLES || message.kind & 0xff == NEW_GENERATION {
        return Ok(Vec::new());
    }
    let table = find(message.payload, 4, NFTA_TABLE, text)?;
    let Some(table) = table.filter(|table| interest.tables.contains(table)) else {
        return Ok(Vec::new());
    };
    Ok(match message.kind & 0xff {
        NEW_ELEMENT | DELETED_ELEMENT => vec![Notice::Elements { table }],
        kind if WITHOUT_ELEMENTS.contains(&kind) => vec![Notice::Nftables { table }],
        // sets and tables that go, and whatever kernels may come to tell
        _ => vec![Notice::Nftables { table: table.clone() }, Notice::Elements { table }],
    })
}

/// The value of the first attribute of a kind, after a header of so many bytes.
fn find<T>(
    payload: &[u8],
    header: usize,
    kind: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, Unreadable> {
    for attribute in NlasIterator::new(payload.get(header..).ok_or(Unreadable)?) {
        let attribute: NlaBuffer<&[u8]> = attribute.map_err(|_| Unreadable)?;
        if attribute.kind() == kind {
            return read(attribute.value()).map(Some).ok_or(Unreadable);
        }
    }
    Ok(None)
}

/// Which transaction a message of nftables is about: the end of its number, and all of it in the
/// message that ends the transaction.
pub(super) fn generation(message: &Message<'_>) -> Option<(u16, Option<u32>)> {
    const NFTA_GEN_ID: u16 = 1;
    let resource = message.payload.get(2..4)?.try_into().ok().map(u16::from_be_bytes)?;
    let ends = message.kind >> 8 == NFTABLES && message.kind & 0xff == NEW_GENERATION;
    let whole = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let id = if ends { find(message.payload, 4, NFTA_GEN_ID, whole).ok()? } else { None };
    Some((resource, id))
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(value.get(..end)?).ok().map(str::to_owned)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn byte(payload: &[u8], at: usize) -> Result<u8, Unreadable> {
    payload.get(at).copied().ok_or(Unreadable)
}

fn word(payload: &[u8], at: usize) -> Result<u32, Unreadable> {
    payload.get(at..at + 4).and_then(number).ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::notifications::OwnPorts;
    use crate::routing::Ownership;

    proptest! {
        #[test]
        fn no_bytes_whatever_make_it_stumble(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![16..34_u16, Just(80), 0x0a00..0x0a20_u16],
            protocol in prop_oneof![Just(0_isize), Just(12)],
        ) {
            let interest = Interest {
                owned: Ownership::default(),
                tables: ["egress".to_owned()].into(),
                own_ports: OwnPorts::default(),
            };
            if let Some(length) = u32::try_from(bytes.len()).ok().filter(|length| *length >= 16) {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            for message in messages(&bytes) {
                let _ = message.and_then(|message| notices(protocol, &message, &interest));
            }
        }
    }
}
