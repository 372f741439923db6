//! What a valid pod IP is.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::address::{Unusable, parse_usable, shortened, usable};

/// The address of one pod, of one family.
///
/// Never unspecified, loopback, link-local, multicast, broadcast, of 0.0.0.0/8 or 240.0.0.0/4, nor
/// an IPv4 address in IPv6 form. IPv4 sorts before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIp(IpAddr);

impl PodIp {
    /// The address itself.
    pub const fn addr(self) -> IpAddr {
        self.0
    }

    /// Whether it is an IPv4 address; it is an IPv6 address otherwise.
    pub const fn is_ipv4(self) -> bool {
        self.0.is_ipv4()
    }
}

/// The text or address is not a pod IP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{text:?} cannot be a pod IP: {why}")]
pub struct InvalidPodIp {
    /// What was given, shortened if long.
    pub text: String,
    /// What is wrong with it and what to do.
    pub why: Unusable,
}

impl TryFrom<IpAddr> for PodIp {
    type Error = InvalidPodIp;

    fn try_from(addr: IpAddr) -> Result<Self, InvalidPodIp> {
        usable(addr).map(Self).map_err(|why| InvalidPodIp { text: addr.to_string(), why })
    }
}

impl FromStr for PodIp {
    type Err = InvalidPodIp;

    fn from_str(text: &str) -> Result<Self, InvalidPodIp> {
        parse_usable(text).map(Self).map_err(|why| InvalidPodIp { text: shortened(text), why })
    }
}

impl fmt::Display for PodIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_addresses_are_refused_as_for_vips() {
        assert_eq!("fd00::1".parse::<PodIp>().unwrap().to_string(), "fd00::1");
        assert_eq!(
            "127.0.0.1".parse::<PodIp>().unwrap_err().to_string(),
            "\"127.0.0.1\" cannot be a pod IP: it is a loopback address; use one that other hosts \
             can reach"
        );
    }
}
