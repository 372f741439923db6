//! Shell: follows the objects of the cluster, and tells what has become of them.
//!
//! Each kind is followed by a task of its own. When a connection is lost it goes on from where it
//! was; when that is too long ago, all objects are listed again, and what was known before counts
//! until the list is complete. So an API server that is away never looks as if objects were deleted.

pub mod objects;

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher as follow_objects;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

/// After how many seconds a watch is begun anew; a dead connection is noticed a little later.
const WATCH_SECONDS: u32 = 60;
/// How many objects a page of a list has: pages of pods are read into memory as text.
const PAGE: u32 = 500;
/// The shortest wait before a failed request is tried again; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait before a failed request is tried again.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What has become of objects of one kind.
#[derive(Debug)]
pub enum Change<T> {
    /// All that there are.
    Listed(Vec<T>),
    /// One is there, new or changed.
    Seen(T),
    /// One is gone.
    Gone(T),
}

/// Follows the objects of a kind until nobody listens any more.
///
/// `convert` keeps of each what matters, as soon as it is read; `None` passes over it.
pub async fn follow<K, T, N>(
    api: Api<K>,
    convert: impl Fn(K) -> Option<T>,
    wrap: impl Fn(Change<T>) -> N,
    listener: mpsc::Sender<N>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = pin!(follow_objects(api, config));
    let mut listed = Vec::new();
    let mut failures = Failures { kind: &kind, count: 0, last: String::new() };
    while let Some(event) = events.next().await {
        let change = match event {
            // Nothing was answered yet.
            Ok(Event::Init) => {
                listed = Vec::new();
                continue;
            }
            Ok(event) => {
                failures.over();
                match event {
                    Event::Init => continue,
                    Event::InitApply(object) => {
                        listed.extend(convert(object));
                        continue;
                    }
                    Event::InitDone => Some(Change::Listed(std::mem::take(&mut listed))),
                    Event::Apply(object) => convert(object).map(Change::Seen),
                    Event::Delete(object) => convert(object).map(Change::Gone),
                }
            }
            Err(error) => {
                sleep(failures.another(&error)).await;
                continue;
            }
        };
        if let Some(change) = change
            && listener.send(wrap(change)).await.is_err()
        {
            return;
        }
    }
}

/// What goes wrong with one kind; each fault is told once.
struct Failures<'a> {
    kind: &'a str,
    count: u32,
    last: String,
}

impl Failures<'_> {
    /// How long to wait now.
    fn another(&mut self, error: &watcher::Error) -> Duration {
        let text = error.to_string();
        if text != self.last {
            warn!("cannot follow {} objects, what was known of them counts: {text}", self.kind);
            self.last = text;
        }
        let wait = FIRST_RETRY * 2_u32.saturating_pow(self.count.min(10));
        self.count += 1;
        wait.min(LAST_RETRY)
    }

    fn over(&mut self) {
        if self.count > 0 {
            info!("follows {} objects again", self.kind);
            self.count = 0;
            self.last.clear();
        }
    }
}
