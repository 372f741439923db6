//! The bytes of a probe and of its answer: an ICMP echo request in an Ethernet frame of our own making,
//! because no address of this node is its source.

use std::net::IpAddr;

use super::{Answer, Probe};

/// A link-layer address.
pub type Mac = [u8; 6];

/// What tells probes of this process from all other echoes: the first bytes of their payload.
pub type Tag = [u8; 4];

/// The last bytes of the payload, for whoever sees it in a capture.
const SIGNATURE: &[u8; 13] = b"egress-mapper";

/// Where an answer's parts are, from the network layer on, with no options or extensions before it.
pub mod offset {
    pub const V4_HEADER: usize = 20;
    pub const V6_HEADER: usize = 40;
    /// From the ICMP header on.
    pub const TAG: usize = 8;
    pub const NONCE: usize = 12;
    pub const SIGNATURE: usize = 20;
}

/// IP's numbers of the protocols, and the types of answers.
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const V4_REPLY: u8 = 0;
pub const V6_REPLY: u8 = 129;
/// IPv4, and a header without options.
pub const V4_FIRST_BYTE: u8 = 0x45;
const V4_REQUEST: u8 = 8;
const V6_REQUEST: u8 = 128;
const HOP_LIMIT: u8 = 64;

const ETHERNET_V4: [u8; 2] = [0x08, 0x00];
const ETHERNET_V6: [u8; 2] = [0x86, 0xdd];

/// The frame of a probe; nothing if its addresses are not of one family.
pub fn frame(probe: &Probe, tag: Tag, from: Mac, to: Mac) -> Option<Vec<u8>> {
    let mut frame = [to, from].concat();
    match (probe.vip.addr(), probe.way.target) {
        (IpAddr::V4(vip), IpAddr::V4(target)) => {
            let mut echo = echo(probe, tag, V4_REQUEST);
            seal(&mut echo, checksum(&[]));
            let length = u16::try_from(offset::V4_HEADER + echo.len()).ok()?;
            let mut header = vec![V4_FIRST_BYTE, 0];
            header.extend(length.to_be_bytes());
            // id 0, never to be cut into pieces
            header.extend([0, 0, 0x40, 0, HOP_LIMIT, ICMP, 0, 0]);
            header.extend(vip.octets());
            header.extend(target.octets());
            let sum = finish(checksum(&[&header])).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            frame.extend(ETHERNET_V4);
            frame.extend(header);
            frame.extend(echo);
        }
        (IpAddr::V6(vip), IpAddr::V6(target)) => {
            let mut echo = echo(probe, tag, V6_REQUEST);
            let length = u16::try_from(echo.len()).ok()?.to_be_bytes();
            let (vip, target) = (vip.octets(), target.octets());
            seal(&mut echo, checksum(&[&vip, &target, &length, &[0, ICMPV6]]));
            frame.extend(ETHERNET_V6);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length);
            frame.extend([ICMPV6, HOP_LIMIT]);
            frame.extend(vip);
            frame.extend(target);
            frame.extend(echo);
        }
        _ => return None,
    }
    Some(frame)
}

/// The answer in a packet from the network layer on, if it is one to a probe of ours.
pub fn answer(packet: &[u8], tag: Tag) -> Option<Answer> {
    let (source, destination, echo, reply) = match packet.first()? >> 4 {
        4 => {
            let whole = packet[0] == V4_FIRST_BYTE
                && packet.get(9)? == &ICMP
                && matches!(packet.get(6..8)?, [0 | 0x40, 0]);
            let source = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
            let destination = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
            let echo = packet.get(offset::V4_HEADER..).filter(|_| whole)?;
            (IpAddr::from(source), IpAddr::from(destination), echo, V4_REPLY)
        }
        6 => {
            let source = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
            let destination = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
            let echo = packet.get(offset::V6_HEADER..).filter(|_| packet[6] == ICMPV6)?;
            (IpAddr::from(source), IpAddr::from(destination), echo, V6_REPLY)
        }
        _ => return None,
    };
    let ours = echo.first() == Some(&reply)
        && echo.get(1) == Some(&0)
        && echo.get(offset::TAG..offset::NONCE)? == tag
        && echo.get(offset::SIGNATURE..offset::SIGNATURE + SIGNATURE.len())? == SIGNATURE;
    let word = |at: usize| Some(u16::from_be_bytes(echo.get(at..at + 2)?.try_into().ok()?));
    let nonce = echo.get(offset::NONCE..offset::SIGNATURE)?.try_into().ok()?;
    ours.then_some(Answer {
        source,
        destination,
        id: word(4)?,
        sequence: word(6)?,
        nonce: u64::from_be_bytes(nonce),
    })
}

fn echo(probe: &Probe, tag: Tag, request: u8) -> Vec<u8> {
    let mut echo = vec![request, 0, 0, 0];
    echo.extend(probe.id.to_be_bytes());
    echo.extend(probe.sequence.to_be_bytes());
    echo.extend(tag);
    echo.extend(probe.nonce.to_be_bytes());
    echo.extend(SIGNATURE);
    echo
}

/// Writes the checksum over the echo and what is counted with it.
fn seal(echo: &mut [u8], with: u32) {
    let sum = finish(with + checksum(&[echo])).to_be_bytes();
    if let Some(place) = echo.get_mut(2..4) {
        place.copy_from_slice(&sum);
    }
}

/// The sum of all words; each part but the last has an even number of bytes.
fn checksum(parts: &[&[u8]]) -> u32 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low))).sum()
}

/// The complement of the sum in ones' complement.
fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proof::Way;
    use crate::routing::Device;

    const TAG: Tag = *b"tag!";

    fn probe(vip: &str, target: &str, id: u16, sequence: u16, nonce: u64) -> Probe {
        let target = target.parse().unwrap();
        let device = Device { index: 2, name: "eth0".to_owned() };
        let way = Way { device, next_hop: target, target };
        let block = 1.try_into().unwrap();
        Probe { vip: vip.parse().unwrap(), block, id, sequence, nonce, way }
    }

    /// What the target makes of a request.
    fn reply(frame: &[u8]) -> Vec<u8> {
        let mut packet = frame[14..].to_vec();
        if packet[0] >> 4 == 4 {
            let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
            packet[12..20].copy_from_slice(&[destination, source].concat());
            packet[20] = V4_REPLY;
        } else {
            let (source, destination) = (packet[8..24].to_vec(), packet[24..40].to_vec());
            packet[8..40].copy_from_slice(&[destination, source].concat());
            packet[40] = V6_REPLY;
        }
        packet
    }

    #[test]
    fn a_request_is_what_the_standards_say() {
        let probe = probe("192.0.2.222", "192.0.2.1", 0x0401, 7, 0x0102_0304_0506_0708);
        let frame = frame(&probe, TAG, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).unwrap();
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(frame.len(), 14 + 20 + 33);
        assert_eq!(finish(checksum(&[&frame[14..34]])), 0, "header");
        assert_eq!(finish(checksum(&[&frame[34..]])), 0, "echo");
        assert_eq!(frame[34..42], [8, 0, frame[36], frame[37], 4, 1, 0, 7]);
    }

    proptest! {
        #[test]
        fn an_answer_says_what_was_asked(id: u16, sequence: u16, nonce: u64, v6: bool) {
            let (vip, target) =
                if v6 { ("fd00::222", "fe80::1") } else { ("192.0.2.222", "192.0.2.1") };
            let probe = probe(vip, target, id, sequence, nonce);
            let reply = reply(&frame(&probe, TAG, [2; 6], [4; 6]).unwrap());
            let source = target.parse().unwrap();
            let destination = vip.parse().unwrap();
            let expected = Answer { source, destination, id, sequence, nonce };
            prop_assert_eq!(answer(&reply, TAG), Some(expected));
            prop_assert_eq!(answer(&reply, *b"else"), None);
            for end in 0..reply.len() {
                prop_assert_eq!(answer(&reply[..end], TAG), None);
            }
        }

        #[test]
        fn no_bytes_whatever_make_it_stumble(bytes: Vec<u8>) {
            prop_assert_eq!(answer(&bytes, TAG), None);
        }
    }
}
