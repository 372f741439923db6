//! What the kernel says of a connection, and what it wants to hear to know which one is meant.

use std::borrow::Cow;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NlasIterator, parse_u8, parse_u16_be};
use netlink_packet_netfilter::NetfilterProtoFamily;

use crate::kernel::nfnetlink::{Message, Messages, number, value};

// enum ctattr_type
pub(super) const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
pub(super) const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
pub(super) const MARK_MASK: u16 = 21;
pub(super) const FILTER: u16 = 25;
// enum ctattr_tuple
pub(super) const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
// enum ctattr_ip
pub(super) const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
// enum ctattr_l4proto
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ICMP_ID: u16 = 4;
const ICMPV6_ID: u16 = 7;

/// A connection, seen from the side that opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Who opened it.
    pub source: IpAddr,
    /// To whom, before any translation.
    pub destination: IpAddr,
    /// IP's number of the protocol.
    pub protocol: u8,
    /// The opener's port, or the ICMP id; 0 where there is none.
    pub source_port: u16,
    /// The other port; 0 where there is none.
    pub destination_port: u16,
    /// The opener's port or ICMP id as the other side sees it; 0 where there is none.
    pub translated_port: u16,
    /// The conntrack zone; 0 is the default.
    pub zone: u16,
    /// The kernel's number for it, which an identical later connection does not have.
    pub id: u32,
    /// The connection mark.
    pub mark: u32,
    /// `IPS_*` bits.
    pub status: u32,
    /// The original tuple as the kernel wrote it, which is what it finds the connection by.
    tuple: Cow<'a, [u8]>,
}

impl Entry<'_> {
    /// Whether its protocol knows the end of a connection, or a connection survives being left
    /// alone: TCP, DCCP, SCTP.
    pub fn has_sessions(&self) -> bool {
        matches!(self.protocol, 6 | 33 | 132)
    }
}

impl<'a> Entry<'a> {
    /// `None` for what is no connection.
    pub(super) fn parse(message: Message<'a>) -> Result<Option<Self>, DecodeError> {
        let unspecified = IpAddr::from([0; 4]);
        let mut entry = Self {
            source: unspecified,
            destination: unspecified,
            protocol: 0,
            source_port: 0,
            destination_port: 0,
            translated_port: 0,
            zone: 0,
            id: 0,
            mark: 0,
            status: 0,
            tuple: Cow::Borrowed(&[]),
        };
        for attribute in message.attributes() {
            let attribute = attribute?;
            let value = value(&attribute);
            match attribute.kind() {
                TUPLE_ORIGINAL => {
                    entry.tuple = Cow::Borrowed(value);
                    entry.take_tuple(value)?;
                }
                TUPLE_REPLY => entry.take_reply(value)?,
                STATUS => entry.status = number(value)?,
                MARK => entry.mark = number(value)?,
                ID => entry.id = number(value)?,
                ZONE => entry.zone = parse_u16_be(value)?,
                _ => {}
            }
        }
        Ok((!entry.tuple.is_empty()).then_some(entry))
    }

    /// The same, independent of the kernel's answer.
    pub fn into_owned(self) -> Entry<'static> {
        Entry { tuple: Cow::Owned(self.tuple.into_owned()), ..self }
    }

    pub(super) fn family(&self) -> NetfilterProtoFamily {
        if self.source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
    }

    /// What makes the kernel find this connection, and no later one that looks like it.
    pub(super) fn put_identity(&self, request: &mut Messages) {
        let tuple = request.nest(TUPLE_ORIGINAL);
        request.raw(&self.tuple);
        request.end(tuple);
        request.number(ID, self.id);
        if self.zone != 0 {
            request.attribute(ZONE, &self.zone.to_be_bytes());
        }
    }

    /// Answers go to where packets seem to come from.
    fn take_reply(&mut self, tuple: &[u8]) -> Result<(), DecodeError> {
        for part in NlasIterator::new(tuple) {
            let part = part?;
            if part.kind() != TUPLE_PROTOCOL {
                continue;
            }
            for attribute in NlasIterator::new(value(&part)) {
                let attribute = attribute?;
                if matches!(attribute.kind(), DESTINATION_PORT | ICMP_ID | ICMPV6_ID) {
                    self.translated_port = parse_u16_be(value(&attribute))?;
                }
            }
        }
        Ok(())
    }

    fn take_tuple(&mut self, tuple: &[u8]) -> Result<(), DecodeError> {
        for part in NlasIterator::new(tuple) {
            let part = part?;
            if !matches!(part.kind(), TUPLE_IP | TUPLE_PROTOCOL) {
                continue; // the tuple's zone, which is no list
            }
            for attribute in NlasIterator::new(value(&part)) {
                let attribute = attribute?;
                let value = value(&attribute);
                match (part.kind(), attribute.kind()) {
                    (TUPLE_IP, V4_SOURCE | V6_SOURCE) => self.source = address(value)?,
                    (TUPLE_IP, V4_DESTINATION | V6_DESTINATION) => {
                        self.destination = address(value)?;
                    }
                    (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => self.protocol = parse_u8(value)?,
                    (TUPLE_PROTOCOL, SOURCE_PORT | ICMP_ID | ICMPV6_ID) => {
                        self.source_port = parse_u16_be(value)?;
                    }
                    (TUPLE_PROTOCOL, DESTINATION_PORT) => {
                        self.destination_port = parse_u16_be(value)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn address(value: &[u8]) -> Result<IpAddr, DecodeError> {
    <[u8; 4]>::try_from(value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .map_err(|_| DecodeError::invalid_ip_address(value.len()))
}
