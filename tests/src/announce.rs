//! Telling the LAN where an address is: gratuitous ARP and unsolicited neighbour advertisement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket,
};

use crate::host::Host;

/// As keepalived does: one frame may get lost.
const REPEATS: usize = 3;

/// Announces from a host's `eth0` that `address` is there.
pub(crate) fn announce(host: &Host, address: IpAddr) -> Result<()> {
    host.enter(|| -> Result<()> {
        let link = link_address("eth0")?;
        let mac = link.addr().ok_or_else(|| anyhow!("eth0 has no MAC address"))?;
        let frame = match address {
            IpAddr::V4(address) => gratuitous_arp(mac, address),
            IpAddr::V6(address) => unsolicited_advertisement(mac, address),
        };
        let sender = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None::<SockProtocol>,
        )?;
        for _ in 0..REPEATS {
            sendto(sender.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
        }
        Ok(())
    })?
    .with_context(|| format!("cannot announce {address} from {}", host.name))
}

fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| anyhow!("there is no interface {interface}"))
}

fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, 0x0806);
    // Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, flags router and override (a node forwards), option 2: target link-layer address.
    let mut message = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let length = u16::try_from(message.len()).unwrap_or_default().to_be_bytes();
    let mut pseudo_header = Vec::new();
    pseudo_header.extend(address.octets());
    pseudo_header.extend(all_nodes.octets());
    pseudo_header.extend([0, 0, length[0], length[1], 0, 0, 0, 58]);
    let sum = checksum(pseudo_header.iter().chain(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    // Version 6, next header ICMPv6, hop limit 255: anything lower is ignored.
    frame.extend([0x60, 0, 0, 0, length[0], length[1], 58, 255]);
    frame.extend(address.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    [to.as_slice(), &from, &kind.to_be_bytes()].concat()
}

/// The Internet checksum of an even number of bytes.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    let bytes: Vec<u8> = bytes.copied().collect();
    let sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}
