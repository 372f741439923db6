//! How netfilter's netlink messages and attributes lie in memory, in both directions.

use netlink_packet_core::{
    DecodeError, Emitable, ErrorContext, NLA_F_NESTED, NLA_HEADER_SIZE, NetlinkBuffer,
    NetlinkHeader, NlaBuffer, NlasIterator, parse_u32_be,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterProtoFamily, NetfilterSubsystem};

const MESSAGE_HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// What a request is: the subsystem in the high byte, the message in the low one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(pub(super) u16);

impl Kind {
    pub(crate) fn new(subsystem: NetfilterSubsystem, message: u8) -> Self {
        Self(u16::from_be_bytes([u8::from(subsystem), message]))
    }
}

/// Requests under construction, one after another in one datagram.
///
/// Each has the sequence number after the one before, so that answers can be told apart.
#[derive(Debug)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    first: u32,
    count: u32,
    /// Where the last message begins; its length is not final until the next begins.
    last: usize,
}

/// An attribute begun by [`Messages::nest`] and not closed yet.
#[must_use]
pub(crate) struct Nest(usize);

impl Messages {
    pub(super) fn new(first: u32) -> Self {
        Self { bytes: Vec::with_capacity(256), first, count: 0, last: 0 }
    }

    /// Begins the next message. `resource` is a subsystem for batch markers, else 0.
    pub(crate) fn message(
        &mut self,
        kind: Kind,
        flags: u16,
        family: NetfilterProtoFamily,
        resource: u16,
    ) {
        self.last = self.bytes.len();
        let mut header = NetlinkHeader::default(); // its length is up to `close`
        header.message_type = kind.0;
        header.flags = flags;
        header.sequence_number = self.first.wrapping_add(self.count);
        let mut headers = [0; MESSAGE_HEADER + FAMILY_HEADER];
        header.emit(&mut headers[..MESSAGE_HEADER]);
        NetfilterHeader::new(family, 0, resource).emit(&mut headers[MESSAGE_HEADER..]);
        self.bytes.extend_from_slice(&headers);
        self.count = self.count.wrapping_add(1);
        self.close();
    }

    /// Adds an attribute to the last message.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&attribute_length(NLA_HEADER_SIZE + value.len()));
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.close();
    }

    /// Adds attributes that the kernel has laid out.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.close();
    }

    /// Adds a string as the kernel wants it: NUL-terminated.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Adds a number in network byte order.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Begins an attribute that holds the attributes that follow, until [`Messages::end`].
    pub(crate) fn nest(&mut self, kind: u16) -> Nest {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        Nest(start)
    }

    pub(crate) fn end(&mut self, Nest(start): Nest) {
        let length = attribute_length(self.bytes.len() - start);
        self.bytes[start..start + 2].copy_from_slice(&length);
    }

    /// Adds flags to the last message.
    pub(super) fn flag_last(&mut self, flags: u16) {
        let at = self.last;
        let mut header = NetlinkBuffer::new(&mut self.bytes[at..]);
        header.set_flags(header.flags() | flags);
    }

    fn close(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn next_sequence(&self) -> u32 {
        self.first.wrapping_add(self.count)
    }

    /// Where in the order of messages the one with this sequence number is, if it is one of these.
    pub(super) fn position(&self, sequence: u32) -> Option<u32> {
        let position = sequence.wrapping_sub(self.first);
        (position < self.count).then_some(position)
    }

    /// The attribute that begins `offset` bytes into the message at `position`.
    pub(crate) fn attribute_at(&self, position: u32, offset: usize) -> Option<NlaBuffer<&[u8]>> {
        let mut rest = self.bytes.as_slice();
        for _ in 0..position {
            let length = NetlinkBuffer::new_checked(rest).ok()?.length();
            rest = rest.get(usize::try_from(length).ok()?..)?;
        }
        NlaBuffer::new_checked(rest.get(offset..)?).ok()
    }
}

/// A length that does not fit becomes one the kernel refuses, for it runs past the message.
fn attribute_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes()
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) attributes: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        NetfilterHeader::parse(payload).context("netfilter header")?;
        Ok(Self { attributes: &payload[FAMILY_HEADER..] })
    }

    pub(crate) fn attributes(&self) -> NlasIterator<&'a [u8]> {
        NlasIterator::new(self.attributes)
    }
}

/// The value of an attribute, for as long as the message lives.
pub(crate) fn value<'a>(attribute: &NlaBuffer<&'a [u8]>) -> &'a [u8] {
    let whole = attribute.into_inner();
    &whole[NLA_HEADER_SIZE..usize::from(attribute.length())]
}

/// The value of the first attribute of this kind among those in `attributes`.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Result<Option<&[u8]>, DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return Ok(Some(value(&attribute)));
        }
    }
    Ok(None)
}

/// A NUL-terminated name; bytes that are no UTF-8 are replaced.
pub(crate) fn name(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// A 32-bit number in network byte order.
pub(crate) fn number(value: &[u8]) -> Result<u32, DecodeError> {
    parse_u32_be(value)
}
