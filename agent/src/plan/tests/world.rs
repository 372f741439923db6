//! Random worlds: what is mapped, and what the node is like. Small pools, so that two worlds have
//! much in common and collide often.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use proptest::collection::{btree_map, btree_set, hash_set};
use proptest::prelude::*;
use proptest::sample::select;
use shared::config_map::{NodeBlocks, VipBlocks, encode_blocks};
use shared::{Block, ClusterNetworks, Mappings, PodIp, RouteId, Vip};

use super::kernel::NODE;
use crate::desired::{Desired, Settings, desired, ruleset_input};
use crate::direct::{DirectVip, Proven};
use crate::node_facts::{Link, LocalAddress, NodeFacts, OnLink, Routed};
use crate::routing::Device;
use crate::ruleset::Ruleset;
use crate::unsure::{Unsure, Vouched};

const VIPS: [&str; 6] = [
    "192.168.122.221",
    "192.168.122.222",
    "192.168.122.223",
    "192.0.2.9", // on eth1, if there is one
    "fd00:122::d1",
    "fd00:122::d2",
];

const PODS: [&str; 7] = [
    "10.244.1.1",
    "10.244.1.2",
    "10.244.1.3",
    "10.244.2.4",
    "172.30.0.1", // in no pod subnet
    "fd00:244::1",
    "fd00:244::2",
];

pub(super) const IN_CLUSTER: [&str; 2] = ["10.244.9.9", "fd00:244::99"];

pub(super) fn every_pod() -> impl Iterator<Item = PodIp> {
    PODS.iter().map(|pod| pod.parse().unwrap())
}

pub(super) fn in_pod_subnet(pod: PodIp) -> bool {
    pod.to_string() != "172.30.0.1"
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) mappings: Mappings,
    pub(super) facts: NodeFacts,
    pub(super) settings: Settings,
    pub(super) vouched: Vouched,
}

/// What differs between worlds, briefly: failures print two of them.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vips = self.mappings.vips().iter().map(|(vip, id)| {
            let here = if self.facts.holds(*vip) { "here" } else { "away" };
            format!("{vip} id {id} {here} {:?}", self.uplink(*vip))
        });
        let blocks = self.mappings.blocks().iter().map(|(vip, of)| {
            let open = self.direct(*vip).unwrap_or_default().open;
            format!("blocks of {vip}: {:?}, of these usable {open:?}", encode_blocks(of))
        });
        let pods = self.mappings.pods().iter().map(|(pod, vip)| match vip {
            Some(vip) => format!("{pod} {vip}"),
            None => format!("{pod} held"),
        });
        f.debug_list().entries(vips).entries(blocks).entries(pods).finish()?;
        write!(f, " pod subnets {:?}", self.mappings.networks().pod_subnets())?;
        write!(f, " {:?}", self.vouched)
    }
}

impl World {
    pub(super) fn ruleset(&self) -> Ruleset {
        Ruleset::render(&ruleset_input(&self.mappings, &self.facts, &self.settings).0)
    }

    pub(super) fn desired<'a>(&'a self, ruleset: &'a Ruleset) -> Desired<'a> {
        let mut desired = desired(&self.mappings, &self.facts, &self.settings, ruleset);
        desired.vouched = &self.vouched;
        desired
    }

    pub(super) fn local(&self) -> BTreeSet<IpAddr> {
        self.facts.addresses.iter().map(|address| address.addr).collect()
    }

    /// A VIP of the pod that has a route id.
    pub(super) fn usable_vip(&self, pod: PodIp) -> Option<Vip> {
        let vip = (*self.mappings.pods().get(&pod)?)?;
        self.mappings.vips().contains_key(&vip).then_some(vip)
    }

    /// The blocks of the VIP, as seen from this node, if there are any.
    pub(super) fn direct(&self, vip: Vip) -> Option<DirectVip> {
        let input = ruleset_input(&self.mappings, &self.facts, &self.settings).0;
        input.direct.get(&vip).cloned()
    }

    pub(super) fn uplink(&self, vip: Vip) -> Option<String> {
        let forced = self.settings.interface.as_deref();
        self.facts.uplink_for(vip, forced).ok().map(|device| device.name)
    }
}

/// Device 2, the uplink of most VIPs, may be gone, down or renamed.
fn facts() -> impl Strategy<Value = NodeFacts> {
    let first = prop_oneof![
        6 => Just(Some(("eth0", true))),
        1 => Just(Some(("ens3", true))),
        1 => Just(Some(("eth0", false))),
        1 => Just(None),
    ];
    let here = hash_set(select(&VIPS), 0..4);
    (first, any::<bool>(), here).prop_map(|(first, second, here)| {
        let devices = [(1, Some(("lo", true))), (2, first), (3, second.then_some(("eth1", true)))];
        let links = devices.into_iter().filter_map(|(index, device)| {
            let (name, up) = device?;
            let device = Device { index, name: name.to_owned() };
            Some((index, Link { device, up, loopback: index == 1 }))
        });
        // A VIP stays local, whatever becomes of the uplink.
        let addresses = here.into_iter().map(|vip| (vip, 1)).chain(NODE.map(|addr| (addr, 2)));
        let on_link =
            |network: &str, device| OnLink { network: network.parse().unwrap(), device, metric: 0 };
        let routed = Routed { network: "10.244.2.0/24".parse().unwrap(), device: 2 };
        NodeFacts {
            links: links.collect(),
            addresses: addresses
                .map(|(addr, device)| LocalAddress {
                    addr: addr.parse().unwrap(),
                    device,
                    usable: true,
                })
                .collect(),
            on_link: [
                on_link("192.168.122.0/24", 2),
                on_link("fd00:122::/64", 2),
                on_link("192.0.2.0/24", 3),
            ]
            .into(),
            routed: [routed].into(),
            ..NodeFacts::default()
        }
    })
}

fn networks() -> impl Strategy<Value = ClusterNetworks> {
    let nodes = NODE.map(|addr| addr.parse().unwrap());
    let pods = ["10.244.0.0/16", "fd00:244::/56"].map(|net| net.parse().unwrap());
    let full = ClusterNetworks::default().with_node_addresses(nodes).with_pod_subnets(pods);
    prop_oneof![9 => Just(full), 1 => Just(ClusterNetworks::default())]
}

pub(super) fn worlds() -> impl Strategy<Value = World> {
    // One of each family more often than others: where all the rest fits, too.
    let vip = || {
        let any = prop_oneof![2 => select(&VIPS), 2 => Just(VIPS[1]), 1 => Just(VIPS[4])];
        any.prop_map(|vip| vip.parse::<Vip>().unwrap())
    };
    let id = select(vec![1_u32, 2, 16, 17, 240]).prop_map(|id| RouteId::try_from(id).unwrap());
    let pod = select(&PODS).prop_map(|pod| pod.parse::<PodIp>().unwrap());
    let vip_of_pod = prop_oneof![1 => Just(None), 6 => vip().prop_map(Some)];
    let interface = prop_oneof![5 => Just(None), 1 => Just(Some("eth1".to_owned()))];
    let ids = btree_map(vip(), id, 0..5);
    let pods = btree_map(pod, vip_of_pod, 0..7);
    let unsure = prop_oneof![4 => Just(Unsure::No), 1 => Just(Unsure::Always)];
    let vouched = (btree_set(select(&PODS), 0..4), unsure).prop_map(|(known, unsure)| Vouched {
        known: known.into_iter().map(|pod| pod.parse().unwrap()).collect(),
        unsure,
    });
    let proven = || btree_set((1..=5_u32).prop_map(|n| Block::try_from(n).unwrap()), 0..6);
    let blocks =
        (btree_map(vip(), blocks(), 2..6), btree_map(vip(), proven(), 0..6), any::<bool>());
    (ids, pods, networks(), facts(), interface, vouched, blocks).prop_map(
        |(vips, pods, networks, facts, interface, vouched, (blocks, proven, assumed))| {
            let blocks = blocks.into_iter().map(|(vip, of)| (vip, named(vip, of))).collect();
            let proven = if assumed { Proven::Assumed } else { Proven::These(proven) };
            let node = "n1".to_owned();
            World {
                mappings: Mappings::new(vips, pods, networks).0.with_blocks(blocks),
                facts,
                settings: Settings { interface, node, proven, ..Settings::default() },
                vouched,
            }
        },
    )
}

/// One world and the next: another one, or the same with other blocks.
pub(super) fn changes() -> impl Strategy<Value = (World, World)> {
    (worlds(), worlds(), any::<bool>()).prop_map(|(old, new, blocks_only)| {
        if !blocks_only {
            return (old, new);
        }
        let mappings = old.mappings.clone().with_blocks(new.mappings.blocks().clone());
        let settings = Settings { proven: new.settings.proven, ..old.settings.clone() };
        let new = World { mappings, settings, ..old.clone() };
        (old, new)
    })
}

/// Who has a block, and whether it is draining.
fn blocks() -> impl Strategy<Value = BTreeMap<u32, (usize, bool)>> {
    let node = prop_oneof![3 => Just(0_usize), 1 => Just(1), 1 => Just(2)];
    btree_map(1..=5_u32, (node, proptest::bool::weighted(0.3)), 0..6)
}

/// Where answers are passed on to, by node: the first is this one.
pub(super) const VIAS: [[&str; 2]; 3] =
    [NODE, ["192.168.122.12", "fd00:122::12"], ["192.168.122.13", "fd00:122::13"]];

fn named(vip: Vip, blocks: BTreeMap<u32, (usize, bool)>) -> VipBlocks {
    let mut of_nodes = VipBlocks::new();
    for (block, (node, draining)) in blocks {
        let via = VIAS[node][usize::from(!vip.is_ipv4())].parse().unwrap();
        let (open, none) = (BTreeSet::new(), BTreeSet::new());
        let empty = NodeBlocks { open, draining: none, via };
        let of = of_nodes.entry(format!("n{}", node + 1)).or_insert(empty);
        let set = if draining { &mut of.draining } else { &mut of.open };
        set.insert(Block::try_from(block).unwrap());
    }
    of_nodes
}
