//! What one node is given, and where answers for it are passed on to.

use std::net::IpAddr;

use shared::address::usable;
use shared::{Block, Vip};

/// How many blocks are shared out to nodes when they get their first: two of three, the others are for
/// those that run short.
const SHARED_OUT: usize = 32;
/// How many blocks a node gets at most before it asks for more.
const LARGEST_SHARE: usize = 8;

/// How many blocks a node gets with its first pod when that many nodes may come to have pods: the fewer
/// they are, the more.
pub(super) fn start_share(nodes: usize) -> usize {
    (SHARED_OUT / nodes.max(1)).clamp(1, LARGEST_SHARE)
}

/// Whether more than 70 % of the ports of that many blocks are in use towards one destination.
pub(super) fn runs_short(used: u16, blocks: usize) -> bool {
    usize::from(used) * 10 > ports(blocks) * 7
}

/// Whether as good as all are. Nodes send new connections there another way from 90 % on, and report
/// only coarse changes.
pub(super) fn is_exhausted(used: u16, blocks: usize) -> bool {
    usize::from(used) * 100 > ports(blocks) * 85
}

/// How many blocks are enough for that many ports: so many that the node does not run short again when
/// it uses twice as many.
pub(super) fn needed(used: u16) -> usize {
    (usize::from(used) * 100).div_ceil(ports(35)).max(1)
}

fn ports(blocks: usize) -> usize {
    blocks * usize::from(Block::SIZE)
}

/// The one of a node's addresses that is most likely in the VIP's network: of its family, and with the
/// longest beginning in common; the first of several.
pub(super) fn address_for(vip: Vip, addresses: &[IpAddr]) -> Option<IpAddr> {
    let fitting = addresses.iter().copied().filter(|addr| usable(*addr).is_ok());
    let fitting = fitting.filter_map(|addr| Some((in_common(vip.addr(), addr)?, addr)));
    // Of equals, max_by_key would take the last.
    fitting.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, addr)| addr)
}

/// How many leading bits are the same.
fn in_common(one: IpAddr, other: IpAddr) -> Option<u32> {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            Some((one.to_bits() ^ other.to_bits()).leading_zeros())
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            Some((one.to_bits() ^ other.to_bits()).leading_zeros())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, 8)]
    #[case(3, 8)]
    #[case(6, 5)]
    #[case(20, 1)]
    #[case(5000, 1)]
    fn fewer_nodes_get_larger_shares(#[case] nodes: usize, #[case] share: usize) {
        assert_eq!(start_share(nodes), share);
        assert!(share * nodes.min(47) <= 47);
    }

    #[rstest]
    #[case("192.168.122.222", &["10.0.0.1", "192.168.122.11", "192.168.122.12"], "192.168.122.11")]
    #[case("192.168.122.222", &["fd00::1", "10.0.0.1"], "10.0.0.1")]
    #[case("192.168.122.222", &["fd00::1", "169.254.0.1"], "")]
    #[case("fd00::222", &["10.0.0.1", "fd01::1", "fd00::11"], "fd00::11")]
    fn answers_go_to_the_address_next_to_the_vip(
        #[case] vip: &str,
        #[case] addresses: &[&str],
        #[case] expected: &str,
    ) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
        let address = address_for(vip.parse().unwrap(), &addresses);
        assert_eq!(address.map(|addr| addr.to_string()).unwrap_or_default(), expected);
    }

    #[test]
    fn who_gives_back_does_not_run_short_at_once() {
        for used in 0..=u16::MAX {
            let enough = needed(used);
            assert!(!runs_short(used, enough), "{used}");
            assert!(!runs_short(used.saturating_mul(2), enough) || used > 16_000, "{used}");
        }
        assert_eq!((needed(0), needed(358), needed(359), needed(717)), (1, 1, 2, 3));
    }
}
