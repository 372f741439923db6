//! What a valid VIP is.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::address::{Unusable, parse_usable, shortened, usable};

/// An address that pods leave the cluster with.
///
/// Never unspecified, loopback, link-local, multicast, broadcast, of 0.0.0.0/8 or 240.0.0.0/4, nor
/// an IPv4 address in IPv6 form. IPv4 sorts before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip(IpAddr);

impl Vip {
    /// The address itself.
    pub const fn addr(self) -> IpAddr {
        self.0
    }

    /// Whether it is an IPv4 address; it is an IPv6 address otherwise.
    pub const fn is_ipv4(self) -> bool {
        self.0.is_ipv4()
    }
}

/// The text or address is not a VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{text:?} cannot be a VIP: {why}")]
pub struct InvalidVip {
    /// What was given, shortened if long.
    pub text: String,
    /// What is wrong with it and what to do.
    pub why: Unusable,
}

impl TryFrom<IpAddr> for Vip {
    type Error = InvalidVip;

    fn try_from(addr: IpAddr) -> Result<Self, InvalidVip> {
        usable(addr).map(Self).map_err(|why| InvalidVip { text: addr.to_string(), why })
    }
}

impl FromStr for Vip {
    type Err = InvalidVip;

    fn from_str(text: &str) -> Result<Self, InvalidVip> {
        parse_usable(text).map(Self).map_err(|why| InvalidVip { text: shortened(text), why })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::v4("192.168.122.222")]
    #[case::v6("fd00::1")]
    #[case::just_below_multicast("223.255.255.255")]
    fn an_address_of_a_host_is_a_vip(#[case] text: &str) {
        let vip: Vip = text.parse().unwrap();
        assert_eq!(vip.to_string(), text);
        assert_eq!(Vip::try_from(vip.addr()), Ok(vip));
        assert_eq!(vip.is_ipv4(), !text.contains(':'));
    }

    #[rstest]
    #[case("", Unusable::NotAnAddress)]
    #[case("10.0.0.1/32", Unusable::NotAnAddress)]
    #[case("010.0.0.1", Unusable::NotAnAddress)]
    #[case("fe80::1%eth0", Unusable::NotAnAddress)]
    #[case("0.0.0.0", Unusable::Unspecified)]
    #[case("0.1.2.3", Unusable::ThisNetwork)]
    #[case("127.0.0.53", Unusable::Loopback)]
    #[case("169.254.1.1", Unusable::LinkLocal)]
    #[case("224.0.0.1", Unusable::Multicast)]
    #[case("239.255.255.255", Unusable::Multicast)]
    #[case("240.0.0.1", Unusable::Reserved)]
    #[case("255.255.255.255", Unusable::Broadcast)]
    #[case("::", Unusable::Unspecified)]
    #[case("::1", Unusable::Loopback)]
    #[case("fe80::1", Unusable::LinkLocal)]
    #[case("febf::1", Unusable::LinkLocal)]
    #[case("ff02::1", Unusable::Multicast)]
    #[case("::ffff:10.0.0.1", Unusable::Ipv4InIpv6([10, 0, 0, 1].into()))]
    fn what_no_host_can_have_is_refused(#[case] text: &str, #[case] why: Unusable) {
        assert_eq!(text.parse::<Vip>(), Err(InvalidVip { text: text.to_owned(), why }));
    }

    #[test]
    fn the_error_names_the_address_and_the_remedy() {
        assert_eq!(
            "::ffff:10.0.0.1".parse::<Vip>().unwrap_err().to_string(),
            "\"::ffff:10.0.0.1\" cannot be a VIP: it is an IPv4 address in IPv6 form; write it as \
             10.0.0.1"
        );
    }
}
