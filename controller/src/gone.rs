//! Which covered pods are gone while their nodes may not be done with them.
//!
//! Pure. A pod that is deleted by force vanishes from the API server at once, and sends until its node
//! has ended it. What is published tells that it was covered, also to a controller that has just begun.
//! Its node is told that it is gone, holds what it still sends, and knows by itself when that ends; here
//! it is forgotten after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::PodUid;
use shared::config_map::{PODS_OF_NODE_PREFIX, decode_covered};
use tokio::time::Instant;

use crate::model::Pod;
use crate::publish::{ConfigMaps, Shard};

/// For how long a node is told: longer than any node takes to end a pod that it knows to be deleted.
const TOLD_FOR: Duration = Duration::from_mins(10);

/// What was published, and since when pods of it are gone.
#[derive(Debug, Default)]
pub struct Gone {
    /// By node.
    published: BTreeMap<String, Read>,
    since: BTreeMap<PodUid, Instant>,
}

/// What one node's object says, decoded: anew only when it has changed.
#[derive(Debug)]
struct Read {
    version: Option<String>,
    covered: BTreeSet<PodUid>,
}

impl Gone {
    /// Adds to what is to be published which pods are gone.
    pub fn add<'a>(
        &mut self,
        shards: &mut BTreeMap<String, Shard>,
        observed: &ConfigMaps,
        pods: impl Iterator<Item = &'a Pod>,
        now: Instant,
    ) {
        self.refresh(observed);
        let mut missing: BTreeSet<PodUid> = BTreeSet::new();
        for (node, read) in &self.published {
            let Some(shard) = shards.get(node) else { continue };
            missing.extend(read.covered.iter().filter(|uid| !shard.named.covers(uid)));
        }
        if !missing.is_empty() {
            for uid in pods.filter_map(|pod| pod.uid.parse().ok()) {
                missing.remove(&uid);
            }
        }
        self.since.retain(|uid, _| missing.contains(uid));
        missing.retain(|uid| now < *self.since.entry(*uid).or_insert(now) + TOLD_FOR);
        for (node, read) in &self.published {
            let Some(shard) = shards.get_mut(node) else { continue };
            shard.named.gone = read.covered.intersection(&missing).copied().collect();
        }
    }

    fn refresh(&mut self, observed: &ConfigMaps) {
        let mut before = std::mem::take(&mut self.published);
        for name in observed.names_with(PODS_OF_NODE_PREFIX) {
            let Some(object) = observed.get(name) else { continue };
            let node = name.strip_prefix(PODS_OF_NODE_PREFIX).unwrap_or_default();
            let version = &object.metadata.resource_version;
            let read = match before.remove(node) {
                Some(read) if read.version == *version => read,
                _ => Read { version: version.clone(), covered: decode_covered(&object.data) },
            };
            self.published.insert(node.to_owned(), read);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::watch::objects::ConfigMapObject;

    const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";

    fn pod() -> Pod {
        Pod {
            namespace: "default".into(),
            name: "one".into(),
            uid: UID.into(),
            labels: Arc::default(),
            owner: None,
            node: Some("n1".into()),
            ips: Vec::new(),
            host_network: false,
            finished: false,
            terminating: false,
            created: Timestamp::default(),
        }
    }

    /// What was published, with as many versions as there were.
    struct Published(ConfigMaps, u64);

    impl Published {
        fn write(&mut self, entries: &[(&str, &str)]) {
            self.1 += 1;
            let mut object = ConfigMapObject::default();
            object.metadata.name = Some("podip-vip-mappings-n1".into());
            object.metadata.resource_version = Some(self.1.to_string());
            let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            object.data = entries.iter().map(entry).collect();
            assert!(self.0.seen(object));
        }

        /// Whether the pod is said to be gone, if nothing else is wanted.
        fn says(&self, gone: &mut Gone, pods: &[Pod], now: Instant) -> bool {
            let mut shards = BTreeMap::from([("n1".to_owned(), Shard::default())]);
            gone.add(&mut shards, &self.0, pods.iter(), now);
            shards["n1"].named.gone.contains(&UID.parse().unwrap())
        }
    }

    #[test]
    fn a_covered_pod_that_exists_no_more_is_said_to_be_gone_for_a_while() {
        let (mut gone, now) = (Gone::default(), Instant::now());
        let mut published = Published(ConfigMaps::default(), 0);
        assert!(!published.says(&mut gone, &[], now), "nobody has heard of it");
        let addresses = format!("{UID}.addresses");
        published.write(&[(&addresses, "10.244.1.2"), ("10.244.1.2", "192.168.0.1")]);
        assert!(!published.says(&mut gone, &[pod()], now), "it lives, and nothing is for it");
        assert!(published.says(&mut gone, &[], now));
        published.write(&[(UID, "gone")]);
        let last = now + TOLD_FOR.checked_sub(Duration::from_secs(1)).unwrap();
        assert!(published.says(&mut gone, &[], last));
        assert!(published.says(&mut Gone::default(), &[], last), "by a controller that has begun");
        assert!(!published.says(&mut gone, &[], now + TOLD_FOR));
        published.write(&[]);
        assert!(!published.says(&mut gone, &[], now + TOLD_FOR));
        assert!(gone.since.is_empty());
    }

    #[test]
    fn of_pods_without_a_vip_nothing_is_said_and_of_expected_ones_it_is() {
        let (mut gone, now) = (Gone::default(), Instant::now());
        let mut published = Published(ConfigMaps::default(), 0);
        published.write(&[(UID, "uncovered")]);
        assert!(!published.says(&mut gone, &[], now));
        published.write(&[(UID, "192.168.0.1")]);
        assert!(published.says(&mut gone, &[], now), "its address was not known yet");
    }
}
