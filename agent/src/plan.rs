//! From what the kernel holds to what it should hold: the steps, in the order that cannot leak.
//!
//! Pure. Order is the guarantee, for there is no transaction across netlink families:
//!
//! 1. reverse path filters, routes, then the rules that lead to them: a marked packet always has a
//!    way, or the backstop;
//! 2. the tables, in one transaction, then the pods of both, in one more: a packet is marked only
//!    when 1 is done. Where both tables must be made anew, one is complete before the other is
//!    touched: the guard, unless that is the only one that works as it is;
//!    What comes for ports of this node is let through before that, and what comes for those of
//!    others passed on after 3: no port is another node's while connections here have it;
//! 3. neighbours that are taken for holders, and connections that are bound to what is no longer so;
//! 4. rules, then routes, that nothing is marked for any more.
//!
//! Shortcuts past rules go first and come last, when nothing is marked by a mask of before: what
//! they go past is then for nobody they are for.
//!
//! Each step leaves every mapped pod with its old VIP, its new VIP, or nothing at all. If a step
//! fails, what takes away has to wait: see [`Step::waits_for`].

mod ingress;
mod pods;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::{Block, PodIp, RouteId, Vip};

pub use self::ingress::IngressChange;
pub use self::pods::pod_changes;
pub use self::tables::{TableChange, TablesChange};
use crate::desired::{Desired, Place};
use crate::kernel_state::{LoadedDigests, Observed, SeenTable};
use crate::pod_tables::PodChanges;
use crate::routing::{Device, Family, MarkMask, ObjectKind, PolicyRule, Route, RouteKind, Stray};
use crate::ruleset::{kept_echoes_set, kept_set};

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Accept packets whose source has its route elsewhere (`rp_filter` 2).
    Loosen(String),
    /// Add a route; one to the same holder over another interface is replaced.
    AddRoute(Route),
    /// Add a policy rule.
    AddRule(PolicyRule),
    /// Change what the tables contain, but for pods.
    ChangeTables(TablesChange),
    /// Change what is passed on to other nodes.
    ChangeIngress(IngressChange),
    /// Change which pods are mapped, and to what.
    ChangePods(PodChanges),
    /// End what these pods have running without sessions (UDP, ICMP): the next packet is decided
    /// anew. TCP connections end as they began.
    ForgetPods(BTreeSet<PodIp>),
    /// As [`ForgetPods`](Self::ForgetPods), but only what no decision was made about.
    ForgetUndecided {
        /// Whose.
        pods: BTreeSet<PodIp>,
        /// TCP too: it began while no table of ours was there, and would keep the node's address.
        sessions: bool,
    },
    /// Forget which machine holds a VIP that has just left this node. While it was here the kernel
    /// took no news of its next holder, and what it knew before is the one before us.
    ForgetHolder {
        /// The VIP.
        vip: Vip,
        /// Over which its holder is reached.
        device: Device,
    },
    /// End the tracking of connections that carry one of these marks: they were decided for where
    /// a VIP no longer is. The next packet is decided anew; TCP goes on.
    Rebind {
        /// The marks of decisions that hold no longer.
        wrong: BTreeSet<u32>,
        /// For marks of the direct path, the blocks whose ports their connections may have: those
        /// with others are forgotten.
        blocks: BTreeMap<u32, BTreeSet<Block>>,
        /// What all connections are bound to afterwards.
        places: BTreeMap<RouteId, Place>,
    },
    /// Leave what comes for connections to this node that it made as the holder of these VIPs, by their
    /// marks, with ports that may be in blocks of other nodes.
    Keep(BTreeMap<u32, Vip>),
    /// Remove a policy rule.
    DeleteRule(PolicyRule),
    /// Remove a route.
    DeleteRoute(Route),
    /// Remove a rule or route that carries our number in a form we never make.
    DeleteStray(Stray),
}

impl Step {
    /// Whether the step has to be left to the next plan when `failed`, one before it, was not
    /// done: what it takes away may be all that there is. `observed` is what the plan was made for.
    pub fn waits_for(&self, failed: &Self, observed: &Observed) -> bool {
        match self {
            // Without a shortcut more rules are asked, and the same one answers.
            Self::DeleteRule(rule) if rule.is_shortcut() => false,
            // What still marks packets may do so by another mask.
            Self::AddRule(rule) if rule.is_shortcut() => matches!(failed, Self::ChangeTables(_)),
            Self::DeleteRule(_) | Self::DeleteRoute(_) | Self::DeleteStray(_) => true,
            // A table that works is emptied only while the other is complete.
            Self::ChangeTables(change) => {
                change.empties_one_of(observed)
                    && matches!(failed, Self::ChangeTables(_) | Self::ChangePods(_))
            }
            // Until then the ports may be those of connections that this node translates.
            Self::ChangeIngress(_) => {
                matches!(failed, Self::ChangeTables(_) | Self::Rebind { .. } | Self::Keep(_))
            }
            Self::Loosen(_)
            | Self::AddRoute(_)
            | Self::AddRule(_)
            | Self::ChangePods(_)
            | Self::ForgetPods(_)
            | Self::ForgetUndecided { .. }
            | Self::ForgetHolder { .. }
            | Self::Keep(_)
            | Self::Rebind { .. } => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loosen(interface) => write!(f, "loosen rp_filter of {interface}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::ChangeTables(change) => change.fmt(f),
            Self::ChangeIngress(change) => change.fmt(f),
            Self::ChangePods(change) => change.fmt(f),
            Self::ForgetPods(pods) => {
                write!(f, "forget sessionless connections of {} pods", pods.len())
            }
            Self::ForgetHolder { vip, device } => {
                write!(f, "forget which machine on {device} holds {vip}")
            }
            Self::ForgetUndecided { pods, sessions } => {
                let which = if *sessions { "all" } else { "sessionless" };
                write!(f, "forget {which} connections of {} pods without a decision", pods.len())
            }
            Self::Rebind { wrong: marks, blocks, places: _ } => {
                const SHOWN: usize = 4;
                if marks.len() > SHOWN {
                    write!(f, "forget connections with any of {} marks", marks.len())?;
                } else if !marks.is_empty() {
                    f.write_str("forget connections marked")?;
                    marks.iter().try_for_each(|mark| write!(f, " {mark:#x}"))?;
                }
                match (marks.is_empty(), blocks.is_empty()) {
                    (true, true) => f.write_str("keep connections as they are"),
                    (true, false) => f.write_str("forget connections with blocks that are gone"),
                    (false, false) => f.write_str(", and those with blocks that are gone"),
                    (false, true) => Ok(()),
                }
            }
            Self::Keep(vips) => {
                f.write_str("keep connections that were made here as the holder of")?;
                vips.values().try_for_each(|vip| write!(f, " {vip}"))
            }
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::DeleteStray(stray) => write!(f, "delete {stray}"),
        }
    }
}

/// What to do, in order. Nothing to do is an empty list.
///
/// `touched` names the only pods that may differ, if that is known: with 100 000 pods it saves a
/// walk over all of them for every one that comes or goes.
pub fn plan(
    desired: &Desired<'_>,
    observed: &Observed,
    touched: Option<&BTreeSet<PodIp>>,
    loaded: &[LoadedDigests; 3],
    marks: MarkMask,
) -> Vec<Step> {
    let Desired { rules, routes, later, ruleset: _, pods, vouched: _, loose, places } = desired;
    let routing = &observed.routing;

    // Whoever has put a rule between ours wants it asked, also for packets that are not ours.
    let hides = |rule: &PolicyRule| {
        routing.foreign.iter().any(|other| {
            (other.kind, other.family) == (ObjectKind::Rule, rule.family)
                && other.overrides_ours
                && rule.skips(other.place)
        })
    };
    let rules: BTreeSet<_> = rules.iter().filter(|rule| !hides(rule)).copied().collect();
    let (new_shortcuts, new_rules): (Vec<_>, Vec<_>) =
        rules.difference(&routing.rules).copied().partition(PolicyRule::is_shortcut);
    let (old_shortcuts, old_rules): (Vec<_>, Vec<_>) =
        routing.rules.difference(&rules).copied().partition(PolicyRule::is_shortcut);

    let mut steps: Vec<Step> = Vec::new();
    steps.extend(old_shortcuts.into_iter().map(Step::DeleteRule));
    steps.extend(loose.intersection(&observed.strict).cloned().map(Step::Loosen));
    // The backstop first: a table that is looked up is never empty.
    let (backstops, ways): (Vec<_>, Vec<_>) =
        routes.difference(&routing.routes).cloned().partition(Route::is_unreachable);
    steps.extend(backstops.into_iter().chain(ways).map(Step::AddRoute));
    steps.extend(new_rules.into_iter().map(Step::AddRule));

    let [_, _, loaded_ingress] = loaded;
    let [first, then] = ingress::changes(
        desired.ruleset.ingress.as_ref(),
        observed.ingress.as_ref(),
        loaded_ingress,
    );
    let anew = matches!(first, Some(IngressChange::Make(TableChange::Replace(_))));
    steps.extend(first.map(Step::ChangeIngress));

    // Without either table connections were made as if nothing were mapped.
    let sessions = observed.main.is_none() && observed.guard.is_none() && observed.places.is_some();
    let (mut table_steps, touched) = tables::steps(desired, observed, touched, loaded);
    let tables::Touched { changed, mut guarded, guard_first } = touched;
    if let Some(complete) = guard_first.filter(|_| observed.places.is_some()) {
        // The guard lets pass what began before it. What did while there was no table either is
        // not let wait for the other one: that is as long again.
        let step = Step::ForgetUndecided { pods: guarded.clone(), sessions };
        table_steps.insert(complete, step);
    }
    steps.extend(table_steps);
    if observed.places.is_none() {
        // An agent before this one may have died between mapping a pod and this step.
        guarded.extend(pods.keys());
    }
    let undecided: BTreeSet<PodIp> = if sessions {
        pods.keys().copied().collect()
    } else {
        // Also those below: what was on its way out when their decisions were forgotten.
        guarded.union(&changed).filter(|pod| pods.contains_key(pod)).copied().collect()
    };
    if !changed.is_empty() {
        steps.push(Step::ForgetPods(changed));
    }
    if !undecided.is_empty() {
        steps.push(Step::ForgetUndecided { pods: undecided, sessions });
    }
    steps.extend(left(desired, observed.places.as_ref()));
    if observed.places.as_ref() != Some(places) {
        let (wrong, blocks) = wrong_marks(places, observed.places.as_ref(), marks);
        steps.push(Step::Rebind { wrong, blocks, places: places.clone() });
    }
    if desired.ruleset.ingress.is_some() && (anew || may_pass_on_ours(desired, observed)) {
        let shared = places.iter().filter(|(_, place)| place.shared);
        steps.push(Step::Keep(shared.map(|(id, place)| (marks.here(*id), place.vip)).collect()));
    }
    steps.extend(then.map(Step::ChangeIngress));

    steps.extend(old_rules.into_iter().map(Step::DeleteRule));
    let replaced = |route: &Route| {
        // Adding the way to a holder has replaced the one over another interface.
        matches!(route.kind, RouteKind::ViaHolder { .. })
            && routes.iter().any(|new| {
                new.family == route.family && new.table == route.table && !new.is_unreachable()
            })
    };
    let unwanted_routes = routing
        .routes
        .difference(routes)
        .filter(|route| !later.contains(route) && !replaced(route))
        .cloned();
    let (backstops, ways): (Vec<_>, Vec<_>) = unwanted_routes.partition(Route::is_unreachable);
    steps.extend(ways.into_iter().chain(backstops).map(Step::DeleteRoute));
    steps.extend(routing.strays.iter().cloned().map(Step::DeleteStray));
    steps.extend(new_shortcuts.into_iter().map(Step::AddRule));
    steps
}

/// Whether something may be passed on to other nodes from now on that is for connections which this
/// node has made as a VIP's holder.
fn may_pass_on_ours(desired: &Desired<'_>, observed: &Observed) -> bool {
    let knows = |seen: &SeenTable| {
        let mut sets = Family::ALL.into_iter().flat_map(|of| [kept_set(of), kept_echoes_set(of)]);
        sets.all(|set| seen.declared.contains_key(set))
    };
    let newly_shared = desired.places.iter().any(|(id, now)| {
        let before = observed.places.as_ref().and_then(|known| known.get(id));
        now.shared && before.is_none_or(|old| !old.shared || old.vip != now.vip)
    });
    newly_shared || !observed.ingress.as_ref().is_some_and(knows)
}

/// What is to be forgotten of VIPs that were here and are not any more.
fn left(desired: &Desired<'_>, known: Option<&BTreeMap<RouteId, Place>>) -> Vec<Step> {
    let has_left = |vip: Vip| {
        desired.places.iter().filter(|(_, now)| now.vip == vip && !now.here).any(|(id, _)| {
            let before = known.and_then(|known| known.get(id));
            before.is_some_and(|before| before.vip == vip && before.here)
        })
    };
    desired
        .routes
        .iter()
        .filter_map(|route| match &route.kind {
            RouteKind::ViaHolder { vip, device } if has_left(*vip) => {
                Some(Step::ForgetHolder { vip: *vip, device: device.clone() })
            }
            _ => None,
        })
        .collect()
}

/// The marks of decisions that hold no longer; and those of the direct path that hold for some blocks
/// only, with these. Without knowledge of what connections are bound to, that is every mark of ours
/// but the right ones.
fn wrong_marks(
    places: &BTreeMap<RouteId, Place>,
    known: Option<&BTreeMap<RouteId, Place>>,
    marks: MarkMask,
) -> (BTreeSet<u32>, BTreeMap<u32, BTreeSet<Block>>) {
    let mut wrong = BTreeSet::new();
    let mut blocks = BTreeMap::new();
    for id in RouteId::all() {
        let now = places.get(&id);
        let before = known.map(|known| known.get(&id));
        if before == Some(now) {
            continue;
        }
        let same_vip = match before {
            None => true, // as far as we know
            Some(before) => before.map(|place| place.vip) == now.map(|place| place.vip),
        };
        let here = |place: Option<&Place>| place.map(|place| place.here);
        if !same_vip || before.map(here) != Some(here(now)) {
            if !(same_vip && here(now) == Some(true)) {
                wrong.insert(marks.here(id));
            }
            if !(same_vip && here(now) == Some(false)) {
                wrong.insert(marks.away(id));
            }
        }
        let Some(direct) = marks.direct(id) else { continue };
        match now {
            Some(now) if same_vip && !now.blocks.is_empty() => {
                let before = before.map(|before| before.map(|place| &place.blocks));
                if before.is_none_or(|old| old.is_some_and(|old| !old.is_subset(&now.blocks))) {
                    blocks.insert(direct, now.blocks.clone());
                }
            }
            _ if before.is_none_or(|old| old.is_some_and(|place| !place.blocks.is_empty())) => {
                wrong.insert(direct);
            }
            _ => {}
        }
    }
    (wrong, blocks)
}
