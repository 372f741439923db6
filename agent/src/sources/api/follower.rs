//! One watch: list, watch from there, go on watching after every interruption, list again where that cannot be done.
//!
//! By hand, because a ready-made watcher does not tell that a watch has come back as long as nothing changes, and
//! that is what the age of the last good state is about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::WatchEvent;
use kube::{Api, ResourceExt};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::board::Board;
use super::watch::Watch;
use crate::api_server::{ANSWER_WITHIN, told};
use crate::metrics::WatchMetrics;

/// The server ends a watch after this many seconds ...
const WATCH_SECONDS: u32 = 240;
/// ... and up to as many more, so that the nodes of a cluster do not come back all at once.
const SPREAD_SECONDS: u32 = 50;
/// The server sends a bookmark each minute; a watch without any sign for this long is given up.
const SILENCE: Duration = Duration::from_secs(90);
/// The first and the longest wait after a failure, before up to as much is added by chance.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(2500));
/// A watch that lasted this long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);

pub(super) struct Follower {
    pub(super) watch: Watch,
    pub(super) config_maps: Api<ConfigMap>,
    pub(super) node: String,
    pub(super) board: Arc<Board>,
    pub(super) metrics: WatchMetrics,
}

/// Why a watch ended.
enum End {
    /// As it has to now and then.
    Usual,
    /// The server could not be reached or broke off.
    Lost(String),
    /// The server did not agree to go on from there.
    Refused(String),
}

impl Follower {
    /// Never ends.
    pub(super) async fn run(self) {
        let mut backoff = backoff();
        // From where to watch on; none asks for a list.
        let mut version: Option<String> = None;
        loop {
            let started = Instant::now();
            let end = match version.take() {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(mut from) => {
                    let end = self.follow(&mut from).await;
                    if !matches!(end, Err(End::Refused(_))) {
                        version = Some(from);
                    }
                    end
                }
            };
            if started.elapsed() >= GOOD_AFTER {
                backoff = self::backoff();
            }
            match end {
                Ok(()) | Err(End::Usual) => {}
                Err(End::Lost(why) | End::Refused(why)) => {
                    debug!(watch = %self.watch, "{why}");
                    self.metrics.lost();
                    self.board.lost(self.watch, why);
                    sleep(backoff.next().unwrap_or(BACKOFF.1)).await;
                }
            }
        }
    }

    /// Lists everything, and returns from where to watch.
    async fn list(&self) -> Result<String, End> {
        let params = self.watch.list(&self.node);
        let list = answered(self.config_maps.list(&params)).await?;
        let version = list.metadata.resource_version.unwrap_or_default();
        let mut objects: BTreeMap<_, _> = list
            .items
            .into_iter()
            .map(|object| (object.name_any(), object.data.unwrap_or_default()))
            .collect();
        if self.watch.may_lose_label() {
            for name in self.board.not_in(self.watch, &objects) {
                if let Some(data) = self.unlabelled(&name).await? {
                    objects.insert(name, data);
                }
            }
        }
        self.is_good();
        self.board.listed(self.watch, objects);
        Ok(version)
    }

    /// Watches from a version on, and keeps it up to date.
    async fn follow(&self, version: &mut String) -> Result<(), End> {
        let params = self.watch.watch(&self.node, seconds());
        self.metrics.started();
        let events = answered(self.config_maps.watch(&params, version)).await?;
        pin_mut!(events);
        self.is_good();
        let started = Instant::now();
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return Err(End::of(&error)),
                // A server that takes watches and ends them at once is not asked again at once.
                Ok(None) if started.elapsed() < Duration::from_secs(1) => {
                    return Err(End::Lost("the server ended the watch at once".to_owned()));
                }
                Ok(None) | Err(_) => return Err(End::Usual),
            };
            self.is_good();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    let name = object.name_any();
                    self.board.changed(self.watch, name, object.data.unwrap_or_default());
                }
                WatchEvent::Deleted(object) => {
                    let name = object.name_any();
                    let mut rest = None;
                    if self.watch.may_lose_label() {
                        rest = self.unlabelled(&name).await?;
                    }
                    *version = object.resource_version().unwrap_or_default();
                    match rest {
                        Some(data) => self.board.changed(self.watch, name, data),
                        None => self.board.gone(self.watch, &name),
                    }
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(End::Refused(status.to_string())),
            }
        }
    }

    /// What an object holds that is not found any more: its label went when it named this node no longer.
    /// `None` if it is not there.
    async fn unlabelled(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, End> {
        let found = answered(self.config_maps.get_opt(name)).await?;
        Ok(found.map(|object| object.data.unwrap_or_default()))
    }

    fn is_good(&self) {
        self.metrics.good();
        self.board.connected(self.watch);
    }
}

impl End {
    fn of(error: &kube::Error) -> Self {
        match error {
            // Among them 410 Gone, and versions that the server has not reached: after its store was
            // restored from a copy it may never.
            kube::Error::Api(status) => Self::Refused(status.to_string()),
            error => Self::Lost(told(error)),
        }
    }
}

/// The answer, if there is one in time.
async fn answered<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T, End> {
    match timeout(ANSWER_WITHIN, question).await {
        Ok(answer) => answer.map_err(|error| End::of(&error)),
        Err(_) => Err(End::Lost("the API server does not answer".to_owned())),
    }
}

fn backoff() -> ExponentialBackoff {
    let (first, longest) = BACKOFF;
    let delays = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
    delays.without_max_times().with_jitter().build()
}

fn seconds() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WATCH_SECONDS + now.map_or(0, |now| now.subsec_nanos() % SPREAD_SECONDS)
}
