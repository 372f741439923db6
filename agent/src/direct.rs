//! What of each VIP's ports is whose, as far as this node has to know: the pure side of the direct
//! path.
//!
//! A node translates its own pods' connections with blocks of the VIP's ports that are its own, and
//! passes on what comes for blocks of other nodes, whether or not it holds the VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use shared::{Block, Mappings, Vip};

use crate::desired::Settings;
use crate::node_facts::NodeFacts;
use crate::port_use::{Destination, TCP, UDP};
use crate::routing::Device;

/// Which blocks of VIPs are proven: what is said to a packet with one of their ports comes back here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proven {
    /// All, without proof: an operator knows that the network drops nothing.
    Assumed,
    /// These.
    These(BTreeMap<Vip, BTreeSet<Block>>),
}

impl Default for Proven {
    fn default() -> Self {
        Self::These(BTreeMap::new())
    }
}

impl Proven {
    /// Those of the blocks that are.
    pub fn among(&self, vip: Vip, blocks: &BTreeSet<Block>) -> BTreeSet<Block> {
        match self {
            Self::Assumed => blocks.clone(),
            Self::These(vips) => match vips.get(&vip) {
                Some(proven) => blocks.intersection(proven).copied().collect(),
                None => BTreeSet::new(),
            },
        }
    }
}

/// The blocks of one VIP, as seen from this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectVip {
    /// Those that packets of this node may leave with.
    pub own: BTreeSet<Block>,
    /// Those of them that new connections get; empty where they go via the holder.
    pub open: BTreeSet<Block>,
    /// Those of other nodes, with the address that what comes for them is passed on to.
    pub others: BTreeMap<Block, IpAddr>,
    /// Where new connections go via the holder, for nearly all ports of `open` are in use there: of TCP
    /// and UDP.
    pub full: BTreeSet<Destination>,
    /// The interface over which the VIP is reached, if there is one.
    pub uplink: Option<String>,
    /// Why new connections go via the holder although this node has open blocks.
    pub hindrance: Option<Hindrance>,
}

/// Why a node with open blocks does not use them for new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Hindrance {
    #[error("--mark-mask leaves no bit for the direct path; give it ten bits, as in 0x000030ff")]
    NoMarkBit,
    #[error(
        "no interface of this node is in the VIP's network: its pods are held while it is elsewhere"
    )]
    NoUplink,
    #[error(
        "answers are to be passed on to {0}, which is not an address of this node in the VIP's network"
    )]
    NotThisNode(IpAddr),
    #[error("it is not proven that answers come back")]
    NotProven,
}

impl DirectVip {
    /// The ports that new connections get.
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        ranges(&self.open)
    }
}

/// The ports of blocks: neighbouring blocks are one range.
pub fn ranges(blocks: &BTreeSet<Block>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for ports in blocks.iter().map(|block| block.ports()) {
        match ranges.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(*ports.start()) => {
                *last = *last.start()..=*ports.end();
            }
            _ => ranges.push(ports),
        }
    }
    ranges
}

/// The VIPs of which nodes have blocks, or had them, with what this node makes of them.
pub fn direct_vips(
    mappings: &Mappings,
    facts: &NodeFacts,
    settings: &Settings,
    uplinks: &BTreeMap<Vip, Device>,
) -> BTreeMap<Vip, DirectVip> {
    let of_vips = mappings.blocks().iter().filter(|(vip, _)| mappings.vips().contains_key(vip));
    of_vips
        .map(|(&vip, nodes)| {
            let uplink = uplinks.get(&vip);
            let mut direct = DirectVip {
                uplink: uplink.map(|device| device.name.clone()),
                ..DirectVip::default()
            };
            for (name, blocks) in nodes {
                if *name != settings.node {
                    // Sent to itself, a packet would be lost.
                    let elsewhere = !facts.has(blocks.via);
                    let all = blocks.all().filter(|_| elsewhere);
                    direct.others.extend(all.map(|block| (block, blocks.via)));
                    continue;
                }
                let marked = settings.ownership.marks().direct_bit().is_some();
                if marked {
                    direct.own = blocks.all().collect();
                }
                let proven = settings.proven.among(vip, &blocks.open);
                let hindrance = if !marked {
                    Some(Hindrance::NoMarkBit)
                } else if uplink.is_none() {
                    Some(Hindrance::NoUplink)
                } else if !uplink.is_some_and(|device| facts.has_on(blocks.via, device)) {
                    Some(Hindrance::NotThisNode(blocks.via))
                } else if proven.is_empty() {
                    Some(Hindrance::NotProven)
                } else {
                    None
                };
                if hindrance.is_none() {
                    direct.open = proven;
                    let of_vip =
                        |to: &&Destination| to.vip == vip && [TCP, UDP].contains(&to.protocol);
                    direct.full = settings.full.iter().filter(of_vip).copied().collect();
                }
                direct.hindrance = hindrance.filter(|_| !blocks.open.is_empty());
            }
            (vip, direct)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_are_one_range() {
        let open = [1, 2, 5, 46, 47].map(|number: u32| number.try_into().unwrap()).into();
        let direct = DirectVip { open, ..DirectVip::default() };
        assert_eq!(direct.ranges(), [1024..=3071, 5120..=6143, 47_104..=49_151]);
    }
}
