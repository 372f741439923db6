//! The running agent: waits for news, has the kernel brought in line, tells the outside.

mod direct;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use shared::telemetry::Health;
use shared::{PodIp, PodUid, Vip};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use self::direct::Direct;
use crate::kernel::KernelError;
use crate::kernel::notifications::{Notice, Notifications};
use crate::leftovers::{Leftovers, Presence};
use crate::metrics::Metrics;
use crate::node_report::{Reporter, Standing};
use crate::sources::cni_results::CniResults;
use crate::sources::{Batch, Source, Unreadable};
use crate::sync::{Sync, SyncError};

/// The shortest wait before a failed synchronisation is tried again; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait before a failed synchronisation is tried again.
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Between two repairs: somebody who fights us shall not cost a whole core.
const BETWEEN_REPAIRS: Duration = Duration::from_millis(20);
/// Before a directory that could not be read is read again.
const BEFORE_READING: Duration = Duration::from_secs(1);
/// How long mappings have to rest before what is wrong with them is looked for, which takes longer
/// than to put them into the kernel.
const BEFORE_REPORT: Duration = Duration::from_millis(200);
/// How long after an address was assigned it is reported, if it is mapped: by then the API server
/// knows, or the pod is still named by its UID and reported for that.
const NEWS_FOR: Duration = Duration::from_mins(10);

/// What runs.
pub struct Agent {
    /// What keeps the kernel in line.
    pub sync: Sync,
    /// Where mappings come from.
    pub source: Source,
    /// Where addresses of new pods come from.
    pub results: Option<CniResults>,
    /// Who tells the API server of this node.
    pub reporter: Option<Reporter>,
    /// What this node finds out of the direct path.
    pub direct: Direct,
    /// Whether the launcher of keepalived is there, again and again, where other nodes are heard of.
    pub launcher: Option<mpsc::Receiver<Presence>>,
    /// What it may have left behind.
    pub leftovers: Leftovers,
    /// What others change in the kernel; subscribed to before the first look.
    pub notifications: Notifications,
    /// Where numbers are told.
    pub metrics: Metrics,
    /// Where it is told that we live, and are ready.
    pub health: Health,
    /// How often the whole kernel is looked at, at least.
    pub interval: Duration,
}

/// When what is due.
struct Timetable {
    look: Instant,
    sync: Option<Instant>,
    report: Option<Instant>,
    read: Instant,
    repair: Instant,
    retry: Duration,
    /// Changes of tables are heard: from the first synchronisation on.
    hears_tables: bool,
    /// The source has told what there is.
    has_read: bool,
}

impl Timetable {
    fn sync_by(&mut self, at: Instant) {
        self.sync = Some(self.sync.map_or(at, |earlier| earlier.min(at)));
    }

    fn next(&self) -> Instant {
        let sync = self.sync.filter(|_| self.has_read);
        [sync, self.report].into_iter().flatten().fold(self.look, Instant::min)
    }
}

/// Waits for news of addresses; forever where none come.
async fn changed(results: &mut Option<CniResults>) {
    match results {
        Some(results) => results.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for word of the launcher; forever where nobody asks for it.
async fn presence(launcher: Option<&mut mpsc::Receiver<Presence>>) -> Option<Presence> {
    match launcher {
        Some(launcher) => launcher.recv().await,
        None => std::future::pending().await,
    }
}

fn is_due(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at <= Instant::now())
}

impl Agent {
    /// Runs until `shutdown`, and leaves the kernel as it is then.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), KernelError> {
        let now = Instant::now();
        let mut due = Timetable {
            look: now + self.interval,
            sync: None,
            report: None,
            read: now,
            repair: now,
            retry: FIRST_RETRY,
            hears_tables: false,
            has_read: false,
        };
        let mut complaints = Complaints::default();
        self.health.set_unready("mappings were not read yet");
        self.learn_addresses(&mut due);
        loop {
            self.health.beat();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                notice = self.notifications.next() => self.hear(notice?, &mut due)?,
                batch = self.source.next(), if due.read <= Instant::now() => match batch {
                    Ok(Batch { waiting: Some(reason), .. }) => self.wait_for(&reason),
                    Ok(batch) => {
                        due.has_read = true;
                        for change in &batch.changes {
                            self.leftovers.learn(change);
                        }
                        self.sync.learn(batch.changes);
                        self.direct.claim(&self.sync);
                        complaints.unreadable.extend(batch.unreadable);
                        due.report = Some(Instant::now() + BEFORE_REPORT);
                        due.sync_by(Instant::now());
                    }
                    Err(error) => {
                        complaints.once(&error);
                        due.read = Instant::now() + BEFORE_READING;
                        due.report = Some(due.read);
                    }
                },
                () = changed(&mut self.results) => self.learn_addresses(&mut due),
                () = self.direct.changed() => self.learn_proofs(&mut due),
                Some(presence) = presence(self.launcher.as_mut()) => self.leftovers.hear(presence),
                () = sleep_until(due.next()) => {}
            }
            self.remove_leftovers(&mut due).await;
            if is_due(Some(due.look)) {
                due.look = Instant::now() + self.interval;
                self.sync.look_again();
                due.sync_by(Instant::now());
            }
            if is_due(due.sync) && due.has_read {
                self.sync_now(&mut due, &mut complaints).await?;
            }
            if is_due(due.report) {
                due.report = self.sync.unsure_until().map(Instant::from_std);
                complaints.tell(&self.sync);
                self.metrics.mapped(&self.sync.counts());
            }
        }
    }

    /// Nothing was read yet: what the kernel holds stays as it is.
    fn wait_for(&self, reason: &str) {
        debug!("{reason}");
        self.health.set_unready(reason);
    }

    /// Takes in what is known of addresses of this node's pods.
    fn learn_addresses(&mut self, due: &mut Timetable) {
        let Some(results) = &self.results else { return };
        if self.sync.learn_addresses(results.addresses()) {
            due.sync_by(Instant::now());
        }
    }

    /// Takes in what is proven, and which ports are in use.
    fn learn_proofs(&mut self, due: &mut Timetable) {
        self.sync.learn_proofs(self.direct.proven());
        self.sync.learn_full(self.direct.full());
        // Also when the kernel stays as it is: it is reported then.
        due.sync_by(Instant::now());
    }

    /// The pods of which the API server may not know the addresses, and those; where unknown pods are
    /// held, all of them: what is said of them counts.
    fn learnt(&self) -> BTreeMap<PodUid, BTreeSet<PodIp>> {
        let Some(results) = &self.results else { return BTreeMap::new() };
        let Ok(mappings) = self.sync.store().mappings() else { return BTreeMap::new() };
        let (expected, assigned) = (self.sync.store().expected(), results.assigned());
        let mut learnt = results.addresses().unwrap_or_default().pods;
        learnt.retain(|uid, ips| {
            let age = assigned.get(uid).map(SystemTime::elapsed);
            let is_news = age.is_some_and(|age| age.unwrap_or_default() < NEWS_FOR);
            self.sync.asks()
                || expected.contains_key(uid)
                || is_news && ips.iter().any(|ip| mappings.pods().contains_key(ip))
        });
        learnt
    }

    /// Tells the API server which VIPs are here, if that is known, and why not all is well.
    fn report(&mut self, holds: Option<BTreeSet<Vip>>, wrong: Option<&str>) {
        let blocks = self.direct.report(&self.sync);
        if let Some(reporter) = &self.reporter {
            let message = wrong.unwrap_or_default().to_owned();
            let pods = self.learnt().into_iter().map(|(uid, ips)| (uid, ips.into_iter().collect()));
            let (synced, pods) = (wrong.is_none(), pods.collect());
            reporter.tell(Standing { holds, synced, message, pods, blocks });
        }
    }

    /// Takes VIPs off this node that nobody here serves any more, and another node does.
    async fn remove_leftovers(&mut self, due: &mut Timetable) {
        for vip in self.leftovers.among(&self.sync.held()) {
            match self.sync.release(vip).await {
                Ok(()) => warn!(
                    "VIP {vip} was left on this node by a keepalived that is gone, and another node \
                     has it: it is taken off"
                ),
                Err(error) => error!("{:#}", anyhow::Error::from(error)),
            }
            due.sync_by(Instant::now());
        }
    }

    /// Takes in a notice and all others that are there by now.
    fn hear(&mut self, first: Notice, due: &mut Timetable) -> Result<(), KernelError> {
        let mut notices = self.notifications.drain()?;
        notices.insert(first);
        for notice in &notices {
            if !self.sync.notice(notice) {
                continue;
            }
            let at = match notice {
                Notice::Nftables { .. }
                | Notice::Elements { .. }
                | Notice::Routing
                | Notice::NetConf { .. } => due.repair,
                _ => Instant::now(),
            };
            due.sync_by(at);
        }
        Ok(())
    }

    async fn sync_now(
        &mut self,
        due: &mut Timetable,
        complaints: &mut Complaints,
    ) -> Result<(), KernelError> {
        due.sync = None;
        let outcome = self.sync.sync().await;
        if !due.hears_tables && !matches!(outcome, Err(SyncError::Incomplete(_))) {
            self.notifications.hear_tables()?;
            due.hears_tables = true;
            // What others have changed meanwhile was not heard.
            self.sync.notice(&Notice::Overrun);
            due.sync_by(Instant::now());
        }
        self.direct.claim(&self.sync);
        if !self.sync.held().is_empty() {
            self.source.holds_vip();
        }
        match outcome {
            Ok(steps) => {
                self.direct.count(&self.sync);
                due.retry = FIRST_RETRY;
                if steps > 0 {
                    due.repair = Instant::now() + BETWEEN_REPAIRS;
                    due.report = Some(Instant::now() + BEFORE_REPORT);
                }
                self.health.set_ready();
                self.report(Some(self.sync.held()), None);
            }
            // Nothing to try again before more was read.
            Err(error @ SyncError::Incomplete(_)) => {
                complaints.waits(&error);
                self.health.set_unready(&error.to_string());
                self.report(None, Some(&error.to_string()));
            }
            Err(error) => {
                complaints.once(&error);
                self.health.set_unready(&error.to_string());
                self.report(Some(self.sync.held()), Some(&error.to_string()));
                due.sync_by(Instant::now() + due.retry);
                due.retry = (due.retry * 2).min(LAST_RETRY);
            }
        }
        Ok(())
    }
}

/// What is wrong with what we are given; each fault is told when it comes and when it goes.
#[derive(Default)]
struct Complaints {
    unreadable: Vec<Unreadable>,
    standing: BTreeSet<String>,
    last: String,
}

impl Complaints {
    /// Tells of an error, but for one that was told just before.
    fn once(&mut self, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        if text != self.last {
            error!("{text}");
            self.last = text;
        }
    }

    /// As [`once`](Self::once), for what is not ours to mend.
    fn waits(&mut self, error: &SyncError) {
        let text = error.to_string();
        if text != self.last {
            warn!("{text}");
            self.last = text;
        }
    }

    /// Tells what is wrong with the mappings now and was not before, and what no longer is.
    fn tell(&mut self, sync: &Sync) {
        for Unreadable { object, key, reason } in self.unreadable.drain(..) {
            let key = key.as_deref().unwrap_or("-");
            warn!(
                object,
                key,
                "cannot read {object}, key {key}: {reason}; until it is mended its last content \
                 counts, and without one a pod is held"
            );
        }
        let store = sync.store();
        let mut now: BTreeSet<String> = store.rejected().iter().map(ToString::to_string).collect();
        now.extend(
            store.mappings().iter().flat_map(|mappings| mappings.problems()).map(|p| p.to_string()),
        );
        now.extend(store.missing().map(|object| {
            format!(
                "{object} is missing: its last content counts; an empty one removes its entries"
            )
        }));
        for fault in now.difference(&self.standing) {
            warn!("{fault}");
        }
        for fault in self.standing.difference(&now) {
            info!("no longer: {fault}");
        }
        self.standing = now;
    }
}
