//! What is known and wanted, and what follows from both. No input or output.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant as Clock};

use shared::mappings::Change;
use shared::{RouteId, Vip};
use tokio::time::Instant;

use super::config::{Instance, Objects, Settings, Wanted};
use super::earned::Earned;
use super::hearing::{Advert, Hearing};
use super::readiness::Readiness;
use super::render::{file_of, render};
use crate::node_facts::NodeFacts;

/// A VIP that is no longer wanted stays with its holder for so long, until the other nodes have heard of it: else one of
/// them would take it for a moment.
const LETS_GO_LAST: Duration = Duration::from_secs(3);
/// Holding counts only when keepalived has had a VIP for so long: nodes do not start at the same moment, and the first
/// to start shall not keep what is meant for others.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// A VIP that came while no other node was heard counts as held after that time: no network is silent for so long when
/// a cable was plugged in.
const HEARS_WITHIN: Duration = Duration::from_mins(1);

/// All of it.
#[derive(Debug, Default)]
pub(super) struct State {
    objects: Objects,
    facts: NodeFacts,
    instances: BTreeMap<Vip, Instance>,
    peers: Option<BTreeSet<IpAddr>>,
    /// VIPs that are no longer wanted, and until when they stay.
    leaving: BTreeMap<Vip, Instant>,
    /// From when on holding counts.
    settles_at: BTreeMap<Vip, Instant>,
    /// VIPs that keepalived may have put on this node.
    ours: BTreeSet<Vip>,
    held: BTreeSet<Vip>,
    hearing: Hearing,
    earned: Earned,
    /// VIPs that are here and did not come rightly: nothing was heard of others since.
    deaf_for: BTreeSet<Vip>,
    /// Of the agent; nothing was heard of it yet otherwise.
    readiness: Option<Readiness>,
    faults: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) others: Vec<String>,
    pub(super) conflicts: Vec<(Vip, String)>,
}

impl State {
    /// A keepalived before may have put these VIPs on this node, and have had them for long.
    pub(super) fn new(ours: BTreeSet<Vip>, advert_interval: Duration) -> Self {
        let now = Instant::now();
        let settles_at = ours.iter().map(|vip| (*vip, now)).collect();
        Self { settles_at, ours, earned: Earned::new(advert_interval), ..Self::default() }
    }

    /// Until the agent is heard of, it is not ready.
    pub(super) fn assume_no_agent(&mut self) {
        self.readiness.get_or_insert(Readiness::unheard(Instant::now()));
    }

    pub(super) fn hear_agent(&mut self, is_ready: bool) {
        let now = Instant::now();
        self.readiness.get_or_insert(Readiness::unheard(now)).hear(is_ready, now);
    }

    pub(super) fn learn(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.objects.apply(change);
        }
    }

    pub(super) fn look(&mut self, facts: NodeFacts) {
        self.facts = facts;
        let held = self.facts.held(self.ours.iter().copied());
        let before = std::mem::replace(&mut self.held, held);
        self.ours.retain(|vip| self.instances.contains_key(vip) || self.held.contains(vip));
        for vip in before.difference(&self.held) {
            self.earned.left(*vip, Clock::now());
            self.deaf_for.remove(vip);
        }
        for vip in self.held.difference(&before) {
            if !self.earned.comes_rightly(*vip, Clock::now()) {
                self.deaf_for.insert(*vip);
                self.settles_at.insert(*vip, Instant::now() + HEARS_WITHIN);
            }
        }
    }

    pub(super) fn route_id(&self, vip: Vip) -> Option<RouteId> {
        self.instances.get(&vip).map(|instance| instance.route_id)
    }

    /// VIPs of ours that are on this node.
    pub(super) fn held(&self) -> &BTreeSet<Vip> {
        &self.held
    }

    /// Those on this node, and the indices of their devices.
    pub(super) fn places_of(&self, vips: &BTreeSet<Vip>) -> Vec<(Vip, u32)> {
        let of = |vip: &Vip| self.facts.holding(*vip).map(|device| (*vip, device.index));
        vips.iter().filter_map(of).collect()
    }

    /// keepalived starts: nothing is held, by its reckoning.
    pub(super) fn begin_anew(&mut self) {
        let settled = Instant::now() + SETTLES_WITHIN;
        self.deaf_for.clear();
        self.settles_at = self.instances.keys().map(|vip| (*vip, settled)).collect();
    }

    /// Decides which VIPs keepalived is to have.
    pub(super) fn decide(&mut self, settings: &Settings) {
        let now = Instant::now();
        let Wanted { instances, peers, faults } =
            self.objects.wanted(&self.facts, settings, &self.instances);
        self.faults = faults;
        self.peers = peers;
        let before = std::mem::replace(&mut self.instances, instances);
        let mut leaving = BTreeMap::new();
        for (vip, instance) in before {
            if self.instances.contains_key(&vip) || !self.held.contains(&vip) {
                continue;
            }
            let until = self.leaving.get(&vip).copied().unwrap_or(now + LETS_GO_LAST);
            let same_id = |(other, of): (&Vip, &Instance)| {
                other.is_ipv4() == vip.is_ipv4() && of.route_id == instance.route_id
            };
            if now < until && !self.instances.iter().any(same_id) {
                self.instances.insert(vip, instance);
                leaving.insert(vip, until);
            }
        }
        self.leaving = leaving;
        self.ours.extend(self.instances.keys());
        let Self { instances, settles_at, earned, .. } = self;
        settles_at.retain(|vip, _| instances.contains_key(vip));
        earned.keep_only(|vip| instances.contains_key(vip));
        for vip in instances.keys() {
            settles_at.entry(*vip).or_insert(now + SETTLES_WITHIN);
        }
        self.held = self.facts.held(self.ours.iter().copied());
        self.hearing.expect(&self.instances);
    }

    /// When something changes without any news.
    pub(super) fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let settling = self.held.iter().filter_map(|vip| self.settles_at.get(vip));
        let all = settling.chain(self.leaving.values()).copied();
        all.chain(self.readiness.map(Readiness::due)).filter(|at| *at > now).min()
    }

    /// What this node adds to the priority of each VIP; nothing is known while nothing was heard of the agent.
    pub(super) fn adds(&self) -> Vec<(Vip, u8)> {
        let (now, Some(readiness)) = (Instant::now(), self.readiness) else {
            return Vec::new();
        };
        let of = |(vip, instance): (&Vip, &Instance)| {
            let settled = self.settles_at.get(vip).is_some_and(|at| *at <= now);
            let is_held = self.held.contains(vip);
            (*vip, instance.place.adds(settled && is_held, readiness.counts(is_held, now)))
        };
        self.instances.iter().map(of).collect()
    }

    /// Whether the file is one of these VIPs'.
    pub(super) fn names(&self, file: &str) -> bool {
        self.instances.keys().any(|vip| file_of(*vip) == file)
    }

    /// The indices of the interfaces that VIPs are to be on.
    pub(super) fn interfaces(&self) -> Vec<u32> {
        let links = self.facts.links.values();
        let names: BTreeSet<&str> =
            self.instances.values().map(|instance| instance.interface.as_str()).collect();
        let wanted = links.filter(|link| names.contains(link.device.name.as_str()));
        wanted.map(|link| link.device.index).collect()
    }

    /// keepalived's configuration.
    pub(super) fn render(&self, settings: &Settings, tracked: &Path) -> Option<String> {
        render(&self.instances, self.peers.as_ref(), &self.facts, settings, tracked)
    }

    /// The VIPs on this node that another one serves as well.
    pub(super) fn hear(&mut self, adverts: &[Advert], now: Clock) -> BTreeSet<Vip> {
        let Self { hearing, facts, earned, held, .. } = self;
        let own =
            |advert: &&Advert| facts.addresses.iter().any(|address| address.addr == advert.from);
        let foreign = adverts.iter().filter(|advert| !own(advert));
        let served: BTreeSet<Vip> =
            foreign.filter_map(|advert| hearing.hear(advert, now)).collect();
        for vip in &served {
            earned.heard(*vip, now);
        }
        let rivals = served.iter().filter(|vip| held.contains(vip)).copied().collect();
        if !served.is_empty() {
            // It does hear: what nobody else claims by then is its own.
            let settled = Instant::now() + SETTLES_WITHIN;
            let heard = std::mem::take(&mut self.deaf_for);
            self.settles_at.extend(heard.into_iter().map(|vip| (vip, settled)));
        }
        rivals
    }

    pub(super) fn faults(&mut self, now: Clock) -> Faults {
        Faults { others: self.faults.clone(), conflicts: self.hearing.conflicts(now) }
    }

    /// How many VIPs this node may hold, and how many it does.
    pub(super) fn counts(&self) -> (i64, i64) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        (number(self.instances.len()), number(self.held.len()))
    }
}
