//! Which node may translate with which ports of a VIP: how it is written and read.
//!
//! One object for each VIP on the direct path, so that one write changes who has what, and no two
//! nodes can ever be given one port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::decode::vip_key;
use super::{BLOCKS_PREFIX, Decoded, Reason, Rejected, key};
use crate::address::parse_usable;
use crate::{Block, Vip};

/// What one node has of one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBlocks {
    /// New connections may be translated with their ports.
    pub open: BTreeSet<Block>,
    /// Connections that have them go on, no new one gets one. Apart from `open`.
    pub draining: BTreeSet<Block>,
    /// Where the VIP's holder passes answers on to: the node's address in the VIP's network.
    pub via: IpAddr,
}

impl NodeBlocks {
    /// All blocks whose answers are for the node.
    pub fn all(&self) -> impl Iterator<Item = Block> {
        self.open.union(&self.draining).copied()
    }
}

/// The blocks of a VIP, by the names of the nodes that have them.
pub type VipBlocks = BTreeMap<String, NodeBlocks>;

/// The name of the object with the blocks of that VIP.
pub fn blocks_of_vip(vip: Vip) -> String {
    let key = key(vip.addr());
    // The name of an object ends with a letter or a digit.
    let zero = if key.ends_with('-') { "0" } else { "" };
    format!("{BLOCKS_PREFIX}{key}{zero}")
}

/// The VIP that the object of that name is about: the name without [`BLOCKS_PREFIX`].
pub(super) fn vip_of_name(rest: &str) -> Option<Vip> {
    vip_key(rest).ok()
}

/// The data of [`blocks_of_vip`]: `OPEN [draining DRAINING] via ADDRESS` under each node's name, blocks
/// separated by commas.
pub fn encode_blocks(blocks: &VipBlocks) -> BTreeMap<String, String> {
    let value = |NodeBlocks { open, draining, via }: &NodeBlocks| {
        let mut words = Vec::new();
        if !open.is_empty() {
            words.push(list(open));
        }
        if !draining.is_empty() {
            words.extend([DRAINING.to_owned(), list(draining)]);
        }
        words.extend([VIA.to_owned(), via.to_string()]);
        words.join(" ")
    };
    blocks.iter().map(|(node, of)| (node.clone(), value(of))).collect()
}

const DRAINING: &str = "draining";
const VIA: &str = "via";

/// Blocks as text, separated by commas.
pub(super) fn list<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> String {
    let blocks: Vec<_> = blocks.into_iter().map(ToString::to_string).collect();
    blocks.join(",")
}

/// Reads `object` as [`blocks_of_vip`] of `vip`.
///
/// A block that two nodes claim is neither's: two with one port would get each other's answers.
pub fn decode_blocks(
    object: &str,
    vip: Vip,
    data: &BTreeMap<String, String>,
) -> Decoded<VipBlocks> {
    let mut entries = VipBlocks::new();
    let mut rejected = Vec::new();
    for (node, value) in data {
        match read(vip, value) {
            Ok(blocks) => {
                entries.insert(node.clone(), blocks);
            }
            Err(reason) => rejected.push(Rejected::new(object, node, value, reason)),
        }
    }
    let mut owners: BTreeMap<Block, BTreeSet<&String>> = BTreeMap::new();
    for (node, blocks) in &entries {
        for block in blocks.all() {
            owners.entry(block).or_default().insert(node);
        }
    }
    let taken: BTreeMap<Block, Vec<String>> = owners
        .into_iter()
        .filter(|(_, nodes)| nodes.len() > 1)
        .map(|(block, nodes)| (block, nodes.into_iter().cloned().collect()))
        .collect();
    for (block, nodes) in taken {
        for node in &nodes {
            if let Some(blocks) = entries.get_mut(node) {
                blocks.open.remove(&block);
                blocks.draining.remove(&block);
            }
            let others = nodes.iter().filter(|other| *other != node).cloned().collect();
            let reason = Reason::BlockShared { others: Names(others) };
            rejected.push(Rejected::new(object, node, &block.to_string(), reason));
        }
    }
    rejected.sort();
    Decoded { entries, rejected }
}

/// Names of nodes, as a message has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names(Vec<String>);

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(" and "))
    }
}

fn read(vip: Vip, value: &str) -> Result<NodeBlocks, Reason> {
    let mut words = value.split_whitespace().peekable();
    let mut open = BTreeSet::new();
    let mut draining = BTreeSet::new();
    if let Some(text) = words.next_if(|word| ![DRAINING, VIA].contains(word)) {
        open = blocks(text)?;
    }
    if words.next_if_eq(&DRAINING).is_some() {
        draining = blocks(words.next().ok_or(Reason::NoBlocks)?)?;
    }
    if words.next() != Some(VIA) {
        return Err(Reason::NoBlocks);
    }
    let via = parse_usable(words.next().ok_or(Reason::NoBlocks)?).map_err(Reason::NoNodeAddress)?;
    if words.next().is_some() || !open.is_disjoint(&draining) {
        return Err(Reason::NoBlocks);
    }
    if via.is_ipv4() != vip.is_ipv4() {
        return Err(Reason::NodeOfOtherFamily);
    }
    Ok(NodeBlocks { open, draining, via })
}

/// The blocks of a list separated by commas.
pub(super) fn blocks(text: &str) -> Result<BTreeSet<Block>, Reason> {
    text.split(',').map(|block| block.parse().map_err(|_| Reason::NoBlocks)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn vip() -> Vip {
        "192.168.0.222".parse().unwrap()
    }

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    proptest! {
        #[test]
        fn blocks_survive_being_written_and_read(of in btree_map(1..=47u32, (1..9u8, any::<bool>()), 0..47)) {
            let mut blocks = VipBlocks::new();
            for (block, (node, draining)) in of {
                let via = IpAddr::from([192, 168, 0, node]);
                let none = NodeBlocks { open: BTreeSet::new(), draining: BTreeSet::new(), via };
                let of = blocks.entry(format!("n{node}")).or_insert(none);
                let set = if draining { &mut of.draining } else { &mut of.open };
                set.insert(Block::try_from(block).unwrap());
            }
            let decoded = decode_blocks("vip-blocks-x", vip(), &encode_blocks(&blocks));
            prop_assert_eq!(decoded, Decoded { entries: blocks, rejected: vec![] });
        }

        #[test]
        fn an_object_is_found_again_by_its_name(addr: [u8; 16]) {
            let v6 = Vip::try_from(IpAddr::from(addr));
            let v4 = Vip::try_from(IpAddr::from([addr[0], addr[1], addr[2], addr[3]]));
            for vip in [v4, v6, Ok("fd00:1:2::".parse().unwrap())].into_iter().flatten() {
                let name = blocks_of_vip(vip);
                prop_assert!(name.ends_with(|c: char| c.is_ascii_alphanumeric()), "{}", name);
                prop_assert_eq!(vip_of_name(name.strip_prefix(BLOCKS_PREFIX).unwrap()), Some(vip));
            }
        }
    }

    #[test]
    fn bad_entries_are_named_and_the_others_count() {
        let data = data(&[
            ("n1", "1,3 draining 4 via 192.168.0.11"),
            ("n2", "2 via fd00::12"),
            ("n3", "3,5 via 192.168.0.13"),
            ("n4", "6"),
            ("n5", "48 via 192.168.0.15"),
            ("n6", "via 192.168.0.16"),
            ("n7", "7 draining 7 via 192.168.0.17"),
        ]);
        let Decoded { entries, rejected } = decode_blocks("vip-blocks-192.168.0.222", vip(), &data);
        assert_eq!(
            encode_blocks(&entries),
            self::data(&[
                ("n1", "1 draining 4 via 192.168.0.11"),
                ("n3", "5 via 192.168.0.13"),
                ("n6", "via 192.168.0.16"),
            ])
        );
        let texts: Vec<_> = rejected.iter().map(ToString::to_string).collect();
        let no_blocks = "it does not say which blocks a node has; write BLOCKS via ADDRESS, such as \
                         1,2 via 192.0.2.11 (blocks are 1 to 47)";
        assert_eq!(
            texts,
            [
                "vip-blocks-192.168.0.222, key \"n1\", value \"3\": the block is nobody's because \
                 n3 has it, too; leave it to one node"
                    .to_owned(),
                "vip-blocks-192.168.0.222, key \"n2\", value \"2 via fd00::12\": the node's address \
                 is not of the VIP's family; give the one that the node has in the VIP's network"
                    .to_owned(),
                "vip-blocks-192.168.0.222, key \"n3\", value \"3\": the block is nobody's because \
                 n1 has it, too; leave it to one node"
                    .to_owned(),
                format!("vip-blocks-192.168.0.222, key \"n4\", value \"6\": {no_blocks}"),
                format!(
                    "vip-blocks-192.168.0.222, key \"n5\", value \"48 via 192.168.0.15\": {no_blocks}"
                ),
                format!(
                    "vip-blocks-192.168.0.222, key \"n7\", value \"7 draining 7 via 192.168.0.17\": \
                     {no_blocks}"
                ),
            ]
        );
    }
}
