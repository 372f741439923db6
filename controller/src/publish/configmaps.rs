//! Pure: the `ConfigMaps` of our namespace as they were last seen or written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use shared::config_map::{
    CANDIDATES, NETWORKS, NODE_REPORT_PREFIX, PODS, PODS_OF_NODE_PREFIX, ROUTE_IDS, VIPS,
};

use super::blocks::vip_of;
use crate::watch::objects::ConfigMapObject;

/// The objects that matter here, each in its newest version that is known.
///
/// What this program wrote counts at once; the watch tells of it later, and of what was before.
#[derive(Debug, Default)]
pub struct ConfigMaps {
    objects: BTreeMap<String, ConfigMapObject>,
    changed: BTreeSet<String>,
}

/// Whether an object of that name is one that matters here.
pub fn matters(name: &str) -> bool {
    [VIPS, ROUTE_IDS, PODS, NETWORKS, CANDIDATES].contains(&name)
        || name.strip_prefix(PODS_OF_NODE_PREFIX).is_some_and(|node| !node.is_empty())
        || is_report(name)
        || vip_of(name).is_some()
}

/// Whether an object of that name is the report of a node.
pub fn is_report(name: &str) -> bool {
    name.strip_prefix(NODE_REPORT_PREFIX).is_some_and(|node| !node.is_empty())
}

impl ConfigMaps {
    pub fn get(&self, name: &str) -> Option<&ConfigMapObject> {
        self.objects.get(name)
    }

    /// The version of the object that is known.
    pub fn version(&self, name: &str) -> Option<&String> {
        self.objects.get(name)?.metadata.resource_version.as_ref()
    }

    /// The names of all, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.objects.keys().map(String::as_str)
    }

    /// The names that begin so, ascending.
    pub fn names_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let names = self.objects.range::<str, _>(from).map(|(name, _)| name.as_str());
        names.take_while(move |name| name.starts_with(prefix))
    }

    /// Somebody, perhaps we, has made or changed it; whether that is news.
    pub fn seen(&mut self, object: ConfigMapObject) -> bool {
        let Some(name) = object.metadata.name.clone().filter(|name| matters(name)) else {
            return false;
        };
        if self.objects.get(&name).is_some_and(|known| !is_newer(&object, known)) {
            return false;
        }
        self.changed.insert(name.clone());
        self.objects.insert(name, object);
        true
    }

    /// Somebody has deleted it; whether that is news.
    pub fn seen_deleted(&mut self, object: &ConfigMapObject) -> bool {
        let Some(name) = object.metadata.name.as_deref() else { return false };
        match self.objects.get(name) {
            // It is there again already.
            Some(known) if is_newer(known, object) => false,
            Some(_) => {
                self.deleted(name);
                true
            }
            None => false,
        }
    }

    /// All that there are, after the connection was lost; whether that is news.
    pub fn listed(&mut self, objects: Vec<ConfigMapObject>) -> bool {
        let names: BTreeSet<_> =
            objects.iter().filter_map(|object| object.metadata.name.clone()).collect();
        let lost: Vec<_> =
            self.objects.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in &lost {
            self.deleted(name);
        }
        let mut news = !lost.is_empty();
        for object in objects {
            news |= self.seen(object);
        }
        news
    }

    /// We have made or changed it: this is what the API server answered.
    pub fn written(&mut self, object: ConfigMapObject) {
        if let Some(name) = object.metadata.name.clone()
            && self.objects.get(&name).is_none_or(|known| is_newer(&object, known))
        {
            self.objects.insert(name, object);
        }
    }

    /// It is not there any more.
    pub fn deleted(&mut self, name: &str) {
        self.changed.insert(name.to_owned());
        self.objects.remove(name);
    }

    /// Whether somebody has changed it since this was asked last.
    pub fn take_changed(&mut self, name: &str) -> bool {
        self.changed.remove(name)
    }
}

/// Versions are numbers that grow; of others the one that is told last counts.
fn is_newer(object: &ConfigMapObject, than: &ConfigMapObject) -> bool {
    let version = |object: &ConfigMapObject| -> Option<u64> {
        object.metadata.resource_version.as_deref()?.parse().ok()
    };
    match (version(object), version(than)) {
        (Some(seen), Some(known)) => seen > known,
        _ => object.metadata.resource_version != than.metadata.resource_version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: &str) -> ConfigMapObject {
        let mut object = ConfigMapObject::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.resource_version = Some(version.to_owned());
        object
    }

    #[test]
    fn what_we_wrote_is_not_undone_by_older_news() {
        let mut known = ConfigMaps::default();
        assert!(known.seen(object(VIPS, "5")));
        known.written(object(VIPS, "9"));
        assert!(!known.seen(object(VIPS, "7")));
        assert!(!known.seen(object(VIPS, "9")));
        assert!(!known.seen_deleted(&object(VIPS, "8")));
        assert_eq!(known.version(VIPS).map(String::as_str), Some("9"));
        assert!(known.seen(object(VIPS, "10")));
        assert!(known.seen_deleted(&object(VIPS, "11")));
        assert!(known.get(VIPS).is_none());
    }

    #[test]
    fn a_new_list_tells_what_was_deleted_meanwhile() {
        let mut known = ConfigMaps::default();
        assert!(known.listed(vec![object(VIPS, "1"), object("egress-node-a", "2")]));
        assert!(!known.listed(vec![object(VIPS, "1"), object("egress-node-a", "2")]));
        assert!(known.listed(vec![object(VIPS, "1")]));
        assert_eq!(known.names().collect::<Vec<_>>(), [VIPS]);
    }

    #[test]
    fn other_peoples_objects_are_not_kept() {
        let mut known = ConfigMaps::default();
        assert!(!known.seen(object("kube-root-ca.crt", "1")));
        assert!(!known.seen(object("podip-vip-mappings-", "1")));
        assert_eq!(known.names().count(), 0);
    }
}
