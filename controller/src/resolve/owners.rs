//! What a pod belongs to, directly and through the controller of its controller.

use std::collections::HashMap;
use std::sync::Arc;

use shared::crd::Kind;

use crate::model::{Owned, Pod};

/// The middles of all chains.
pub(super) struct Owners<'a>(HashMap<&'a str, &'a Owned>);

impl<'a> Owners<'a> {
    pub(super) fn new(owned: &'a [Arc<Owned>]) -> Self {
        Self(owned.iter().map(|owned| (owned.uid.as_str(), &**owned)).collect())
    }

    /// The controllers of the pod, nearest first: at most two.
    pub(super) fn of(&self, pod: &'a Pod) -> impl Iterator<Item = (Kind, &'a str)> {
        let direct = pod.owner.as_ref();
        let further = direct.and_then(|owner| match self.0.get(owner.uid.as_str()) {
            Some(owned) => owned.owner.as_ref().map(|owner| (owner.kind, owner.name.as_str())),
            None => by_name(owner.kind, &owner.name, pod),
        });
        direct.map(|owner| (owner.kind, owner.name.as_str())).into_iter().chain(further)
    }
}

/// The controller of an object that is not known: it is gone before its pods when all are deleted
/// (pods that still send must stay mapped), or news of it are yet to come.
///
/// The name tells: `ReplicaSet`s are named by their Deployment and the pod's template hash, Jobs by
/// their `CronJob` and minutes.
fn by_name<'a>(kind: Kind, name: &'a str, pod: &Pod) -> Option<(Kind, &'a str)> {
    match kind {
        Kind::ReplicaSet => {
            let hash = pod.labels.get("pod-template-hash")?;
            let deployment = name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            Some((Kind::Deployment, deployment))
        }
        Kind::Job => {
            let (cron_job, minutes) = name.rsplit_once('-')?;
            let is_time = minutes.len() >= 8 && minutes.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then_some((Kind::CronJob, cron_job))
        }
        _ => None,
    }
}
