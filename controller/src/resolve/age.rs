//! Which of two objects came first.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use crate::model::ObjectKey;

/// Sorts older objects before younger ones; of the same second, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    created: Timestamp,
    name: String,
    namespace: String,
}

/// The age of an object. One without a time of creation is the youngest.
pub(super) fn age(object: &impl Resource) -> Age {
    let meta = object.meta();
    let created = meta.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
    let ObjectKey { namespace, name } = key(object);
    Age { created, name, namespace }
}

/// Which object it is.
pub(super) fn key(object: &impl Resource) -> ObjectKey {
    let meta = object.meta();
    ObjectKey {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}
