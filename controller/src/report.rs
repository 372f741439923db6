//! Pure: what there is to say and to do beside the mappings, after a pass.
//!
//! Everything is compared with what the objects say already, so that nothing is written twice, also
//! not by a controller that has just started.

pub mod mapper;
pub mod notes;
pub mod status;
mod writer;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;
use shared::crd::vip::FINALIZER;

pub use self::notes::{Note, Tone};
pub use self::writer::Writer;
use crate::daemon_sets::{DaemonSet, daemon_sets};
use crate::metrics::Kind;
use crate::model::{ObjectKey, Resolved};
use crate::world::{SeenDaemonSet, World};

/// Something to be written in its own time.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub target: Target,
    pub action: Action,
}

/// What a task is about; of two tasks with one target the later one counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Finalizers(ObjectKey),
    DaemonSet(&'static str),
    Status(Kind, ObjectKey),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The Vip has these finalizers from now on; only if it still has that version.
    Finalizers { version: Option<String>, finalizers: Vec<String> },
    /// The `DaemonSet` is to be like that.
    Apply(DaemonSet),
    /// The object has that status from now on, and people are told of what is new in it.
    Status {
        /// The version that it is compared with.
        version: Option<String>,
        reference: ObjectReference,
        status: Value,
        notes: Vec<Note>,
    },
}

/// Which `DaemonSets` are known to be as they should, by name: uid, generation and digest.
pub type Confirmed = BTreeMap<String, (String, i64, String)>;

/// All there is to do.
pub fn report(
    world: &World,
    resolved: &Resolved,
    confirmed: &Confirmed,
    now: Timestamp,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (key, verdict) in &resolved.vips {
        let Some(vip) = world.vips().get(key) else { continue };
        tasks.extend(finalizers(key, vip, !verdict.used_by.is_empty()));
        let before = vip.status.clone().unwrap_or_default();
        let after = status::of_vip(vip, verdict, now);
        let notes = notes::of_vip(vip, &before, &after, verdict);
        tasks.extend(status_task(Kind::Vip, key, &**vip, before, after, notes));
    }
    for (key, verdict) in &resolved.mappers {
        let Some(object) = world.mappers().get(key) else { continue };
        let sets = if verdict.counts && object.metadata.deletion_timestamp.is_none() {
            let sets = daemon_sets(object, world.namespace());
            let usable = sets.iter().filter_map(|set| set.as_ref().ok());
            tasks.extend(usable.filter_map(|set| applied(set, world, confirmed)));
            Some(sets)
        } else {
            None
        };
        let before = object.status.clone().unwrap_or_default();
        let after = mapper::status(object, verdict, sets.as_deref(), world, now);
        let notes = notes::of_conditions(&before.conditions, &after.conditions);
        tasks.extend(status_task(Kind::EgressMapper, key, &**object, before, after, notes));
    }
    for (key, verdict) in &resolved.egresses {
        let Some(egress) = world.egresses().get(key) else { continue };
        let before = egress.status.clone().unwrap_or_default();
        let after = status::of_egress(egress, verdict, now);
        let notes = notes::of_conditions(&before.conditions, &after.conditions);
        tasks.extend(status_task(Kind::Egress, key, &**egress, before, after, notes));
    }
    tasks
}

fn status_task<K, S>(
    kind: Kind,
    key: &ObjectKey,
    object: &K,
    before: S,
    after: S,
    notes: Vec<Note>,
) -> Option<Task>
where
    K: Resource<DynamicType = ()>,
    S: status::Status + PartialEq + Serialize,
{
    if status::ours(before) == after {
        return None;
    }
    let status = serde_json::to_value(after).ok()?;
    let action = Action::Status {
        version: object.resource_version(),
        reference: object.object_ref(&()),
        status,
        notes,
    };
    Some(Task { target: Target::Status(kind, key.clone()), action })
}

/// The finalizer is there while Egresses use the Vip; others' finalizers stay.
fn finalizers(key: &ObjectKey, vip: &shared::crd::Vip, in_use: bool) -> Option<Task> {
    let present = vip.finalizers();
    let has = present.iter().any(|name| name == FINALIZER);
    // None can be added to what is being deleted.
    if has == in_use || (in_use && vip.metadata.deletion_timestamp.is_some()) {
        return None;
    }
    let others = present.iter().filter(|name| *name != FINALIZER).cloned();
    let finalizers = others.chain(in_use.then(|| FINALIZER.to_owned())).collect();
    let action = Action::Finalizers { version: vip.resource_version(), finalizers };
    Some(Task { target: Target::Finalizers(key.clone()), action })
}

/// The `DaemonSet` is applied unless it is known to be like that, or just being deleted.
fn applied(set: &DaemonSet, world: &World, confirmed: &Confirmed) -> Option<Task> {
    let right = |seen: &SeenDaemonSet| {
        confirmed.get(set.name).is_some_and(|(uid, generation, digest)| {
            (uid, generation, Some(digest)) == (&seen.uid, &seen.generation, seen.digest.as_ref())
                && *digest == set.digest
        })
    };
    let seen = world.daemon_sets.get(set.name);
    if seen.is_some_and(|seen| seen.terminating || right(seen)) {
        return None;
    }
    Some(Task { target: Target::DaemonSet(set.name), action: Action::Apply(set.clone()) })
}

#[cfg(test)]
mod tests;
