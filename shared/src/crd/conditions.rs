//! How conditions of a status change: the time only with the status, those of others not at all.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// What a condition is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The condition's type.
    pub condition: &'a str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in one word.
    pub reason: &'a str,
    /// Why, for people.
    pub message: &'a str,
}

/// Makes the condition say that, at that generation of the spec.
///
/// `lastTransitionTime` becomes `now` only when the status changes. Conditions of other types stay
/// as they are and where they are.
pub fn state(
    conditions: &mut Vec<Condition>,
    statement: &Statement<'_>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if statement.holds { "True" } else { "False" };
    let place = conditions.iter().position(|is| is.type_ == statement.condition);
    let since = place
        .and_then(|place| conditions.get(place))
        .filter(|is| is.status == status)
        .map_or_else(|| Time(now), |is| is.last_transition_time.clone());
    let condition = Condition {
        type_: statement.condition.to_owned(),
        status: status.to_owned(),
        reason: statement.reason.to_owned(),
        message: statement.message.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
    };
    match place.and_then(|place| conditions.get_mut(place)) {
        Some(is) => *is = condition,
        None => conditions.push(condition),
    }
}
