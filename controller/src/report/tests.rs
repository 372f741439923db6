use serde_json::json;
use shared::crd::{BlocksStatus, Egress, PathTaken, Vip};

use super::*;
use crate::model::{
    DirectReason, EgressReason, EgressVerdict, Finding, HeldReason, InUseReason, PathVerdict,
    PlacedReason, UniqueReason, VipReason, VipVerdict,
};
use crate::watch::Change;
use crate::world::News;

const NOW: &str = "2026-11-23T10:00:00Z";
const LATER: &str = "2026-11-23T11:00:00Z";

fn key(name: &str) -> ObjectKey {
    ObjectKey { namespace: "default".to_owned(), name: name.to_owned() }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn egress(version: &str, status: Option<&Value>) -> Egress {
    let mut object = json!({
        "apiVersion": "egress.mapper.com/v1alpha1", "kind": "Egress",
        "metadata": { "name": "e", "namespace": "default", "uid": "u", "generation": 3,
            "resourceVersion": version },
        "spec": { "ip": "192.168.0.9", "kind": "pod", "name": "p" },
    });
    if let Some(status) = status {
        object["status"] = status.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn vip(metadata: &Value, status: &Value) -> Vip {
    let mut object = json!({
        "apiVersion": "egress.mapper.com/v1alpha1", "kind": "Vip",
        "metadata": { "name": "v", "namespace": "default", "uid": "u", "generation": 1 },
        "spec": { "ip": "192.168.0.9" }, "status": status,
    });
    for (key, value) in metadata.as_object().unwrap() {
        object["metadata"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn ready(reason: EgressReason, mapped: usize) -> Resolved {
    let ready = Finding { reason, message: format!("{mapped} pods") };
    let verdict = EgressVerdict { ready, pods: 2, mapped, left_out: 0 };
    Resolved { egresses: [(key("e"), verdict)].into(), ..Resolved::default() }
}

fn used(by: &[&str], holder: Option<&str>) -> Resolved {
    let finding = |message: &str| message.to_owned();
    let verdict = VipVerdict {
        accepted: Finding { reason: VipReason::Accepted, message: finding("") },
        held: Finding {
            reason: if holder.is_some() { HeldReason::Held } else { HeldReason::NoHolder },
            message: finding(""),
        },
        in_use: Finding {
            reason: if by.is_empty() { InUseReason::NotInUse } else { InUseReason::InUse },
            message: finding(""),
        },
        placed: Finding { reason: PlacedReason::Placed, message: finding("") },
        unique: Finding { reason: UniqueReason::NoConflict, message: finding("") },
        route_id: None,
        holder: holder.map(str::to_owned),
        used_by: by.iter().map(|name| key(name)).collect(),
        pods: 0,
        path: None,
    };
    Resolved { vips: [(key("v"), verdict)].into(), ..Resolved::default() }
}

fn tasks_of(world: &World, resolved: &Resolved, now: &str) -> Vec<Task> {
    report(world, resolved, &Confirmed::new(), at(now))
}

fn with_egress(object: Egress) -> World {
    let mut world = World::new("default");
    world.learn(News::Egresses(Change::Seen(object)));
    world
}

fn with_vip(object: Vip) -> World {
    let mut world = World::new("default");
    world.learn(News::Vips(Change::Seen(object)));
    world
}

fn status_of(tasks: &[Task]) -> (&Value, Vec<&str>) {
    let found = tasks.iter().find_map(|task| match &task.action {
        Action::Status { status, notes, .. } => {
            Some((status, notes.iter().map(|note| note.reason.as_str()).collect()))
        }
        _ => None,
    });
    found.expect("a status")
}

#[test]
fn a_status_is_written_once_and_its_time_moves_with_the_state_only() {
    let tasks = tasks_of(&with_egress(egress("1", None)), &ready(EgressReason::Mapped, 2), NOW);
    let (first, notes) = status_of(&tasks);
    assert_eq!(first["conditions"][0]["lastTransitionTime"], NOW);
    assert_eq!((&first["observedGeneration"], &first["mapped"]), (&json!(3), &json!(2)));
    assert_eq!(notes, ["Mapped"]);

    let world = with_egress(egress("2", Some(first)));
    assert_eq!(tasks_of(&world, &ready(EgressReason::Mapped, 2), LATER), []);
    let tasks = tasks_of(&world, &ready(EgressReason::Mapped, 1), LATER);
    let (second, notes) = status_of(&tasks);
    assert_eq!(second["conditions"][0]["lastTransitionTime"], NOW);
    assert_eq!(notes, [""; 0], "a count is no event");
    let tasks = tasks_of(&world, &ready(EgressReason::VipNotFound, 0), LATER);
    let (third, notes) = status_of(&tasks);
    assert_eq!(third["conditions"][0]["lastTransitionTime"], LATER);
    assert_eq!(notes, ["VipNotFound"]);
}

#[test]
fn conditions_of_others_are_neither_written_nor_compared() {
    let tasks = tasks_of(&with_egress(egress("1", None)), &ready(EgressReason::Mapped, 2), NOW);
    let mut status = status_of(&tasks).0.clone();
    let foreign = json!({ "type": "Audited", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": NOW });
    status["conditions"].as_array_mut().unwrap().insert(0, foreign);
    let world = with_egress(egress("2", Some(&status)));
    assert_eq!(tasks_of(&world, &ready(EgressReason::Mapped, 2), LATER), []);
    let tasks = tasks_of(&world, &ready(EgressReason::Mapped, 1), LATER);
    let written = status_of(&tasks).0["conditions"].as_array().unwrap().len();
    assert_eq!(written, 1);
}

#[test]
fn a_finalizer_comes_with_the_first_user_and_goes_with_the_last() {
    let finalizers = |metadata: Value, by: &[&str]| {
        let tasks = tasks_of(&with_vip(vip(&metadata, &json!({}))), &used(by, None), NOW);
        tasks.into_iter().find_map(|task| match task.action {
            Action::Finalizers { finalizers, .. } => Some(finalizers),
            _ => None,
        })
    };
    let both = json!({ "finalizers": ["a.test/x", FINALIZER] });
    let other = json!({ "finalizers": ["a.test/x"] });
    assert_eq!(finalizers(other.clone(), &["e"]), Some(vec!["a.test/x".into(), FINALIZER.into()]));
    assert_eq!(finalizers(both.clone(), &["e"]), None);
    assert_eq!(finalizers(both, &[]), Some(vec!["a.test/x".into()]));
    assert_eq!(finalizers(other, &[]), None);
    let going = json!({ "deletionTimestamp": NOW });
    assert_eq!(finalizers(going, &["e"]), None, "none can be added to what is being deleted");
}

#[test]
fn people_are_told_where_a_vip_is_and_what_keeps_it() {
    let told = |metadata: Value, status: Value, by: &[&str], holder: Option<&str>| {
        let world = with_vip(vip(&metadata, &status));
        let tasks = tasks_of(&world, &used(by, holder), NOW);
        status_of(&tasks).1.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let accepted = json!({ "type": "Accepted", "status": "True", "reason": "Accepted",
        "message": "", "lastTransitionTime": NOW });
    let before = |holder: Option<&str>| json!({ "observedGeneration": 1, "holder": holder, "conditions": [accepted] });
    let none = || json!({});
    assert_eq!(told(none(), json!({}), &[], None), ["Accepted"]);
    assert_eq!(told(none(), before(None), &[], Some("n1")), ["Held"]);
    assert_eq!(told(none(), before(Some("n1")), &[], Some("n2")), ["HolderMoved"]);
    assert_eq!(told(none(), before(Some("n1")), &[], None), ["NoHolder"]);
    let going = || json!({ "deletionTimestamp": NOW, "generation": 2, "finalizers": [FINALIZER] });
    assert_eq!(told(going(), before(None), &["e"], None), ["DeletionWaits"]);
    let mut said = before(None);
    said["observedGeneration"] = json!(2);
    assert_eq!(told(going(), said, &["e"], None), [""; 0]);
}

#[test]
fn people_are_told_when_a_vip_is_not_where_it_should_be_or_is_used_by_others() {
    use HeldReason::{Held, SeveralHolders};
    use PlacedReason::{Moving, Placed, PreferredNodeNotFound};
    use UniqueReason::{Conflict, NoConflict};
    let told = |status: &Value, placed: PlacedReason, unique: UniqueReason, held: HeldReason| {
        let mut resolved = used(&[], Some("n1"));
        for verdict in resolved.vips.values_mut() {
            verdict.placed.reason = placed;
            verdict.unique.reason = unique;
            verdict.held.reason = held;
        }
        let tasks = tasks_of(&with_vip(vip(&json!({}), status)), &resolved, NOW);
        let (status, notes) = status_of(&tasks);
        (status.clone(), notes.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let (usual, _) = told(&json!({}), Placed, NoConflict, Held);
    let (moving, notes) = told(&usual, Moving, NoConflict, Held);
    assert_eq!(notes, ["Moving"]);
    let (unknown, notes) = told(&moving, PreferredNodeNotFound, NoConflict, Held);
    assert_eq!(notes, ["PreferredNodeNotFound"]);
    let (conflict, notes) = told(&unknown, Placed, Conflict, Held);
    assert_eq!(notes, ["Conflict"]);
    let (_, notes) = told(&conflict, Placed, NoConflict, Held);
    assert_eq!(notes, ["NoConflict"]);
    let (_, notes) = told(&usual, Placed, NoConflict, SeveralHolders);
    assert_eq!(notes, ["SeveralHolders"]);
}

#[test]
fn people_are_told_what_becomes_of_the_direct_path() {
    use PathTaken::{Direct, Mixed, ViaHolder};
    let told = |status: &Value, taken: PathTaken, reason: Option<DirectReason>| {
        let mut resolved = used(&[], Some("n1"));
        let direct = reason.map(|reason| Finding { reason, message: "so".to_owned() });
        let blocks = direct.as_ref().map(|_| BlocksStatus { nodes: 1, ..BlocksStatus::default() });
        for verdict in resolved.vips.values_mut() {
            verdict.path = Some(PathVerdict { taken, blocks, direct: direct.clone() });
        }
        let world = with_vip(vip(&json!({}), status));
        let tasks = tasks_of(&world, &resolved, NOW);
        let Some(Action::Status { status, notes, .. }) = tasks.first().map(|task| &task.action)
        else {
            return (status.clone(), Vec::new());
        };
        let notes = notes.iter().map(|note| (note.reason.clone(), note.tone)).collect();
        (status.clone(), notes)
    };
    let is = |notes: &[(String, Tone)], reason: &str, tone: Tone| {
        assert_eq!(notes, [(reason.to_owned(), tone)]);
    };
    let (usual, _) = told(&json!({}), ViaHolder, None);
    assert_eq!((&usual["path"], &usual["blocks"]), (&json!("ViaHolder"), &Value::Null));
    let (starting, notes) = told(&usual, ViaHolder, Some(DirectReason::Starting));
    assert_eq!(notes, []);
    let (proven, notes) = told(&starting, Direct, Some(DirectReason::Proven));
    is(&notes, "Proven", Tone::Normal);
    assert_eq!((&proven["path"], &proven["blocks"]["nodes"]), (&json!("Direct"), &json!(1)));
    let (full, notes) = told(&proven, Mixed, Some(DirectReason::NoFreeBlock));
    is(&notes, "NoFreeBlock", Tone::Warning);
    assert_eq!(told(&full, Mixed, Some(DirectReason::NoFreeBlock)).1, []);
    let (draining, notes) = told(&full, ViaHolder, Some(DirectReason::Draining));
    is(&notes, "Draining", Tone::Normal);
    let (over, notes) = told(&draining, ViaHolder, None);
    is(&notes, "ViaHolder", Tone::Normal);
    assert_eq!(over["conditions"], usual["conditions"]);
}
