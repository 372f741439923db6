//! Pure: from verdicts to the status of our resources.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use shared::crd::conditions::{Statement, state};
use shared::crd::{self, EgressMapperStatus, EgressStatus, VipStatus, egress, egress_mapper, vip};

use crate::model::{EgressVerdict, Finding, Reason, VipVerdict};

/// A status, of which some conditions may be others'.
pub trait Status {
    /// The conditions that this program writes.
    const OURS: &'static [&'static str];

    fn conditions_mut(&mut self) -> &mut Vec<Condition>;
}

macro_rules! status {
    ($type:ty, $ours:expr) => {
        impl Status for $type {
            const OURS: &'static [&'static str] = $ours;

            fn conditions_mut(&mut self) -> &mut Vec<Condition> {
                &mut self.conditions
            }
        }
    };
}

status!(
    VipStatus,
    &[
        vip::condition::ACCEPTED,
        vip::condition::HELD,
        vip::condition::IN_USE,
        vip::condition::PLACED,
        vip::condition::UNIQUE,
        vip::condition::DIRECT_PATH,
    ]
);
status!(EgressStatus, &[egress::condition::READY]);
status!(EgressMapperStatus, &[egress_mapper::condition::ACCEPTED, egress_mapper::condition::READY]);

/// What of a status is ours: without the conditions of others, in a fixed order.
pub fn ours<S: Status>(mut status: S) -> S {
    let conditions = status.conditions_mut();
    conditions.retain(|condition| S::OURS.contains(&condition.type_.as_str()));
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    status
}

/// The status of a Vip.
pub fn of_vip(object: &crd::Vip, verdict: &VipVerdict, now: Timestamp) -> VipStatus {
    let VipVerdict {
        accepted,
        held,
        in_use,
        placed,
        unique,
        route_id,
        holder,
        used_by,
        pods,
        path,
    } = verdict;
    let generation = object.metadata.generation;
    let mut conditions = present(object.status.as_ref().map(|status| &status.conditions));
    say(&mut conditions, accepted, generation, now);
    say(&mut conditions, held, generation, now);
    say(&mut conditions, in_use, generation, now);
    say(&mut conditions, placed, generation, now);
    say(&mut conditions, unique, generation, now);
    match path.as_ref().and_then(|path| path.direct.as_ref()) {
        Some(direct) => say(&mut conditions, direct, generation, now),
        None => conditions.retain(|is| is.type_ != vip::condition::DIRECT_PATH),
    }
    ours(VipStatus {
        observed_generation: generation,
        routeid: route_id.map(|id| i64::from(id.number())),
        holder: holder.clone(),
        egresses: Some(count(used_by.len())),
        pods: Some(count(*pods)),
        path: path.as_ref().map(|path| path.taken),
        blocks: path.as_ref().and_then(|path| path.blocks),
        conditions,
    })
}

/// The status of an Egress.
pub fn of_egress(object: &crd::Egress, verdict: &EgressVerdict, now: Timestamp) -> EgressStatus {
    let EgressVerdict { ready, pods, mapped, left_out } = verdict;
    let generation = object.metadata.generation;
    let mut conditions = present(object.status.as_ref().map(|status| &status.conditions));
    say(&mut conditions, ready, generation, now);
    ours(EgressStatus {
        observed_generation: generation,
        pods: Some(count(*pods)),
        mapped: Some(count(*mapped)),
        left_out: Some(count(*left_out)),
        conditions,
    })
}

/// Conditions as they are, to be changed.
pub(super) fn present(conditions: Option<&Vec<Condition>>) -> Vec<Condition> {
    conditions.cloned().unwrap_or_default()
}

/// Makes one of the conditions say what was found.
pub(super) fn say<R: Reason>(
    conditions: &mut Vec<Condition>,
    finding: &Finding<R>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let statement = Statement {
        condition: R::CONDITION,
        holds: finding.holds(),
        reason: finding.reason.as_str(),
        message: &finding.message,
    };
    state(conditions, &statement, generation, now);
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
