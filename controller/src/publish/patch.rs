//! Pure: what has to be sent so that an object holds what it should, and no more than that.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::watch::objects::ConfigMapObject;

/// The label on every object that this program writes.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "egress-mapper");

/// What an object should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The labels that it has to have, or (`None`) must not have; others are let be.
    pub labels: BTreeMap<String, Option<String>>,
    /// The annotations that it has to have, or (`None`) must not have; others are let be.
    pub annotations: BTreeMap<String, Option<String>>,
    /// All of its data.
    pub data: BTreeMap<String, String>,
}

/// Which differences count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only keys that are missing or have another value.
    Additions,
    /// Also keys that are too many.
    All,
}

/// How an object is brought in line.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is made.
    Create(Box<ConfigMapObject>),
    /// A merge patch, with the version of the object it was made for.
    Patch(Value),
    /// It cannot be changed any more and has to be made anew: somebody has made it immutable.
    Recreate,
}

/// The change that makes `observed` what is desired; `None` if it is that already.
pub fn change(
    name: &str,
    desired: &Desired,
    observed: Option<&ConfigMapObject>,
    scope: Scope,
) -> Option<Change> {
    let Some(observed) = observed else {
        return Some(Change::Create(Box::new(created(name, desired))));
    };
    let meta = &observed.metadata;
    let labels = meta.labels.as_ref();
    let annotations = meta.annotations.as_ref();
    let mut patch = Map::new();
    let mut in_metadata = Map::new();

    let wanted = desired.labels.iter().map(|(key, value)| (key, value.as_ref()));
    insert(&mut in_metadata, "labels", differences(wanted, labels));
    let wanted = desired.annotations.iter().map(|(key, value)| (key, value.as_ref()));
    insert(&mut in_metadata, "annotations", differences(wanted, annotations));

    let wanted = desired.data.iter().map(|(key, value)| (key, Some(value)));
    let mut data = differences(wanted, Some(&observed.data));
    if scope == Scope::All {
        let surplus = observed.data.keys().filter(|key| !desired.data.contains_key(*key));
        data.extend(surplus.map(|key| (key.clone(), Value::Null)));
        if !observed.binary_data.is_empty() {
            patch.insert("binaryData".to_owned(), Value::Null);
        }
    }
    insert(&mut patch, "data", data);
    if patch.is_empty() && in_metadata.is_empty() {
        return None;
    }
    if observed.immutable {
        return Some(Change::Recreate);
    }
    in_metadata.insert("resourceVersion".to_owned(), json!(meta.resource_version));
    patch.insert("metadata".to_owned(), Value::Object(in_metadata));
    Some(Change::Patch(Value::Object(patch)))
}

fn created(name: &str, desired: &Desired) -> ConfigMapObject {
    let present = |(key, value): (&String, &Option<String>)| Some((key.clone(), value.clone()?));
    let annotations: BTreeMap<_, _> = desired.annotations.iter().filter_map(present).collect();
    let labels: BTreeMap<_, _> = desired.labels.iter().filter_map(present).collect();
    let mut object = ConfigMapObject { data: desired.data.clone(), ..ConfigMapObject::default() };
    object.metadata.name = Some(name.to_owned());
    object.metadata.labels = Some(labels);
    object.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    object
}

/// The entries that are not as wanted; `null` removes one.
fn differences<'a>(
    wanted: impl Iterator<Item = (&'a String, Option<&'a String>)>,
    present: Option<&BTreeMap<String, String>>,
) -> Map<String, Value> {
    wanted
        .filter(|&(key, value)| present.and_then(|present| present.get(key)) != value)
        .map(|(key, value)| (key.clone(), value.map_or(Value::Null, |value| json!(value))))
        .collect()
}

fn insert(into: &mut Map<String, Value>, key: &str, entries: Map<String, Value>) {
    if !entries.is_empty() {
        into.insert(key.to_owned(), Value::Object(entries));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn desired(data: &[(&str, &str)]) -> Desired {
        let labels = map(&[MANAGED_BY]).into_iter().map(|(key, value)| (key, Some(value)));
        Desired { labels: labels.collect(), data: map(data), ..Desired::default() }
    }

    fn observed(data: &[(&str, &str)]) -> ConfigMapObject {
        let mut object = created("x", &desired(data));
        object.metadata.resource_version = Some("7".to_owned());
        object
    }

    fn patched(desired: &Desired, observed: &ConfigMapObject, scope: Scope) -> Option<Value> {
        change("x", desired, Some(observed), scope).map(|change| match change {
            Change::Patch(patch) => patch,
            other => panic!("not a patch: {other:?}"),
        })
    }

    #[test]
    fn what_is_right_is_not_written() {
        let data = [("10.0.0.1", "192.168.0.1")];
        assert_eq!(patched(&desired(&data), &observed(&data), Scope::All), None);
    }

    #[test]
    fn only_what_differs_is_sent_with_the_version_it_is_for() {
        let present = [("a", "1"), ("b", "2"), ("c", "3")];
        let wanted = desired(&[("b", "2"), ("c", "4"), ("d", "")]);
        assert_eq!(
            patched(&wanted, &observed(&present), Scope::All),
            Some(json!({
                "metadata": {"resourceVersion": "7"},
                "data": {"a": null, "c": "4", "d": ""},
            }))
        );
        assert_eq!(
            patched(&wanted, &observed(&present), Scope::Additions),
            Some(json!({"metadata": {"resourceVersion": "7"}, "data": {"c": "4", "d": ""}}))
        );
        assert_eq!(patched(&desired(&[]), &observed(&present), Scope::Additions), None);
    }

    #[test]
    fn what_a_hand_has_changed_is_put_right_and_what_is_not_ours_is_let_be() {
        let mut object = observed(&[("a", "1")]);
        object.metadata.labels = Some(map(&[("mine", "yes"), ("stale", "z")]));
        object.metadata.annotations = Some(map(&[("kubectl", "x"), ("old", "y")]));
        object.binary_data = vec!["blob".to_owned()];
        let mut wanted = desired(&[("a", "1")]);
        wanted.annotations.insert("old".to_owned(), None);
        wanted.labels.insert("stale".to_owned(), None);
        assert_eq!(
            patched(&wanted, &object, Scope::All),
            Some(json!({
                "metadata": {
                    "resourceVersion": "7",
                    "labels": {"app.kubernetes.io/managed-by": "egress-mapper", "stale": null},
                    "annotations": {"old": null},
                },
                "binaryData": null,
            }))
        );
    }

    #[test]
    fn an_immutable_object_is_made_anew_if_it_is_wrong() {
        let mut object = observed(&[("a", "1")]);
        object.immutable = true;
        assert_eq!(change("x", &desired(&[("a", "1")]), Some(&object), Scope::All), None);
        let change = change("x", &desired(&[]), Some(&object), Scope::All);
        assert_eq!(change, Some(Change::Recreate));
    }
}
