//! Pure: the objects that say which node has which blocks of a VIP's ports.

use std::collections::{BTreeMap, BTreeSet};

use shared::Vip;
use shared::config_map::{
    self, BLOCKS_LABEL, BLOCKS_OF_NODE_PREFIX, BLOCKS_PREFIX, Object, VipBlocks, blocks_of_vip,
    decode_blocks, encode_blocks,
};

use super::patch::{Change, Desired, MANAGED_BY, Scope, change};
use super::{ConfigMapObject, ConfigMaps};

/// What is published of blocks, decoded: anew only when it has changed.
#[derive(Debug, Default)]
pub struct PublishedBlocks(BTreeMap<Vip, Read>);

#[derive(Debug)]
struct Read {
    version: Option<String>,
    blocks: VipBlocks,
}

/// The VIP that the object of that name has the blocks of.
pub(super) fn vip_of(name: &str) -> Option<Vip> {
    match Object::of_name(name)? {
        // Of two names for one VIP only one is ours.
        Object::BlocksOfVip(vip) if blocks_of_vip(vip) == name => Some(vip),
        _ => None,
    }
}

impl PublishedBlocks {
    /// Reads what is new.
    pub fn refresh(&mut self, observed: &ConfigMaps) {
        let mut before = std::mem::take(&mut self.0);
        for name in observed.names_with(BLOCKS_PREFIX) {
            let (Some(vip), Some(object)) = (vip_of(name), observed.get(name)) else { continue };
            let version = &object.metadata.resource_version;
            let read = match before.remove(&vip) {
                Some(read) if read.version == *version => read,
                _ => Read {
                    version: version.clone(),
                    blocks: decode_blocks(name, vip, &object.data).entries,
                },
            };
            self.0.insert(vip, read);
        }
    }

    /// The blocks of each VIP that has an object.
    pub fn all(&self) -> impl Iterator<Item = (Vip, &VipBlocks)> {
        self.0.iter().map(|(&vip, read)| (vip, &read.blocks))
    }
}

/// What has to be written so that the object holds these blocks.
pub(super) fn to_write(vip: Vip, blocks: &VipBlocks, observed: &ConfigMaps) -> Option<Change> {
    let name = blocks_of_vip(vip);
    let present = observed.get(&name);
    let desired = Desired {
        labels: labels(blocks, present),
        data: encode_blocks(blocks),
        ..Desired::default()
    };
    change(&name, &desired, present, Scope::All)
}

/// Those of an object that names nobody stay as they are: who watches it by such a label has to see
/// it empty.
fn labels(
    blocks: &VipBlocks,
    present: Option<&ConfigMapObject>,
) -> BTreeMap<String, Option<String>> {
    let ours = [
        (MANAGED_BY.0.to_owned(), Some(MANAGED_BY.1.to_owned())),
        (BLOCKS_LABEL.to_owned(), Some("true".to_owned())),
    ];
    let label =
        |node: &String| format!("{BLOCKS_OF_NODE_PREFIX}{}", config_map::label_of_node(node));
    let nodes: BTreeSet<String> = blocks.keys().map(label).collect();
    let present = present.and_then(|object| object.metadata.labels.as_ref());
    let stale = present
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|label| label.starts_with(BLOCKS_OF_NODE_PREFIX) && !nodes.contains(*label))
        .filter(|_| !blocks.is_empty());
    let stale = stale.map(|label| (label.clone(), None));
    let stale: Vec<_> = stale.collect();
    ours.into_iter()
        .chain(nodes.into_iter().map(|label| (label, Some(String::new()))))
        .chain(stale)
        .collect()
}
