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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blocks(entries: &[(&str, &str)]) -> VipBlocks {
        let data = entries.iter().map(|&(node, of)| (node.to_owned(), of.to_owned())).collect();
        decode_blocks("x", vip(), &data).entries
    }

    fn vip() -> Vip {
        "192.168.0.222".parse().unwrap()
    }

    fn known(blocks: &VipBlocks) -> ConfigMaps {
        let Some(Change::Create(object)) = to_write(vip(), blocks, &ConfigMaps::default()) else {
            panic!("not made")
        };
        let mut observed = ConfigMaps::default();
        let mut object = *object;
        object.metadata.resource_version = Some("7".to_owned());
        assert!(observed.seen(object));
        observed
    }

    fn patch(blocks: &VipBlocks, observed: &ConfigMaps) -> serde_json::Value {
        match to_write(vip(), blocks, observed) {
            Some(Change::Patch(patch)) => patch,
            None => json!(null),
            other => panic!("not a patch: {other:?}"),
        }
    }

    #[test]
    fn nodes_watch_by_their_label_and_see_it_empty_at_last() {
        let long = format!("{}.example", "n".repeat(60));
        let both = blocks(&[("n1", "1 via 192.168.0.1"), (&long, "2 via 192.168.0.2")]);
        let observed = known(&both);
        assert_eq!(patch(&both, &observed), json!(null));
        let one = blocks(&[("n1", "draining 1 via 192.168.0.1")]);
        let label = format!("blocks.egress.mapper.com/{}.ex", "n".repeat(60));
        assert_eq!(
            patch(&one, &observed),
            json!({
                "metadata": { "resourceVersion": "7", "labels": { label: null } },
                "data": { "n1": "draining 1 via 192.168.0.1", long: null },
            })
        );
        assert_eq!(
            patch(&VipBlocks::new(), &known(&one)),
            json!({ "metadata": { "resourceVersion": "7" }, "data": { "n1": null } })
        );
    }

    #[test]
    fn what_is_read_once_is_read_again_only_when_it_has_changed() {
        let one = blocks(&[("n1", "1 via 192.168.0.1")]);
        let mut observed = known(&one);
        let mut published = PublishedBlocks::default();
        let all = |published: &PublishedBlocks| -> BTreeMap<Vip, VipBlocks> {
            published.all().map(|(vip, blocks)| (vip, blocks.clone())).collect()
        };
        for _ in 0..2 {
            published.refresh(&observed);
            assert_eq!(all(&published), [(vip(), one.clone())].into());
        }
        let mut object = observed.get("vip-blocks-192.168.0.222").unwrap().clone();
        object.metadata.resource_version = Some("8".to_owned());
        object.data.clear();
        observed.seen(object);
        published.refresh(&observed);
        assert_eq!(all(&published), [(vip(), VipBlocks::new())].into());
        observed.deleted("vip-blocks-192.168.0.222");
        published.refresh(&observed);
        assert_eq!(all(&published), [].into());
    }

    #[test]
    fn only_names_that_are_ours_count() {
        for (name, is_ours) in [
            ("vip-blocks-192.168.0.222", true),
            ("vip-blocks-fd00-1-2--0", true),
            ("vip-blocks-fd00-1-2--00", false),
            ("vip-blocks-nonsense", false),
            ("vip-blocks-", false),
            ("vip-configmap", false),
        ] {
            assert_eq!(vip_of(name).is_some(), is_ours, "{name}");
        }
    }
}
