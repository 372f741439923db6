//! Pure: the status of an `EgressMapper`: do the programs run that it asks for?

use k8s_openapi::jiff::Timestamp;
use shared::crd::conditions::{Statement, state};
use shared::crd::egress_mapper::condition::READY;
use shared::crd::{EgressMapper, EgressMapperStatus};

use super::status::{count, ours, present, say};
use crate::daemon_sets::{DaemonSet, Unusable};
use crate::model::MapperVerdict;
use crate::world::World;

/// The status; `sets` are its `DaemonSets` if it is the one that counts.
pub fn status(
    object: &EgressMapper,
    verdict: &MapperVerdict,
    sets: Option<&[Result<DaemonSet, Unusable>]>,
    world: &World,
    now: Timestamp,
) -> EgressMapperStatus {
    let MapperVerdict { accepted, counts, gateways } = verdict;
    let generation = object.metadata.generation;
    let mut conditions = present(object.status.as_ref().map(|status| &status.conditions));
    say(&mut conditions, accepted, generation, now);
    let (holds, reason, message) = ready(sets, world);
    let statement = Statement { condition: READY, holds, reason, message: &message };
    state(&mut conditions, &statement, generation, now);
    let nodes = world.nodes().len();
    let in_sync = world
        .nodes()
        .filter(|node| world.reports().get(&node.name).is_some_and(|report| report.synced));
    ours(EgressMapperStatus {
        observed_generation: generation,
        gateways: counts.then(|| count(*gateways)),
        nodes: counts.then(|| count(nodes)),
        in_sync: counts.then(|| count(in_sync.count())),
        conditions,
    })
}

fn ready(
    sets: Option<&[Result<DaemonSet, Unusable>]>,
    world: &World,
) -> (bool, &'static str, String) {
    let Some(sets) = sets else {
        return (false, "NotAccepted", "it does not count, so it makes no DaemonSets".to_owned());
    };
    let unusable: Vec<String> =
        sets.iter().filter_map(|set| set.as_ref().err()).map(ToString::to_string).collect();
    if !unusable.is_empty() {
        return (false, "UnusableImage", unusable.join("; "));
    }
    let mut progress = Vec::new();
    let mut complete = true;
    for set in sets.iter().flatten() {
        match world.daemon_sets.get(set.name) {
            Some(seen) if seen.digest.as_ref() == Some(&set.digest) => {
                let done = seen.is_complete();
                complete &= done;
                progress.push(format!(
                    "{} is ready on {} of {} nodes{}",
                    set.name,
                    seen.ready_pods,
                    seen.desired_pods,
                    if done || seen.updated_pods >= seen.desired_pods {
                        String::new()
                    } else {
                        format!(", and up to date on {}", seen.updated_pods)
                    }
                ));
            }
            _ => {
                complete = false;
                progress.push(format!("{} is being made", set.name));
            }
        }
    }
    (complete, if complete { "Ready" } else { "Progressing" }, progress.join("; "))
}
