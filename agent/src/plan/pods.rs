//! What has to change in the maps of pods.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;

use shared::{PodIp, Vip};

use crate::pod_tables::PodChanges;
use crate::unsure::{Unsure, Vouched};

/// The changes that make the map of VIPs and the set of guarded pods agree with `desired`: found by
/// a walk along all sides, or by looking at the pods that were `touched`.
pub fn pod_changes(
    desired: &BTreeMap<PodIp, Option<Vip>>,
    vips: &BTreeMap<PodIp, Option<Vip>>,
    guarded: &BTreeSet<PodIp>,
    touched: Option<&BTreeSet<PodIp>>,
) -> PodChanges {
    let mut changes = PodChanges::default();
    if let Some(touched) = touched {
        for pod in touched {
            changes.map_as(*pod, desired.get(pod), vips.get(pod));
            changes.guard_as(*pod, desired.contains_key(pod), guarded.contains(pod));
        }
        return changes;
    }
    for (pod, wanted, seen) in joined(desired.iter(), vips.iter()) {
        changes.map_as(pod, wanted, seen);
    }
    for (pod, wanted, seen) in joined(desired.iter(), guarded.iter().map(|pod| (pod, &()))) {
        changes.guard_as(pod, wanted.is_some(), seen.is_some());
    }
    changes
}

impl PodChanges {
    /// Adds what makes the known addresses and what becomes of others agree with `desired`. They are
    /// those of one node's pods, so all are looked at.
    pub(super) fn vouch(
        &mut self,
        desired: &Vouched,
        known: &BTreeSet<PodIp>,
        unsure: &[Unsure; 2],
    ) {
        self.know.extend(desired.known.difference(known));
        self.disown.extend(known.difference(&desired.known));
        self.unsure = (*unsure != [desired.unsure; 2]).then_some(desired.unsure);
    }

    fn map_as(&mut self, pod: PodIp, wanted: Option<&Option<Vip>>, seen: Option<&Option<Vip>>) {
        if wanted == seen {
            return;
        }
        if seen.is_some() {
            self.unmap.push(pod);
        }
        if let Some(vip) = wanted {
            self.map.push((pod, *vip));
        }
    }

    fn guard_as(&mut self, pod: PodIp, wanted: bool, seen: bool) {
        match (wanted, seen) {
            (true, false) => self.guard.push(pod),
            (false, true) => self.unguard.push(pod),
            _ => {}
        }
    }
}

/// Every pod of either side, ascending, with what each side says of it.
fn joined<'a, A: 'a, B: 'a>(
    left: impl Iterator<Item = (&'a PodIp, &'a A)>,
    right: impl Iterator<Item = (&'a PodIp, &'a B)>,
) -> impl Iterator<Item = (PodIp, Option<&'a A>, Option<&'a B>)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || next_of(&mut left, &mut right))
}

fn next_of<'a, A, B>(
    left: &mut Peekable<impl Iterator<Item = (&'a PodIp, &'a A)>>,
    right: &mut Peekable<impl Iterator<Item = (&'a PodIp, &'a B)>>,
) -> Option<(PodIp, Option<&'a A>, Option<&'a B>)> {
    let order = match (left.peek(), right.peek()) {
        (Some((l, _)), Some((r, _))) => l.cmp(r),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => return None,
    };
    let from_left = if order.is_le() { left.next() } else { None };
    let from_right = if order.is_ge() { right.next() } else { None };
    let pod = from_left.map(|(pod, _)| *pod).or(from_right.map(|(pod, _)| *pod))?;
    Some((pod, from_left.map(|(_, value)| value), from_right.map(|(_, value)| value)))
}
