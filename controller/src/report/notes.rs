//! Pure: what a person should be told of, from a status before and after.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use shared::crd::{self, VipStatus, vip};

use crate::model::{DirectReason, HeldReason, PlacedReason, Reason, UniqueReason, VipVerdict};

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Normal,
    Warning,
}

/// Something that is told once, as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub tone: Tone,
    pub reason: String,
    pub message: String,
}

impl Note {
    fn of(condition: &Condition) -> Self {
        // A thing that waits for something of the user's is not wrong.
        let reason = condition.reason.as_str();
        let waits = [
            "NoMatchingPods",
            "Progressing",
            PlacedReason::Moving.as_str(),
            DirectReason::Draining.as_str(),
        ];
        let calm = (condition.status == "True" && reason != HeldReason::SeveralHolders.as_str())
            || waits.contains(&reason);
        Self {
            tone: if calm { Tone::Normal } else { Tone::Warning },
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}

/// Every condition whose reason is another one now.
pub fn of_conditions(before: &[Condition], after: &[Condition]) -> Vec<Note> {
    let news = |now: &&Condition| {
        let was = before.iter().find(|was| was.type_ == now.type_);
        was.is_none_or(|was| (&was.status, &was.reason) != (&now.status, &now.reason))
    };
    after.iter().filter(news).map(Note::of).collect()
}

/// A Vip: whether it is accepted, where it is, and what keeps it from being deleted.
pub fn of_vip(
    object: &crd::Vip,
    before: &VipStatus,
    after: &VipStatus,
    verdict: &VipVerdict,
) -> Vec<Note> {
    let accepted = |status: &VipStatus| -> Vec<Condition> {
        let all = status.conditions.iter();
        all.filter(|is| is.type_ == vip::condition::ACCEPTED).cloned().collect()
    };
    let mut notes = of_conditions(&accepted(before), &accepted(after));
    notes.extend(of_conditions(&before.conditions, &after.conditions).into_iter().filter(|note| {
        let reasons = [
            HeldReason::SeveralHolders.as_str(),
            PlacedReason::Moving.as_str(),
            PlacedReason::PreferredNodeNotFound.as_str(),
            PlacedReason::PreferredNodeUnusable.as_str(),
            PlacedReason::NoGateway.as_str(),
            UniqueReason::Conflict.as_str(),
            DirectReason::Proven.as_str(),
            DirectReason::NoAddress.as_str(),
            DirectReason::NoFreeBlock.as_str(),
            DirectReason::Exhausted.as_str(),
            DirectReason::NoAnswer.as_str(),
            DirectReason::NotProven.as_str(),
            DirectReason::Draining.as_str(),
        ];
        reasons.contains(&note.reason.as_str())
    }));
    let conflict = |status: &VipStatus| {
        let is = |condition: &Condition| condition.reason == UniqueReason::Conflict.as_str();
        status.conditions.iter().any(is)
    };
    let note = |tone, reason: &str, message| Note { tone, reason: reason.to_owned(), message };
    if conflict(before) && !conflict(after) {
        let message = "no other machine uses it any more".to_owned();
        notes.push(note(Tone::Normal, UniqueReason::NoConflict.as_str(), message));
    }
    let drains = |status: &VipStatus| {
        let is = |condition: &Condition| condition.type_ == vip::condition::DIRECT_PATH;
        status.conditions.iter().any(is)
    };
    if drains(before) && !drains(after) {
        let message = "no connection is translated by the node of its pod any more".to_owned();
        notes.push(note(Tone::Normal, "ViaHolder", message));
    }
    match (&before.holder, &after.holder) {
        (was, is) if was == is => {}
        (Some(was), Some(is)) => {
            let message = format!("moved from Node {was} to Node {is}");
            notes.push(note(Tone::Normal, "HolderMoved", message));
        }
        (None, Some(is)) => {
            notes.push(note(Tone::Normal, "Held", format!("is on Node {is}")));
        }
        (Some(was), _) => {
            let message = format!("was on Node {was} and is on no node now");
            notes.push(note(Tone::Warning, "NoHolder", message));
        }
        (None, None) => {}
    }
    // To ask for the deletion of an object makes it one generation older.
    let asked = object.metadata.deletion_timestamp.is_some()
        && before.observed_generation < object.metadata.generation;
    if asked && !verdict.used_by.is_empty() {
        let users: Vec<String> = verdict.used_by.iter().take(5).map(ToString::to_string).collect();
        let more = verdict.used_by.len().saturating_sub(users.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!(
            "is deleted when no Egress uses it any more; delete Egress {}{more}",
            users.join(", ")
        );
        notes.push(note(Tone::Warning, "DeletionWaits", message));
    }
    notes
}
