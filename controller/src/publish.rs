//! Shell: keeps the `ConfigMaps` equal to what was resolved.
//!
//! The order is data: networks, VIPs and route ids that are added come before the pods that name
//! them, and what no pod names any more goes after the pods. Every write carries the version of the
//! object that it was made for, so that a replica that has lost its lead without knowing, or an
//! edit that was not seen yet, is never overwritten: the API server refuses, the watch tells what
//! has happened, and the next pass decides anew.

pub mod aggregate;
mod blocks;
mod configmaps;
pub mod patch;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::{Api, Client};
use shared::config_map::{
    self, NODE_LABEL, PODS_OF_NODE_PREFIX, VipBlocks, blocks_of_vip, pods_of_node,
};
use shared::mappings::Expected;
use shared::{ClusterNetworks, PodIp, RouteId, Vip};
use tokio::time::Instant;
use tracing::info;

use self::aggregate::{TRUNCATED, aggregate};
pub use self::blocks::PublishedBlocks;
pub use self::configmaps::{ConfigMaps, is_report, matters};
use self::patch::{Desired, MANAGED_BY, Scope};
use self::requests::{Task, task};
use crate::blocks::Wanted as Blocks;
use crate::leader::Leadership;
use crate::metrics::{Metrics, Written};
use crate::model::Named;
use crate::watch::objects::ConfigMapObject;

/// Under which name the API server notes what this program wrote.
pub const FIELD_MANAGER: &str = "egress-mapper";
/// The least time between two writes of the object with all pods.
const AGGREGATE_EVERY: Duration = Duration::from_secs(1);
/// How long the empty object of a node that is gone stays: agents keep the last content of an
/// object that vanishes, so each of them has to have seen it empty.
const KEEP_EMPTY: Duration = Duration::from_mins(15);

/// The pods on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Pod IP → VIP; `None` holds the pod.
    pub pods: BTreeMap<PodIp, Option<Vip>>,
    /// What is said of pods by their UIDs. When addresses become known, one write names them and takes
    /// away what the pod will get.
    pub named: Named,
}

impl Shard {
    /// The VIPs that its pods leave with, or will; one may come several times.
    pub fn vips(&self) -> impl Iterator<Item = Vip> {
        let Self { pods, named: Named { expected, .. } } = self;
        pods.values().copied().flatten().chain(expected.values().flat_map(Expected::vips))
    }

    fn encode(&self) -> BTreeMap<String, String> {
        let Self { pods, named: Named { expected, addresses, uncovered, gone } } = self;
        let mut data = config_map::encode_pods(pods);
        data.extend(config_map::encode_expected(expected));
        data.extend(config_map::encode_addresses(addresses));
        data.extend(config_map::encode_uncovered(uncovered));
        data.extend(config_map::encode_gone(gone));
        data
    }
}

/// What agents and keepalived shall read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub route_ids: BTreeMap<Vip, RouteId>,
    pub candidates: BTreeMap<Vip, Vec<String>>,
    /// `None`: nobody says what they are, so what was published stays.
    pub networks: Option<ClusterNetworks>,
    /// By node; every node that exists has one.
    pub shards: BTreeMap<String, Shard>,
    /// Which nodes have which blocks of the VIPs' ports; other objects with blocks are let be.
    pub blocks: BTreeMap<Vip, Blocks>,
}

/// Not everything is as wanted yet.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("this replica no longer leads")]
    NotLeading,
    #[error("{object} has changed meanwhile; the next pass sees how")]
    Outdated { object: String },
    #[error("{object} was deleted meanwhile; the next pass makes it again")]
    Missing { object: String },
    #[error("cannot write {object}: the API server does not answer")]
    NoAnswer { object: String },
    #[error("cannot write {object}")]
    Write { object: String, source: kube::Error },
}

/// What writes the `ConfigMaps`.
pub struct Publisher {
    objects: Api<ConfigMapObject>,
    leadership: Leadership,
    metrics: Metrics,
    /// What each shard was last seen to hold, and at which version: those need no look.
    confirmed: BTreeMap<String, (String, Shard)>,
    /// The same of the objects with blocks.
    confirmed_blocks: BTreeMap<Vip, (String, VipBlocks)>,
    /// Since when shards belong to no node.
    gone: BTreeMap<String, Instant>,
    aggregate: Due,
}

/// When the object with all pods may be written again.
struct Due {
    at: Instant,
    /// Something has changed that it does not show yet.
    pending: bool,
}

impl Publisher {
    pub fn new(client: Client, namespace: &str, leadership: Leadership, metrics: Metrics) -> Self {
        Self {
            objects: Api::namespaced(client, namespace),
            leadership,
            metrics,
            confirmed: BTreeMap::new(),
            confirmed_blocks: BTreeMap::new(),
            gone: BTreeMap::new(),
            aggregate: Due { at: Instant::now(), pending: true },
        }
    }

    /// Makes the objects what is wanted; when to be called again although nothing has changed.
    ///
    /// What was written counts as observed at once.
    pub async fn publish(
        &mut self,
        wanted: &Wanted,
        observed: &mut ConfigMaps,
    ) -> Result<Option<Instant>, PublishError> {
        let before = Self::common(wanted, observed, Scope::Additions);
        let added = self.carry_out(before, observed).await;
        let shards = self.shards(wanted, observed);
        self.carry_out(shards, observed).await?;
        self.confirm(wanted, observed);
        // Before that a new pod is on the holder's path: it never waits for blocks.
        let blocks = self.publish_blocks(wanted, observed).await;
        // Only now does no pod name what goes.
        let after = Self::common(wanted, observed, Scope::All);
        self.carry_out(after, observed).await?;
        added?;
        blocks?;
        self.refresh_aggregate(wanted, observed).await?;
        self.bury(wanted, observed).await
    }

    /// The objects that all nodes read.
    fn common(wanted: &Wanted, observed: &ConfigMaps, scope: Scope) -> Vec<Task> {
        let vips = wanted.route_ids.keys();
        let vips = vips.map(|vip| (config_map::key(vip.addr()), String::new())).collect();
        let networks = wanted.networks.as_ref().map(config_map::encode_networks);
        let objects = [
            (config_map::NETWORKS, networks),
            (config_map::VIPS, Some(vips)),
            (config_map::ROUTE_IDS, Some(config_map::encode_route_ids(&wanted.route_ids))),
            (config_map::CANDIDATES, Some(config_map::encode_candidates(&wanted.candidates))),
        ];
        let task = |(name, data): (&str, Option<BTreeMap<_, _>>)| {
            let desired = Desired { labels: labels(None), data: data?, ..Desired::default() };
            task(name, Written::Common, &desired, observed, scope)
        };
        objects.into_iter().filter_map(task).collect()
    }

    /// The objects with the pods of each node, and those of nodes that are gone: emptied.
    fn shards(&self, wanted: &Wanted, observed: &ConfigMaps) -> Vec<Task> {
        let empty = Shard::default();
        let gone = gone(wanted, observed).map(|node| (node, &empty));
        let all = wanted.shards.iter().map(|(node, shard)| (node.as_str(), shard));
        all.chain(gone)
            .filter_map(|(node, shard)| {
                let name = pods_of_node(node);
                let version = observed.version(&name);
                let confirmed = self.confirmed.get(&name);
                if confirmed.is_some_and(|(at, held)| Some(at) == version && held == shard) {
                    return None;
                }
                let data = shard.encode();
                let desired = Desired { labels: labels(Some(node)), data, ..Desired::default() };
                task(&name, Written::Shard, &desired, observed, Scope::All)
            })
            .collect()
    }

    /// The objects with blocks, as what is wanted was decided for: a version that was written
    /// meanwhile is let be.
    async fn publish_blocks(
        &mut self,
        wanted: &Wanted,
        observed: &mut ConfigMaps,
    ) -> Result<(), PublishError> {
        let mut tasks = Vec::new();
        let mut deleted = Vec::new();
        for (&vip, wanted) in &wanted.blocks {
            let name = blocks_of_vip(vip);
            let Blocks::Blocks(wanted) = wanted else {
                deleted.push(name);
                continue;
            };
            let confirmed = self.confirmed_blocks.get(&vip);
            let version = observed.version(&name);
            if confirmed.is_some_and(|(at, held)| Some(at) == version && held == wanted) {
                continue;
            }
            if let Some(change) = blocks::to_write(vip, wanted, observed) {
                tasks.push(Task::new(name, Written::Blocks, change, observed));
            } else if let Some(version) = version {
                self.confirmed_blocks.insert(vip, (version.clone(), wanted.clone()));
            }
        }
        self.confirmed_blocks.retain(|vip, _| wanted.blocks.contains_key(vip));
        let mut outcome = self.carry_out(tasks, observed).await;
        for name in deleted {
            let gone = self.delete(&name, observed).await;
            if gone.is_ok() {
                info!("deleted {name}: no node has blocks of it since long");
            }
            outcome = outcome.and(gone);
        }
        outcome
    }

    fn confirm(&mut self, wanted: &Wanted, observed: &ConfigMaps) {
        let empty = Shard::default();
        let names: BTreeSet<String> = wanted.shards.keys().map(|node| pods_of_node(node)).collect();
        self.confirmed.retain(|name, _| names.contains(name) || observed.version(name).is_some());
        let gone = gone(wanted, observed).map(|node| (node, &empty));
        let all = wanted.shards.iter().map(|(node, shard)| (node.as_str(), shard)).chain(gone);
        for (node, shard) in all {
            let name = pods_of_node(node);
            let Some(version) = observed.version(&name) else { continue };
            match self.confirmed.get_mut(&name) {
                Some((at, held)) if at == version && held == shard => {}
                Some((at, held)) => {
                    version.clone_into(at);
                    if held != shard {
                        held.clone_from(shard);
                        self.aggregate.pending = true;
                    }
                }
                None => {
                    self.confirmed.insert(name, (version.clone(), shard.clone()));
                    self.aggregate.pending = true;
                }
            }
        }
    }

    async fn refresh_aggregate(
        &mut self,
        wanted: &Wanted,
        observed: &mut ConfigMaps,
    ) -> Result<(), PublishError> {
        let name = config_map::PODS;
        let changed = observed.take_changed(name);
        self.aggregate.pending |= changed;
        if !self.aggregate.pending || self.aggregate.at > Instant::now() {
            return Ok(());
        }
        let nothing = BTreeMap::new();
        let shown = observed.get(name).map_or(&nothing, |object| &object.data);
        let (data, note) = aggregate(wanted.shards.values().map(|shard| &shard.pods), shown);
        let annotations = BTreeMap::from([(TRUNCATED.to_owned(), note)]);
        let desired = Desired { labels: labels(None), annotations, data };
        let task = task(name, Written::Aggregate, &desired, observed, Scope::All);
        if task.is_some() {
            self.aggregate.at = Instant::now() + AGGREGATE_EVERY;
        }
        self.carry_out(task.into_iter().collect(), observed).await?;
        self.aggregate.pending = false;
        Ok(())
    }

    /// Deletes the empty objects of nodes that are gone for long; when to look again.
    async fn bury(
        &mut self,
        wanted: &Wanted,
        observed: &mut ConfigMaps,
    ) -> Result<Option<Instant>, PublishError> {
        let now = Instant::now();
        let names: BTreeSet<String> = gone(wanted, observed).map(pods_of_node).collect();
        self.gone.retain(|name, _| names.contains(name));
        for name in &names {
            self.gone.entry(name.clone()).or_insert(now);
        }
        for name in names {
            if self.gone.get(&name).is_some_and(|since| *since + KEEP_EMPTY <= now) {
                self.delete(&name, observed).await?;
                info!("deleted {name}: it was empty, and its node is gone since long");
            }
        }
        let aggregate = self.aggregate.pending.then_some(self.aggregate.at);
        let burial = self.gone.values().min().map(|since| *since + KEEP_EMPTY);
        Ok(aggregate.into_iter().chain(burial).min())
    }
}

fn labels(node: Option<&str>) -> BTreeMap<String, Option<String>> {
    let ours = (MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    // The value is for people: readers ask for the label, whatever its value.
    let node = node.map(|node| (NODE_LABEL.to_owned(), config_map::label_of_node(node).to_owned()));
    [ours].into_iter().chain(node).map(|(key, value)| (key, Some(value))).collect()
}

/// The nodes that have an object with pods and are not there.
fn gone<'a>(wanted: &'a Wanted, observed: &'a ConfigMaps) -> impl Iterator<Item = &'a str> {
    observed
        .names()
        .filter_map(|name| name.strip_prefix(PODS_OF_NODE_PREFIX))
        .filter(|node| !wanted.shards.contains_key(*node))
}
