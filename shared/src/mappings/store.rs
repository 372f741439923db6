//! What the objects that were read amount to, kept up to date change by change.
//!
//! Objects that mappings are not made of (`vip-configmap`, `vip-candidates`, and names nobody knows)
//! are ignored.

mod join;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use self::join::Joined;
use super::claims::{Claims, PodObject, Touched};
use super::{Expected, Mappings, Violation, fitting_vips, taken_addresses};
use crate::config_map::{
    self, ADDRESSES_OF, Object, Rejected, decode_blocks, decode_networks, decode_node_report,
    report_keys, route_id_entries,
};
use crate::{PodIp, PodUid, Vip};

/// News of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name of the object.
    pub object: String,
    /// What is new.
    pub content: Content,
}

/// What is new about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of its data: entries that are not in it are gone.
    Whole(BTreeMap<String, String>),
    /// Some keys with their values, `None` for a key that is gone; the others are as before. Applied
    /// in order. An object counts as read only after a `Whole`.
    Keys(Vec<(String, Option<String>)>),
    /// It does not exist, or cannot be read: what was last read stays in use.
    Missing,
}

/// What a change did to the mappings; nothing if it was about entries that do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Whether VIPs, their route ids or who has which blocks of them differ now.
    pub vips: bool,
    /// Whether the cluster's networks differ now.
    pub networks: bool,
    /// Whether something else is said of pods by their UIDs.
    pub named: bool,
    /// The pods that came, went or have another VIP.
    pub pods: BTreeSet<PodIp>,
}

/// Not all of what mappings are made of was read yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waiting for {}; create what is missing, it may be empty", objects.join(" and "))]
pub struct Incomplete {
    /// The objects that were never read, at least one.
    pub objects: Vec<Cow<'static, str>>,
}

/// Mappings made of objects that change.
///
/// # Guarantees
/// - The mappings depend only on the latest content of each object, not on what came before.
/// - A changed key costs about the same with 10 pods as with 100 000; a whole object as much as it
///   has entries.
#[derive(Debug, Default)]
pub struct MappingsStore {
    mappings: Mappings,
    route_ids: Small,
    networks: Small,
    /// By VIP; that of a VIP none of whose blocks matters any more is empty.
    blocks: BTreeMap<Vip, Small>,
    claims: Claims,
    /// The addresses of pods on this node, as they were learnt here.
    learnt: Learnt,
    /// What other nodes have learnt of theirs, by the objects with their pods.
    reported: BTreeMap<PodObject, Learnt>,
    /// Addresses that other pods have now than those that objects name.
    foreign: BTreeSet<PodIp>,
    pods_read: BTreeSet<PodObject>,
    /// The object with pods that has to be read; if none, any will do.
    needed: Option<PodObject>,
    missing: BTreeSet<String>,
}

/// The addresses of pods, by their UIDs.
type Learnt = BTreeMap<PodUid, BTreeSet<PodIp>>;

/// A small object: kept as it is and decoded anew on each change.
#[derive(Debug, Default)]
struct Small {
    data: BTreeMap<String, String>,
    read: bool,
    rejected: Vec<Rejected>,
}

impl Small {
    fn update(&mut self, content: Content) {
        match content {
            Content::Whole(data) => *self = Self { data, read: true, rejected: Vec::new() },
            Content::Keys(keys) => {
                for (key, value) in keys {
                    match value {
                        Some(value) => self.data.insert(key, value),
                        None => self.data.remove(&key),
                    };
                }
            }
            Content::Missing => {}
        }
    }
}

impl MappingsStore {
    /// For a node whose own pods' object has to be read, whichever others are.
    pub fn of_node(node: &str) -> Self {
        Self { needed: Some(PodObject::OfNode(node.into())), ..Self::default() }
    }

    /// Takes one change in.
    pub fn apply(&mut self, change: Change) -> Effect {
        let Change { object, content } = change;
        let Some(kind) = Object::of_name(&object) else { return Effect::default() };
        if let Object::ReportOfNode(node) = kind {
            let pods = PodObject::OfNode(node.into());
            return self.hear_report(pods, &object, content);
        }
        let pods = match kind {
            Object::PodsOfNode(node) => Some(PodObject::OfNode(node.into())),
            Object::Pods => Some(PodObject::Cluster),
            Object::BlocksOfVip(vip) => return self.update_blocks(vip, object, content),
            Object::RouteIds | Object::Networks | Object::ReportOfNode(_) => None,
        };
        if content == Content::Missing {
            if self.was_read(kind, pods.as_ref()) {
                self.missing.insert(object);
            }
            return Effect::default();
        }
        self.missing.remove(&object);
        match (kind, pods) {
            (Object::Networks, _) => {
                self.networks.update(content);
                self.settle_small()
            }
            (_, Some(pods)) => self.update_pods(pods, content),
            (_, None) => {
                self.route_ids.update(content);
                self.settle_small()
            }
        }
    }

    /// Takes in which addresses the pods of this node have: all that are known. A pod that is
    /// expected gets at once what it is to get; that lasts until its object names it by its addresses
    /// or not at all.
    pub fn learn(&mut self, addresses: BTreeMap<PodUid, BTreeSet<PodIp>>) -> Effect {
        self.learnt = addresses;
        let touched = self.join();
        Effect { pods: self.settle(touched), ..Effect::default() }
    }

    /// The pods of this node whose objects do not know their addresses yet, and what they will get;
    /// without a node, of all objects.
    pub fn expected(&self) -> BTreeMap<PodUid, Expected> {
        let own = self.claims.named().filter(|(object, _)| self.is_own(object));
        own.flat_map(|(_, named)| &named.expected).map(|(uid, of)| (*uid, *of)).collect()
    }

    /// The pods of this node that nothing is for, of those that were asked about.
    pub fn uncovered(&self) -> BTreeSet<PodUid> {
        let own = self.claims.named().filter(|(object, _)| self.is_own(object));
        own.flat_map(|(_, named)| &named.uncovered).copied().collect()
    }

    /// Whether the object is about pods of this node.
    fn is_own(&self, object: &PodObject) -> bool {
        match &self.needed {
            Some(needed) => object == needed || *object == PodObject::Cluster,
            None => true,
        }
    }

    /// Takes in what a node reports of its pods: a shorter way than over the object that names them.
    /// It counts only for pods that this object expects, so no node speaks for those of another.
    fn hear_report(&mut self, pods: PodObject, object: &str, content: Content) -> Effect {
        let data = match content {
            Content::Whole(data) => data,
            Content::Keys(keys) => {
                let is_told = |(key, _): &(String, _)| key == report_keys::PODS;
                let Some((key, value)) = keys.into_iter().rfind(is_told) else {
                    return Effect::default();
                };
                value.into_iter().map(|value| (key.clone(), value)).collect()
            }
            Content::Missing => BTreeMap::new(),
        };
        let report = decode_node_report(object, &data).entries;
        let learnt = report.pods.into_iter().map(|(uid, ips)| (uid, ips.into_iter().collect()));
        self.reported.insert(pods, learnt.collect());
        let touched = self.join();
        Effect { pods: self.settle(touched), ..Effect::default() }
    }

    /// Brings what follows from learnt addresses in line; gives the pods that this is about, in
    /// ascending order.
    fn join(&mut self) -> Vec<PodIp> {
        let Joined { claims, foreign } = self.joined();
        let mut touched = self.claims.learn(claims);
        touched.extend(self.foreign.symmetric_difference(&foreign));
        touched.sort_unstable();
        touched.dedup();
        self.foreign = foreign;
        touched
    }

    /// The mappings, once `vip-routeid-mappings`, `egress-networks` and the node's own object with
    /// pods, or without a node any such object, were read whole.
    pub fn mappings(&self) -> Result<&Mappings, Incomplete> {
        let (pods_read, pods) = match &self.needed {
            Some(needed) => (self.pods_read.contains(needed), needed.name().into()),
            None => (
                !self.pods_read.is_empty(),
                Cow::Borrowed("podip-vip-mappings (or podip-vip-mappings-<node>)"),
            ),
        };
        let objects: Vec<Cow<'static, str>> = [
            (self.route_ids.read, config_map::ROUTE_IDS.into()),
            (self.networks.read, config_map::NETWORKS.into()),
            (pods_read, pods),
        ]
        .into_iter()
        .filter_map(|(read, name)| (!read).then_some(name))
        .collect();
        if objects.is_empty() { Ok(&self.mappings) } else { Err(Incomplete { objects }) }
    }

    /// Every entry that is not used, or not as it was meant; sorted by object and key.
    ///
    /// Costs as much as there are nodes, VIPs and rejected entries, however many pods there are.
    /// Pods whose VIP has no route id are in [`Mappings::problems`].
    pub fn rejected(&self) -> Vec<Rejected> {
        let taken = taken_addresses(&self.mappings).into_iter();
        let impossible: BTreeMap<PodIp, Violation> =
            taken.filter_map(|pod| Some((pod, self.mappings.violation_of_pod(pod)?))).collect();
        let mut rejected = self.claims.rejected(&impossible);
        let small = [&self.route_ids, &self.networks].into_iter().chain(self.blocks.values());
        rejected.extend(small.flat_map(|object| &object.rejected).cloned());
        rejected.sort();
        rejected
    }

    /// The objects that were read once and are missing now, in ascending order.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }

    fn was_read(&self, kind: Object<'_>, pods: Option<&PodObject>) -> bool {
        match kind {
            Object::RouteIds => self.route_ids.read,
            Object::Networks => self.networks.read,
            Object::ReportOfNode(_) | Object::BlocksOfVip(_) => false,
            Object::Pods | Object::PodsOfNode(_) => {
                pods.is_some_and(|pods| self.pods_read.contains(pods))
            }
        }
    }

    fn update_pods(&mut self, object: PodObject, content: Content) -> Effect {
        let is_own = self.is_own(&object);
        // Of other nodes' pods nobody asks which address is whose.
        let counts = |key: &str| is_own || !key.ends_with(ADDRESSES_OF);
        let Touched { mut pods, named } = match content {
            Content::Whole(mut data) => {
                data.retain(|key, _| counts(key));
                let touched = self.claims.replace(&object, &data);
                self.pods_read.insert(object);
                touched
            }
            Content::Keys(keys) => {
                let mut pods = BTreeSet::new();
                let mut named = false;
                for (key, value) in keys.into_iter().filter(|(key, _)| counts(key)) {
                    let touched = self.claims.set(&object, &key, value.as_deref());
                    pods.extend(touched.pods);
                    named |= touched.named;
                }
                Touched { pods: pods.into_iter().collect(), named }
            }
            Content::Missing => Touched::default(),
        };
        if named || is_own {
            // In the same breath: an address that an object names at last stays mapped.
            pods.extend(self.join());
            pods.sort_unstable();
            pods.dedup();
        }
        Effect { pods: self.settle(pods), named, ..Effect::default() }
    }

    /// An object that names no node has nothing to lose: it is emptied before it is deleted.
    fn update_blocks(&mut self, vip: Vip, object: String, content: Content) -> Effect {
        let before = self.mappings.blocks.get(&vip).cloned();
        if content == Content::Missing {
            match &before {
                Some(blocks) if blocks.is_empty() => {
                    self.blocks.remove(&vip);
                    self.mappings.blocks.remove(&vip);
                }
                Some(_) => drop(self.missing.insert(object)),
                None => {}
            }
        } else {
            self.missing.remove(&object);
            let small = self.blocks.entry(vip).or_default();
            small.update(content);
            let decoded = decode_blocks(&object, vip, &small.data);
            small.rejected = decoded.rejected;
            self.mappings.blocks.insert(vip, decoded.entries);
        }
        let vips = self.mappings.blocks.get(&vip) != before.as_ref();
        Effect { vips, ..Effect::default() }
    }

    /// Decodes the small objects anew, and settles the pods whose address was or is taken.
    fn settle_small(&mut self) -> Effect {
        let before = taken_addresses(&self.mappings);
        let object = config_map::NETWORKS;
        let decoded = decode_networks(object, &self.networks.data);
        let networks = std::mem::replace(&mut self.mappings.networks, decoded.entries);
        self.networks.rejected = decoded.rejected;

        let object = config_map::ROUTE_IDS;
        let mut decoded = route_id_entries(object, &self.route_ids.data);
        let declared = decoded.entries.iter().map(|(&vip, &(_, id))| (vip, id)).collect();
        let (fitting, violations) = fitting_vips(declared, &self.mappings.networks);
        for violation in violations {
            if let Some((key, id)) = violation.vip().and_then(|vip| decoded.entries.get(&vip)) {
                let rejected = Rejected::new(object, key, &id.to_string(), violation.into());
                decoded.rejected.push(rejected);
            }
        }
        self.route_ids.rejected = decoded.rejected;
        let vips = std::mem::replace(&mut self.mappings.vips, fitting);

        let after = taken_addresses(&self.mappings);
        Effect {
            vips: vips != self.mappings.vips,
            networks: networks != self.mappings.networks,
            named: false,
            pods: self.settle(before.symmetric_difference(&after).copied().collect()),
        }
    }

    /// Brings the mappings of these pods, in ascending order, in line with their claims; gives those
    /// that changed.
    fn settle(&mut self, mut pods: Vec<PodIp>) -> BTreeSet<PodIp> {
        let mut mapped = Vec::with_capacity(pods.len());
        pods.retain(|&pod| {
            let possible = self.possible(pod);
            let before = match possible {
                Some(_) => self.mappings.pods.get(&pod).copied(),
                None => self.mappings.pods.remove(&pod),
            };
            mapped.extend(possible.filter(|_| before != possible).map(|vip| (pod, vip)));
            before != possible
        });
        if mapped.len() >= self.mappings.pods.len() {
            self.mappings.pods.append(&mut mapped.into_iter().collect());
        } else {
            self.mappings.pods.extend(mapped);
        }
        pods.into_iter().collect()
    }

    /// What the pod is to be mapped to; `None` if it is not to be mapped.
    #[expect(clippy::option_option, reason = "the inner one is the value of a mapping")]
    fn possible(&self, pod: PodIp) -> Option<Option<Vip>> {
        let of_another = self.foreign.contains(&pod);
        let winner = self.claims.winner(pod).filter(|_| !of_another);
        winner.filter(|_| self.mappings.violation_of_pod(pod).is_none())
    }
}
