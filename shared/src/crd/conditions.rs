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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(holds: bool, reason: &str) -> Statement<'_> {
        Statement { condition: "Ready", holds, reason, message: "so it is" }
    }

    #[test]
    fn the_time_changes_only_with_the_status() {
        let mut conditions = Vec::new();
        let mut stated = |statement, generation, now| {
            state(&mut conditions, &statement, Some(generation), at(now));
            conditions.clone()
        };
        let first = stated(ready(false, "A"), 1, 10);
        assert_eq!((first.len(), first[0].status.as_str()), (1, "False"));
        assert_eq!(first[0].last_transition_time, Time(at(10)));
        let reworded = stated(ready(false, "B"), 2, 20);
        assert_eq!(reworded[0].last_transition_time, Time(at(10)));
        assert_eq!((reworded[0].reason.as_str(), reworded[0].observed_generation), ("B", Some(2)));
        let turned = stated(ready(true, "B"), 2, 30);
        assert_eq!(turned[0].last_transition_time, Time(at(30)));
        assert_eq!(turned[0].status, "True");
        assert_eq!(stated(ready(true, "B"), 2, 40), turned);
    }

    #[test]
    fn conditions_of_others_stay_where_they_are() {
        let mut conditions = Vec::new();
        for condition in ["example.com/Checked", "Ready", "Other"] {
            let foreign = Statement { condition, ..ready(true, "Theirs") };
            state(&mut conditions, &foreign, None, at(1));
        }
        let before = conditions.clone();
        state(&mut conditions, &ready(false, "Ours"), None, at(2));
        assert_eq!((&conditions[0], &conditions[2]), (&before[0], &before[2]));
        assert_eq!((conditions[1].reason.as_str(), conditions.len()), ("Ours", 3));
    }
}
