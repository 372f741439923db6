//! Pure: all that is known of the cluster, kept up to date by news.

mod convert;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use shared::config_map::{
    self, BlockUse, Decoded, NODE_REPORT_PREFIX, NodeReport, decode_node_report, report_keys,
};
use shared::{Vip, crd};

pub use self::convert::{config_map, crd_object, daemon_set, node, owned, pod};
use crate::model::{Node, ObjectKey, Observed, Owned, Pod};
use crate::publish::{ConfigMaps, is_report};
use crate::watch::Change;
use crate::watch::objects::ConfigMapObject;

/// News of the cluster.
#[derive(Debug)]
pub enum News {
    Vips(Change<crd::Vip>),
    Egresses(Change<crd::Egress>),
    Mappers(Change<crd::EgressMapper>),
    Pods(Change<Pod>),
    Nodes(Change<Node>),
    ReplicaSets(Change<Owned>),
    Jobs(Change<Owned>),
    ConfigMaps(Change<ConfigMapObject>),
    DaemonSets(Change<SeenDaemonSet>),
}

/// What matters of a `DaemonSet` that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenDaemonSet {
    pub name: String,
    pub uid: String,
    /// Grows with every change of the spec.
    pub generation: i64,
    /// The digest of what was applied, if it is still there.
    pub digest: Option<String>,
    pub owner: Option<String>,
    pub terminating: bool,
    /// The generation that the numbers below are about.
    pub observed_generation: i64,
    pub desired_pods: i64,
    pub ready_pods: i64,
    pub updated_pods: i64,
}

impl SeenDaemonSet {
    /// Every pod that should run does, and is of the newest make.
    pub fn is_complete(&self) -> bool {
        self.desired_pods > 0
            && self.ready_pods >= self.desired_pods
            && self.updated_pods >= self.desired_pods
            && self.observed_generation == self.generation
    }
}

/// What was there before, by kind of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    Vips,
    Egresses,
    Mappers,
    Pods,
    Nodes,
    ReplicaSets,
    Jobs,
    ConfigMaps,
    DaemonSets,
}

impl Kept {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Vips, "Vips"),
        (Self::Egresses, "Egresses"),
        (Self::Mappers, "EgressMappers"),
        (Self::Pods, "Pods"),
        (Self::Nodes, "Nodes"),
        (Self::ReplicaSets, "ReplicaSets"),
        (Self::Jobs, "Jobs"),
        (Self::ConfigMaps, "ConfigMaps"),
        (Self::DaemonSets, "DaemonSets"),
    ];
}

/// All that is known of the cluster.
#[derive(Debug, Default)]
pub struct World {
    namespace: String,
    vips: BTreeMap<ObjectKey, Arc<crd::Vip>>,
    egresses: BTreeMap<ObjectKey, Arc<crd::Egress>>,
    mappers: BTreeMap<ObjectKey, Arc<crd::EgressMapper>>,
    /// By namespace and name: a pod that is made anew under its name replaces the one before.
    pods: HashMap<ObjectKey, Arc<Pod>>,
    nodes: BTreeMap<String, Arc<Node>>,
    replica_sets: HashMap<ObjectKey, Arc<Owned>>,
    jobs: HashMap<ObjectKey, Arc<Owned>>,
    /// What is published, and what the nodes report.
    pub config_maps: ConfigMaps,
    reports: BTreeMap<String, NodeReport>,
    /// The nodes of whose reports not all was understood that is about blocks of ports: a block that is
    /// not named there may be used nevertheless.
    unclear: BTreeSet<String>,
    pub daemon_sets: BTreeMap<String, SeenDaemonSet>,
    listed: BTreeSet<Kept>,
    labels: Labels,
}

/// Equal sets of labels are kept once: the pods of an owner have the same.
#[derive(Debug, Default)]
struct Labels(HashSet<Arc<BTreeMap<String, String>>>);

impl Labels {
    fn share(&mut self, labels: &mut Arc<BTreeMap<String, String>>) {
        if let Some(known) = self.0.get(&**labels) {
            *labels = known.clone();
        } else {
            self.0.insert(labels.clone());
        }
    }

    fn forget_unused(&mut self) {
        self.0.retain(|labels| Arc::strong_count(labels) > 1);
    }
}

impl World {
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..Self::default() }
    }

    /// The kinds of objects that were not listed yet; while there are any, nothing may be decided.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = Kept::ALL.into_iter().filter(|(kept, _)| !self.listed.contains(kept));
        missing.map(|(_, name)| name).collect()
    }

    /// Takes in news; whether they can matter.
    pub fn learn(&mut self, news: News) -> bool {
        let listed = match &news {
            News::Vips(Change::Listed(_)) => Some(Kept::Vips),
            News::Egresses(Change::Listed(_)) => Some(Kept::Egresses),
            News::Mappers(Change::Listed(_)) => Some(Kept::Mappers),
            News::Pods(Change::Listed(_)) => Some(Kept::Pods),
            News::Nodes(Change::Listed(_)) => Some(Kept::Nodes),
            News::ReplicaSets(Change::Listed(_)) => Some(Kept::ReplicaSets),
            News::Jobs(Change::Listed(_)) => Some(Kept::Jobs),
            News::ConfigMaps(Change::Listed(_)) => Some(Kept::ConfigMaps),
            News::DaemonSets(Change::Listed(_)) => Some(Kept::DaemonSets),
            _ => None,
        };
        let first = listed.is_some_and(|kept| self.listed.insert(kept));
        first | self.take_in(news)
    }

    fn take_in(&mut self, news: News) -> bool {
        match news {
            News::Vips(change) => keep(&mut self.vips, change, key_of, same_object),
            News::Egresses(change) => keep(&mut self.egresses, change, key_of, same_object),
            News::Mappers(change) => keep(&mut self.mappers, change, key_of, same_object),
            News::Pods(change) => self.learn_pods(change),
            News::Nodes(change) => {
                keep(&mut self.nodes, change, |node| node.name.clone(), Node::eq)
            }
            News::ReplicaSets(change) => keep(&mut self.replica_sets, change, owned_key, Owned::eq),
            News::Jobs(change) => keep(&mut self.jobs, change, owned_key, Owned::eq),
            News::ConfigMaps(change) => self.learn_config_maps(change),
            News::DaemonSets(change) => self.learn_daemon_sets(change),
        }
    }

    fn learn_pods(&mut self, mut change: Change<Pod>) -> bool {
        let pods = match &mut change {
            Change::Listed(pods) => pods.as_mut_slice(),
            Change::Seen(pod) | Change::Gone(pod) => std::slice::from_mut(pod),
        };
        for pod in pods {
            self.labels.share(&mut pod.labels);
        }
        if self.labels.0.len() > 2 * self.pods.len() + 100 {
            self.labels.forget_unused();
        }
        let key =
            |pod: &Pod| ObjectKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
        keep(&mut self.pods, change, key, Pod::eq)
    }

    fn learn_config_maps(&mut self, change: Change<ConfigMapObject>) -> bool {
        let name = |object: &ConfigMapObject| object.metadata.name.clone().unwrap_or_default();
        let (names, news) = match change {
            Change::Listed(objects) => (None, self.config_maps.listed(objects)),
            Change::Seen(object) => (Some(name(&object)), self.config_maps.seen(object)),
            Change::Gone(object) => (Some(name(&object)), self.config_maps.seen_deleted(&object)),
        };
        if news && names.is_none_or(|name| is_report(&name)) {
            self.read_reports();
        }
        news
    }

    fn read_reports(&mut self) {
        self.reports.clear();
        self.unclear.clear();
        for name in self.config_maps.names_with(NODE_REPORT_PREFIX).filter(|name| is_report(name)) {
            let node = name.strip_prefix(NODE_REPORT_PREFIX).unwrap_or_default();
            let Some(object) = self.config_maps.get(name) else { continue };
            let Decoded { entries, rejected } = decode_node_report(name, &object.data);
            if rejected.iter().any(|rejected| rejected.key == report_keys::BLOCKS) {
                self.unclear.insert(node.to_owned());
            }
            self.reports.insert(node.to_owned(), entries);
        }
    }

    fn learn_daemon_sets(&mut self, change: Change<SeenDaemonSet>) -> bool {
        let before = self.daemon_sets.clone();
        match change {
            Change::Listed(sets) => {
                self.daemon_sets = sets.into_iter().map(|set| (set.name.clone(), set)).collect();
            }
            Change::Seen(set) => {
                self.daemon_sets.insert(set.name.clone(), set);
            }
            Change::Gone(set) => {
                self.daemon_sets.remove(&set.name);
            }
        }
        before != self.daemon_sets
    }

    /// All of it, as decisions are made of it.
    pub fn observed(&self, now: Timestamp) -> Observed {
        let data = |name: &str| self.config_maps.get(name).map(|object| &object.data);
        let route_ids = data(config_map::ROUTE_IDS)
            .map(|data| config_map::decode_route_ids(config_map::ROUTE_IDS, data).entries);
        let candidates = data(config_map::CANDIDATES)
            .map(|data| config_map::decode_candidates(config_map::CANDIDATES, data).entries);
        Observed {
            now,
            namespace: self.namespace.clone(),
            vips: self.vips.values().cloned().collect(),
            egresses: self.egresses.values().cloned().collect(),
            mappers: self.mappers.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            owned: self.replica_sets.values().chain(self.jobs.values()).cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            reports: self.reports.clone(),
            published_route_ids: route_ids.unwrap_or_default(),
            published_candidates: candidates.unwrap_or_default(),
        }
    }

    /// The namespace the controller runs in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn vips(&self) -> &BTreeMap<ObjectKey, Arc<crd::Vip>> {
        &self.vips
    }

    pub fn egresses(&self) -> &BTreeMap<ObjectKey, Arc<crd::Egress>> {
        &self.egresses
    }

    pub fn mappers(&self) -> &BTreeMap<ObjectKey, Arc<crd::EgressMapper>> {
        &self.mappers
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(Arc::as_ref)
    }

    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values().map(Arc::as_ref)
    }

    pub fn reports(&self) -> &BTreeMap<String, NodeReport> {
        &self.reports
    }

    /// What nodes make of their blocks of ports, as far as it is understood as a whole.
    pub fn uses_of_blocks(&self) -> impl Iterator<Item = (&str, &BTreeMap<Vip, BlockUse>)> {
        let clear = self.reports.iter().filter(|(node, _)| !self.unclear.contains(*node));
        clear.map(|(node, report)| (node.as_str(), &report.blocks))
    }
}

/// A map, whatever its order.
trait Map<K, V> {
    fn insert_one(&mut self, key: K, value: V);
    fn remove_one(&mut self, key: &K) -> bool;
    fn find(&self, key: &K) -> Option<&V>;
    fn keep_only(&mut self, keys: &BTreeSet<K>) -> bool;
}

macro_rules! map {
    ($map:ident, $($bound:path),+) => {
        impl<K: Ord $(+ $bound)+, V> Map<K, V> for $map<K, V> {
            fn insert_one(&mut self, key: K, value: V) {
                self.insert(key, value);
            }

            fn remove_one(&mut self, key: &K) -> bool {
                self.remove(key).is_some()
            }

            fn find(&self, key: &K) -> Option<&V> {
                self.get(key)
            }

            fn keep_only(&mut self, keys: &BTreeSet<K>) -> bool {
                let before = self.len();
                self.retain(|key, _| keys.contains(key));
                self.len() != before
            }
        }
    };
}

map!(BTreeMap, Clone);
map!(HashMap, Eq, std::hash::Hash);

/// Takes in a change of one kind; whether anything is different then.
fn keep<K: Ord + Clone, V>(
    into: &mut impl Map<K, Arc<V>>,
    change: Change<V>,
    key: impl Fn(&V) -> K,
    same: impl Fn(&V, &V) -> bool,
) -> bool {
    let put = |into: &mut dyn Map<K, Arc<V>>, value: V| {
        let key = key(&value);
        let known = into.find(&key).is_some_and(|known| same(known, &value));
        if !known {
            into.insert_one(key, Arc::new(value));
        }
        !known
    };
    match change {
        Change::Seen(value) => put(into, value),
        Change::Gone(value) => into.remove_one(&key(&value)),
        Change::Listed(values) => {
            let keys = values.iter().map(&key).collect();
            let mut news = into.keep_only(&keys);
            for value in values {
                news |= put(into, value);
            }
            news
        }
    }
}

fn key_of<K: kube::ResourceExt>(object: &K) -> ObjectKey {
    ObjectKey { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

fn owned_key(owned: &Owned) -> ObjectKey {
    ObjectKey { namespace: owned.namespace.clone(), name: owned.name.clone() }
}

fn same_object<K: kube::ResourceExt>(known: &K, other: &K) -> bool {
    known.uid() == other.uid() && known.resource_version() == other.resource_version()
}

#[cfg(test)]
mod tests;
