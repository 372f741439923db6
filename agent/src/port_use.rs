//! How many ports of this node's blocks are in use, from what connection tracking holds.
//!
//! One port serves one connection to each destination, so what runs short are the ports towards one of
//! them. Pure; `kernel::port_counting` looks.

pub mod pace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use shared::{Block, Vip};

/// IP's number of TCP.
pub const TCP: u8 = 6;
/// IP's number of UDP.
pub const UDP: u8 = 17;

/// A connection on the direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// To whom.
    pub destination: Destination,
    /// The port of the VIP (of ICMP echo the id) that it has.
    pub port: u16,
}

/// Where connections of a VIP go: each of its ports is there once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    pub vip: Vip,
    /// IP's number of the protocol.
    pub protocol: u8,
    pub addr: IpAddr,
    /// 0 for ICMP echo.
    pub port: u16,
}

/// A node's blocks of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnBlocks {
    /// New connections get their ports.
    pub open: BTreeSet<Block>,
    /// Connections that have their ports go on.
    pub draining: BTreeSet<Block>,
}

impl OwnBlocks {
    /// How many connections to one destination there can be.
    pub fn ports(&self) -> usize {
        self.open.len() * usize::from(Block::SIZE)
    }
}

/// A node's blocks.
pub type Own = BTreeMap<Vip, OwnBlocks>;

/// What one look at connection tracking comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortUse {
    /// Ports of open blocks in use towards the destination with the most.
    pub used: BTreeMap<Vip, u16>,
    /// The draining blocks that connections have.
    pub drained_by: BTreeSet<(Vip, Block)>,
    /// The destinations that have so many of the ports that new connections may find none.
    pub full: BTreeSet<Destination>,
}

/// What was found, and by which look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What these blocks come to.
    pub own: Own,
    pub ports: PortUse,
    /// How many looks there were since just these blocks are looked for.
    pub looks: u64,
}

/// Of so many ports in tenths, in use, no more are to be taken: to find a free one gets hard.
const FULL_TENTHS: usize = 9;

/// Counts connections one by one: there may be hundreds of thousands.
#[derive(Debug)]
pub struct Count<'a> {
    own: &'a Own,
    ports: HashMap<Destination, usize>,
    drained_by: BTreeSet<(Vip, Block)>,
}

impl<'a> Count<'a> {
    /// None yet.
    pub fn of(own: &'a Own) -> Self {
        Self { own, ports: HashMap::new(), drained_by: BTreeSet::new() }
    }

    /// Counts one. Those with ports that are none of ours do not count.
    pub fn add(&mut self, Connection { destination, port }: Connection) {
        let Some(block) = Block::of_port(port) else { return };
        let Some(OwnBlocks { open, draining }) = self.own.get(&destination.vip) else { return };
        if open.contains(&block) {
            *self.ports.entry(destination).or_default() += 1;
        } else if draining.contains(&block) {
            self.drained_by.insert((destination.vip, block));
        }
    }

    /// What they come to.
    pub fn finish(self) -> PortUse {
        let Self { own, ports, drained_by } = self;
        let mut found = PortUse { drained_by, ..PortUse::default() };
        for (destination, count) in ports {
            let most = found.used.entry(destination.vip).or_default();
            *most = (*most).max(u16::try_from(count).unwrap_or(u16::MAX));
            let open = own.get(&destination.vip).map_or(0, OwnBlocks::ports);
            if count * 10 > open * FULL_TENTHS {
                found.full.insert(destination);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vip(text: &str) -> Vip {
        text.parse().unwrap()
    }

    fn blocks(numbers: &[u32]) -> BTreeSet<Block> {
        numbers.iter().map(|number| (*number).try_into().unwrap()).collect()
    }

    fn to(vip: Vip, addr: &str, port: u16) -> Destination {
        Destination { vip, protocol: 6, addr: addr.parse().unwrap(), port }
    }

    #[test]
    fn the_destination_with_the_most_ports_counts() {
        let (a, b) = (vip("192.0.2.1"), vip("192.0.2.2"));
        let own = Own::from([
            (a, OwnBlocks { open: blocks(&[1, 2]), draining: blocks(&[7]) }),
            (b, OwnBlocks { open: blocks(&[]), draining: blocks(&[3, 4]) }),
        ]);
        let mut count = Count::of(&own);
        let web = to(a, "203.0.113.1", 443);
        let dns = Destination { protocol: 17, ..to(a, "203.0.113.1", 443) };
        let taken = 1024..1024 + 1844;
        taken.for_each(|port| count.add(Connection { destination: web, port }));
        (1024..1034).for_each(|port| count.add(Connection { destination: dns, port }));
        // Of others: a block that is not ours, the holder's own ports.
        count.add(Connection { destination: dns, port: 9 * 1024 });
        count.add(Connection { destination: dns, port: 60_000 });
        count.add(Connection { destination: to(b, "203.0.113.1", 443), port: 4 * 1024 + 5 });
        let found = count.finish();
        assert_eq!(found.used, [(a, 1844)].into());
        assert_eq!(found.full, [web].into());
        assert_eq!(found.drained_by, [(b, 4.try_into().unwrap())].into());
    }

    proptest! {
        #[test]
        fn full_are_those_with_more_than_nine_tenths(open in 1..=4_u16, taken in 0..4096_u16) {
            let numbers: Vec<_> = (1..=u32::from(open)).collect();
            let v = vip("192.0.2.1");
            let own = Own::from([(v, OwnBlocks { open: blocks(&numbers), draining: blocks(&[]) })]);
            let mut count = Count::of(&own);
            let destination = to(v, "203.0.113.1", 443);
            let taken = taken.min(open * 1024);
            (1024..1024 + taken).for_each(|port| count.add(Connection { destination, port }));
            let found = count.finish();
            prop_assert_eq!(found.used.get(&v).copied().unwrap_or_default(), taken);
            let full = f64::from(taken) > f64::from(open) * 1024.0 * 0.9;
            prop_assert_eq!(found.full.contains(&destination), full);
            prop_assert!(found.drained_by.is_empty());
        }
    }
}
