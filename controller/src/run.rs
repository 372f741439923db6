//! The running controller: waits for news, decides, has it written, tells the outside.
//!
//! One pass is: observe what is known, [`resolve`], publish, hand what there is to report to those
//! who write it in their own time: mappings never wait for status.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use shared::config_map;
use shared::crd::{self, Kind};
use shared::telemetry::Health;
use shared::{Vip, VipPath};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::blocks::{Allocator, Plan, Situation};
use crate::gone::Gone;
use crate::leader::Leadership;
use crate::metrics::{Kind as Judged, Metrics, Part};
use crate::model::{HeldReason, ObjectKey, Reason, Resolved, UniqueReason, VipVerdict};
use crate::publish::{PublishError, PublishedBlocks, Publisher, Shard, Wanted};
use crate::report::{Task, Writer, report};
use crate::resolve::resolve;
use crate::watch::follow;
use crate::world::{self, News, World};

/// The shortest wait before a failed pass is made again; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait before a failed pass is made again.
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How long news are collected before a pass, at least; and how far passes are apart at most for
/// the time that they take, so that a large cluster in turmoil does not cost all of a processor.
const SETTLE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How long after a pass another one is made although there is no news.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// How often the loop turns at least, to show that it does.
const BEAT: Duration = Duration::from_secs(10);
/// How many news may wait; those who follow objects wait then.
const BACKLOG: usize = 1024;

/// What runs.
pub struct Controller {
    client: Client,
    world: World,
    publisher: Publisher,
    writer: Writer,
    reports: watch::Sender<Arc<Vec<Task>>>,
    writing: JoinHandle<()>,
    leadership: Leadership,
    metrics: Metrics,
    health: Health,
    /// The last node that held each Vip.
    holders: BTreeMap<ObjectKey, String>,
    allocator: Allocator,
    published_blocks: PublishedBlocks,
    gone: Gone,
}

/// When what is due.
struct Timetable {
    /// Something may have changed since the last pass.
    pass: bool,
    /// A pass is due then, whatever happens.
    at: Option<Instant>,
    retry: Duration,
    /// How long the last pass took, without waiting for answers.
    effort: Duration,
    /// When it ended.
    passed: Option<Instant>,
    /// When the first news came that no pass has seen yet.
    since: Option<Instant>,
    led: bool,
}

impl Controller {
    pub fn new(
        client: Client,
        namespace: &str,
        identity: &str,
        leadership: Leadership,
        metrics: Metrics,
        health: Health,
    ) -> Self {
        let publisher =
            Publisher::new(client.clone(), namespace, leadership.clone(), metrics.clone());
        let writer =
            Writer::new(client.clone(), namespace, identity, leadership.clone(), metrics.clone());
        let (reports, told) = watch::channel(Arc::default());
        let writing = tokio::spawn(writer.clone().run(told));
        let world = World::new(namespace);
        Self {
            client,
            world,
            publisher,
            writer,
            reports,
            writing,
            leadership,
            metrics,
            health,
            holders: BTreeMap::new(),
            allocator: Allocator::default(),
            published_blocks: PublishedBlocks::default(),
            gone: Gone::default(),
        }
    }

    /// Runs until `shutdown`; nothing is written any more when it returns.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.work(&shutdown).await;
        self.writing.abort();
        // It ends as cancelled, as it was told to.
        drop(self.writing.await);
    }

    async fn work(&mut self, shutdown: &CancellationToken) {
        let (sender, mut news) = mpsc::channel(BACKLOG);
        follow_all(&self.client, self.world.namespace(), &sender);
        drop(sender);
        let mut due = Timetable {
            pass: false,
            at: None,
            retry: FIRST_RETRY,
            effort: Duration::ZERO,
            passed: None,
            since: None,
            led: false,
        };
        let mut complaint = String::new();
        loop {
            self.health.beat();
            let events = [due.at, self.leadership.until()].into_iter().flatten();
            let wake = events.fold(Instant::now() + BEAT, Instant::min);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                first = news.recv() => match first {
                    Some(first) => self.learn(first, &mut news, &mut due).await,
                    None => return,
                },
                () = self.leadership.changed() => {}
                () = sleep_until(wake) => {}
            }
            tokio::select! {
                biased;
                // What is under way then is either written or not; the next leader sees which.
                () = shutdown.cancelled() => return,
                () = self.pass_if_due(&mut due, &mut complaint) => {}
            }
        }
    }

    /// Takes in news, and what comes within a moment.
    async fn learn(&mut self, first: News, news: &mut mpsc::Receiver<News>, due: &mut Timetable) {
        let now = Instant::now();
        // After a rest, what comes is taken up at once; in turmoil passes keep their distance.
        let distance = due.passed.map(|at| at + due.effort.min(SETTLE.1));
        let settled = distance.map_or(now, |at| at.max(now)).max(now + SETTLE.0);
        let mut next = Some(first);
        while let Some(one) = next {
            if self.world.learn(one) {
                due.pass = true;
                due.since.get_or_insert(now);
            }
            next = if due.pass {
                timeout_at(settled, news.recv()).await.ok().flatten()
            } else {
                news.try_recv().ok()
            };
        }
        self.metrics.backlog(news.len());
    }

    async fn pass_if_due(&mut self, due: &mut Timetable, complaint: &mut String) {
        let missing = self.world.missing();
        if !missing.is_empty() {
            self.health.set_unready(&format!("not listed yet: {}", missing.join(", ")));
            return;
        }
        // A replica that stands by is ready: it could take over at once.
        self.health.set_ready();
        let leads = self.leadership.leads();
        self.metrics.leads(leads);
        if leads && !due.led {
            // What others have written meanwhile is known, what they were about to is not.
            due.pass = true;
        }
        if !leads && due.led {
            info!("does not lead any more, and writes nothing until it does");
            self.reports.send_replace(Arc::default());
            // Since when things are so counts only while one looks.
            self.allocator = Allocator::default();
        }
        due.led = leads;
        let is_time = due.at.is_some_and(|at| at <= Instant::now());
        if !leads || !(due.pass || is_time) {
            return;
        }
        due.pass = false;
        due.at = None;
        let outcome = self.pass(due).await;
        due.passed = Some(Instant::now());
        match outcome {
            Ok(next) => {
                let again = Instant::now() + LOOK_AGAIN;
                due.at = Some(next.map_or(again, |next| next.min(again)));
                due.retry = FIRST_RETRY;
                complaint.clear();
                if let Some(since) = due.since.take() {
                    self.metrics.took(Part::NewsToWritten, since.elapsed());
                }
            }
            Err(PublishError::NotLeading) => due.pass = true,
            Err(failure) => {
                let chain = format!("{:#}", anyhow::Error::new(failure));
                if chain != *complaint {
                    error!("{chain}");
                    *complaint = chain;
                }
                due.at = Some(Instant::now() + due.retry);
                due.retry = (due.retry * 2).min(LAST_RETRY);
            }
        }
    }

    async fn pass(&mut self, due: &mut Timetable) -> Result<Option<Instant>, PublishError> {
        let started = Instant::now();
        let mut resolved = resolve(&self.world.observed(Timestamp::now()));
        let mut wanted = self.wanted(&mut resolved);
        let world = &self.world;
        self.gone.add(&mut wanted.shards, &world.config_maps, world.pods(), Instant::now());
        let replan = self.plan_blocks(&mut resolved, &mut wanted);
        due.effort = started.elapsed();
        self.metrics.took(Part::Resolve, due.effort);
        let started = Instant::now();
        let outcome = self.publisher.publish(&wanted, &mut self.world.config_maps).await;
        self.metrics.took(Part::Publish, started.elapsed());
        debug!(resolve = ?due.effort, publish = ?started.elapsed(), "pass");
        // Told also if something was not written: those who wait should know why.
        let confirmed = self.writer.confirmed();
        let tasks = report(&self.world, &resolved, &confirmed, Timestamp::now());
        self.reports.send_replace(Arc::new(tasks));
        self.tell(&wanted, &resolved);
        outcome.map(|next| [next, replan].into_iter().flatten().min())
    }

    /// Who is to have which blocks of ports, and what is said of it; when to look again. Next to
    /// nothing where no VIP is on the direct path, and none was.
    fn plan_blocks(&mut self, resolved: &mut Resolved, wanted: &mut Wanted) -> Option<Instant> {
        self.published_blocks.refresh(&self.world.config_maps);
        let direct = resolved.paths.iter().filter(|(_, (_, path))| *path == VipPath::Direct);
        let mut direct: BTreeMap<Vip, BTreeSet<&str>> =
            direct.map(|(vip, _)| (*vip, BTreeSet::new())).collect();
        if direct.is_empty() && self.published_blocks.all().next().is_none() {
            self.metrics.paths([]);
            return None;
        }
        for (node, shard) in &wanted.shards {
            for vip in shard.vips() {
                if let Some(nodes) = direct.get_mut(&vip) {
                    nodes.insert(node);
                }
            }
        }
        let nodes = self.world.nodes();
        let Plan { wanted: blocks, verdicts, next } = self.allocator.plan(&Situation {
            now: Instant::now(),
            direct,
            published: self.published_blocks.all().collect(),
            nodes: nodes.map(|node| (node.name.as_str(), node.internal.as_slice())).collect(),
            reports: self.world.uses_of_blocks().collect(),
        });
        self.metrics.paths(verdicts.iter().map(|(&vip, verdict)| (vip, verdict)));
        wanted.blocks = blocks;
        for (vip, verdict) in verdicts {
            let object = resolved.paths.get(&vip).and_then(|(key, _)| resolved.vips.get_mut(key));
            if let Some(object) = object {
                object.path = Some(verdict);
            }
        }
        next
    }

    /// What is to be published, moved out of what was resolved: every node has a share, even if it
    /// is empty.
    fn wanted(&self, resolved: &mut Resolved) -> Wanted {
        let counts = resolved.mappers.values().any(|verdict| verdict.counts);
        let published = self.world.config_maps.get(config_map::NETWORKS).is_some();
        let mut shards: BTreeMap<String, Shard> = BTreeMap::new();
        for (node, pods) in take(&mut resolved.shards) {
            shards.entry(node).or_default().pods = pods;
        }
        for (node, named) in take(&mut resolved.named) {
            shards.entry(node).or_default().named = named;
        }
        for node in self.world.nodes() {
            shards.entry(node.name.clone()).or_default();
        }
        Wanted {
            route_ids: take(&mut resolved.route_ids),
            candidates: take(&mut resolved.candidates),
            // Without an EgressMapper nobody says what they are: agents that are still there go on
            // with what they were told.
            networks: (counts || !published).then_some(take(&mut resolved.networks)),
            shards,
            blocks: BTreeMap::new(),
        }
    }

    fn tell(&mut self, wanted: &Wanted, resolved: &Resolved) {
        self.holders.retain(|key, _| resolved.vips.contains_key(key));
        for (key, vip) in &resolved.vips {
            let Some(holder) = &vip.holder else { continue };
            let before = self.holders.insert(key.clone(), holder.clone());
            if before.is_some_and(|before| before != *holder) {
                self.metrics.vip_moved();
            }
        }
        let addresses = wanted.shards.values().flat_map(|shard| shard.pods.values());
        let (mapped, held) = addresses.fold((0, 0), |(mapped, held), vip| match vip {
            Some(_) => (mapped + 1, held),
            None => (mapped, held + 1),
        });
        self.metrics.mapped(mapped, held);
        let vips = resolved.vips.values();
        let count = |is: fn(&&VipVerdict) -> bool| vips.clone().filter(is).count();
        self.metrics.held(
            count(|vip| vip.held.reason == HeldReason::NoHolder),
            count(|vip| {
                vip.held.reason == HeldReason::SeveralHolders
                    || vip.unique.reason == UniqueReason::Conflict
            }),
            resolved.mappers.values().map(|mapper| mapper.ready_gateways).sum(),
        );
        let egresses = resolved.egresses.values();
        let mappers = resolved.mappers.values();
        self.metrics.verdicts(
            vips.map(|verdict| (Judged::Vip, verdict.accepted.reason.as_str()))
                .chain(egresses.map(|verdict| (Judged::Egress, verdict.ready.reason.as_str())))
                .chain(mappers.map(|of| (Judged::EgressMapper, of.accepted.reason.as_str()))),
        );
    }
}

/// Begins to follow everything that decisions are made of.
fn follow_all(client: &Client, namespace: &str, news: &mpsc::Sender<News>) {
    macro_rules! all {
        ($convert:expr, $wrap:expr) => {
            tokio::spawn(follow(Api::all(client.clone()), $convert, $wrap, news.clone()))
        };
    }
    macro_rules! own {
        ($convert:expr, $wrap:expr) => {{
            let api = Api::namespaced(client.clone(), namespace);
            tokio::spawn(follow(api, $convert, $wrap, news.clone()))
        }};
    }
    use crate::watch::objects::{JobMeta, ReplicaSetMeta};
    all!(world::crd_object::<crd::Vip>, News::Vips);
    all!(world::crd_object::<crd::Egress>, News::Egresses);
    all!(world::crd_object::<crd::EgressMapper>, News::Mappers);
    all!(world::pod, News::Pods);
    all!(world::node, News::Nodes);
    all!(|of: ReplicaSetMeta| world::owned(Kind::ReplicaSet, of.metadata), News::ReplicaSets);
    all!(|of: JobMeta| world::owned(Kind::Job, of.metadata), News::Jobs);
    own!(world::config_map, News::ConfigMaps);
    own!(world::daemon_set, News::DaemonSets);
    info!("follows the cluster's objects");
}
