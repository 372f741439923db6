//! Which IP addresses can be one host's address at all, for VIPs, pods and nodes alike.

use std::net::{IpAddr, Ipv4Addr};

/// Why a text or address cannot be the address of one host; the text of it ends with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Unusable {
    #[error("it is not an IP address; write one address, such as 192.0.2.10 or fd00::10")]
    NotAnAddress,
    #[error("it is the unspecified address; use the address of one host")]
    Unspecified,
    #[error("0.0.0.0/8 is no host's network; use the address of one host")]
    ThisNetwork,
    #[error("it is a loopback address; use one that other hosts can reach")]
    Loopback,
    #[error("it is a link-local address; use one that is valid beyond its link")]
    LinkLocal,
    #[error("it is a multicast address; use a unicast address")]
    Multicast,
    #[error("it is the broadcast address; use a unicast address")]
    Broadcast,
    #[error("240.0.0.0/4 is reserved; use a unicast address")]
    Reserved,
    #[error("it is an IPv4 address in IPv6 form; write it as {0}")]
    Ipv4InIpv6(Ipv4Addr),
}

/// The same address, if a host can have it.
pub fn usable(addr: IpAddr) -> Result<IpAddr, Unusable> {
    let unusable = match addr {
        IpAddr::V4(v4) if v4.is_unspecified() => Unusable::Unspecified,
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Unusable::ThisNetwork,
        IpAddr::V4(v4) if v4.is_loopback() => Unusable::Loopback,
        IpAddr::V4(v4) if v4.is_link_local() => Unusable::LinkLocal,
        IpAddr::V4(v4) if v4.is_multicast() => Unusable::Multicast,
        IpAddr::V4(v4) if v4.is_broadcast() => Unusable::Broadcast,
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Unusable::Reserved,
        IpAddr::V6(v6) if v6.is_unspecified() => Unusable::Unspecified,
        IpAddr::V6(v6) if v6.is_loopback() => Unusable::Loopback,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Unusable::LinkLocal,
        IpAddr::V6(v6) if v6.is_multicast() => Unusable::Multicast,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Unusable::Ipv4InIpv6(v4),
            None => return Ok(addr),
        },
        IpAddr::V4(_) => return Ok(addr),
    };
    Err(unusable)
}

/// Reads one address that a host can have.
pub fn parse_usable(text: &str) -> Result<IpAddr, Unusable> {
    text.parse().map_err(|_| Unusable::NotAnAddress).and_then(usable)
}

/// At most 64 characters of a foreign text, for messages; what is cut off is shown as `…`.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 64;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
