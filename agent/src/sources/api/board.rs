//! What was heard and not yet told: the latest content of each object, and whether everything was listed once.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use shared::config_map::{CANDIDATES, ROUTE_IDS, decode_candidates, decode_route_ids};
use shared::mappings::{Change, Content};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::{info, warn};

use super::super::Batch;
use super::watch::Watch;

type Data = BTreeMap<String, String>;

/// Followers write on it, the source reads it.
pub(super) struct Board {
    node: String,
    /// The addresses that the node had when this began: a VIP among them was held here.
    own: BTreeSet<IpAddr>,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// What is watched and was not listed yet.
    unlisted: BTreeSet<Watch>,
    /// The pods of other nodes are watched, or are to be.
    wide: bool,
    /// Somebody has to start to watch them.
    widen: bool,
    /// A first batch was told.
    told: bool,
    /// The names of the objects that a watch has found.
    found: BTreeMap<Watch, BTreeSet<String>>,
    pending: BTreeMap<String, Pending>,
    lost: BTreeMap<Watch, String>,
    lost_since: Option<Instant>,
    waiting: Option<String>,
}

#[derive(Default)]
struct Pending {
    whole: Option<Data>,
    /// It is missing now, after `whole`.
    missing: bool,
}

impl Board {
    pub(super) fn new(node: &str, own: BTreeSet<IpAddr>, watches: &[Watch]) -> Self {
        let unlisted = watches.iter().copied().collect();
        let state = State { unlisted, ..State::default() };
        Self { node: node.to_owned(), own, state: Mutex::new(state), news: Notify::new() }
    }

    /// These are all objects that the watch finds.
    pub(super) fn listed(&self, watch: Watch, mut objects: BTreeMap<String, Data>) {
        objects.retain(|name, _| watch.means(name, &self.node));
        let mut state = self.state();
        state.unlisted.remove(&watch);
        if state.is_covered(watch) {
            return;
        }
        let found: BTreeSet<String> = objects.keys().cloned().collect();
        let mut gone = state.found.insert(watch, found.clone()).unwrap_or_default();
        gone.extend(watch.name(&self.node));
        for name in gone.difference(&found) {
            state.missing(name);
        }
        for (name, data) in objects {
            self.whole(&mut state, watch, name, data);
        }
        drop(state);
        self.news.notify_waiters();
    }

    /// That object has this content now.
    pub(super) fn changed(&self, watch: Watch, name: String, data: Data) {
        let mut state = self.state();
        if watch.means(&name, &self.node) && !state.is_covered(watch) {
            state.found.entry(watch).or_default().insert(name.clone());
            self.whole(&mut state, watch, name, data);
            drop(state);
            self.news.notify_waiters();
        }
    }

    /// That object was deleted.
    pub(super) fn gone(&self, watch: Watch, name: &str) {
        let mut state = self.state();
        if watch.means(name, &self.node) && !state.is_covered(watch) {
            state.found.entry(watch).or_default().remove(name);
            state.missing(name);
            drop(state);
            self.news.notify_waiters();
        }
    }

    /// The server does not answer that watch.
    pub(super) fn lost(&self, watch: Watch, why: String) {
        let mut state = self.state();
        if state.lost.is_empty() {
            state.lost_since = Some(Instant::now());
            warn!("cannot watch {watch}: {why}; what was last read counts, and the rules stay");
        }
        state.lost.insert(watch, why);
        drop(state);
        self.news.notify_waiters();
    }

    /// The server answers that watch.
    pub(super) fn connected(&self, watch: Watch) {
        let mut state = self.state();
        if state.lost.remove(&watch).is_some() && state.lost.is_empty() {
            let since = state.lost_since.take();
            let seconds = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            info!("watches go on after {seconds:.1} s");
        }
    }

    /// Wakes up when something is written after this call.
    pub(super) fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// This node holds a VIP now.
    pub(super) fn holds(&self) {
        let mut state = self.state();
        state.widen_if(true);
        if state.widen {
            drop(state);
            self.news.notify_waiters();
        }
    }

    /// Whether somebody has to start what a node watches that may hold VIPs.
    pub(super) fn take_wider(&self) -> bool {
        std::mem::take(&mut self.state().widen)
    }

    /// The objects that the watch had found before, and does not find in this list.
    pub(super) fn not_in(&self, watch: Watch, list: &BTreeMap<String, Data>) -> Vec<String> {
        let state = self.state();
        let found = state.found.get(&watch).into_iter().flatten();
        found.filter(|name| !list.contains_key(*name)).cloned().collect()
    }

    /// What is new, if anything.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut state = self.state();
        if state.told || state.unlisted.is_empty() {
            if state.told && state.pending.is_empty() {
                return None;
            }
            state.told = true;
            let pending = std::mem::take(&mut state.pending);
            return Some(Batch { changes: changes(pending), ..Batch::default() });
        }
        let waiting = state.waiting();
        if state.waiting.as_ref() == Some(&waiting) {
            return None;
        }
        state.waiting = Some(waiting.clone());
        Some(Batch { waiting: Some(waiting), ..Batch::default() })
    }

    fn whole(&self, state: &mut State, watch: Watch, name: String, mut data: Data) {
        if watch == Watch::BlocksOfNode {
            // What others have is none of this node's business, and not all of it would be told.
            data.retain(|node, _| *node == self.node);
        }
        if name == CANDIDATES {
            let candidates = decode_candidates(&name, &data).entries;
            let named = candidates.values().flatten().any(|node| *node == self.node);
            state.widen_if(named);
        }
        if name == ROUTE_IDS {
            // Also a holder that is no candidate any more serves the pods of others until the VIP has left.
            let vips = decode_route_ids(&name, &data).entries;
            state.widen_if(vips.keys().any(|vip| self.own.contains(&vip.addr())));
        }
        state.pending.insert(name, Pending { whole: Some(data), missing: false });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn missing(&mut self, name: &str) {
        // Nobody says who may hold VIPs: this node may.
        self.widen_if(name == CANDIDATES);
        self.pending.entry(name.to_owned()).or_default().missing = true;
    }

    /// Has the pods of other nodes watched from now on; that is never taken back.
    fn widen_if(&mut self, wide: bool) {
        let mappings = self.found.contains_key(&Watch::PodsOfNode)
            || self.unlisted.contains(&Watch::PodsOfNode);
        if wide && mappings && !self.wide {
            self.wide = true;
            self.widen = true;
            // Reports are not waited for: they only ever tell a bit earlier.
            self.unlisted.extend([Watch::PodsOfOthers, Watch::BlocksOfAll]);
        }
    }

    /// Whether a wider watch has told all that this one could, and more.
    fn is_covered(&self, watch: Watch) -> bool {
        watch == Watch::BlocksOfNode && self.found.contains_key(&Watch::BlocksOfAll)
    }

    /// What is waited for, and why if the server said so.
    fn waiting(&self) -> String {
        let watches: Vec<String> = self.unlisted.iter().map(ToString::to_string).collect();
        let what = format!("waiting for the API server to list {}", watches.join(", "));
        match self.lost.first_key_value() {
            Some((_, why)) => format!("{what}: {why}"),
            None => what,
        }
    }
}

fn changes(pending: BTreeMap<String, Pending>) -> Vec<Change> {
    let mut changes = Vec::with_capacity(pending.len());
    for (object, Pending { whole, missing }) in pending {
        if let Some(data) = whole {
            changes.push(Change { object: object.clone(), content: Content::Whole(data) });
        }
        if missing {
            changes.push(Change { object, content: Content::Missing });
        }
    }
    changes
}
