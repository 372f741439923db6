//! What holds for every cluster, found out with random small ones.

mod any_cluster;
mod definition;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use shared::config_map::{
    self, NETWORKS, ROUTE_IDS, encode_networks, encode_pods, encode_route_ids,
};
use shared::mappings::{Change, Content, MappingsStore};
use shared::{PodIp, Vip};

use self::any_cluster::any_cluster;
use self::definition::expected;
use super::builders::{Born, Build, Change as _, at, egress, pod, vip};
use crate::model::{EgressReason, Observed, Resolved};
use crate::resolve;

type Published = BTreeMap<PodIp, (String, Option<Vip>)>;

fn published(resolved: &Resolved) -> Published {
    let of_node = |(node, pods): (&String, &BTreeMap<PodIp, Option<Vip>>)| {
        let node = node.clone();
        pods.iter().map(move |(&ip, &vip)| (ip, (node.clone(), vip))).collect::<Vec<_>>()
    };
    resolved.shards.iter().flat_map(of_node).collect()
}

/// The same cluster once what was decided is published and seen.
fn settled(observed: &Observed) -> Observed {
    let resolved = resolve(observed);
    Observed {
        published_route_ids: resolved.route_ids,
        published_candidates: resolved.candidates,
        ..observed.clone()
    }
}

fn shuffled<T: Clone>(list: &[T], seed: &[Index]) -> Vec<T> {
    let mut list = list.to_vec();
    for (place, index) in seed.iter().enumerate().take(list.len()) {
        let other = index.index(list.len());
        list.swap(place, other);
    }
    list
}

/// Takes one object away; `None` when nothing is left.
fn without_one(observed: &Observed, which: Index) -> Option<Observed> {
    let lists = [
        observed.vips.len(),
        observed.egresses.len(),
        observed.mappers.len(),
        observed.pods.len(),
        observed.owned.len(),
        observed.nodes.len(),
    ];
    let all: usize = lists.iter().sum();
    if all == 0 {
        return None;
    }
    let mut place = which.index(all);
    let mut next = observed.clone();
    let kind = lists.iter().position(|&len| {
        let here = place < len;
        if !here {
            place -= len;
        }
        here
    });
    match kind? {
        0 => drop(next.vips.remove(place)),
        1 => drop(next.egresses.remove(place)),
        2 => drop(next.mappers.remove(place)),
        3 => drop(next.pods.remove(place)),
        4 => drop(next.owned.remove(place)),
        _ => drop(next.nodes.remove(place)),
    }
    Some(next)
}

fn nothing_is_left_of_what_is_gone(observed: &Observed) {
    let resolved = resolve(observed);
    let addresses: BTreeSet<PodIp> =
        observed.pods.iter().flat_map(|pod| &pod.ips).copied().collect();
    let vips: BTreeSet<Vip> =
        observed.vips.iter().filter_map(|vip| vip.spec.ip.parse().ok()).collect();
    let nodes: BTreeSet<&str> = observed.nodes.iter().map(|node| node.name.as_str()).collect();
    for (ip, (_, vip)) in published(&resolved) {
        assert!(addresses.contains(&ip));
        assert!(vip.is_none_or(|vip| vips.contains(&vip)));
    }
    assert!(resolved.route_ids.keys().all(|vip| vips.contains(vip)));
    assert!(resolved.candidates.values().flatten().all(|name| nodes.contains(name.as_str())));
    assert!(
        resolved
            .vips
            .values()
            .flat_map(|vip| &vip.holder)
            .all(|node| nodes.contains(node.as_str()))
    );
    assert_eq!(resolved.vips.len(), observed.vips.len());
    assert_eq!(resolved.egresses.len(), observed.egresses.len());
    assert_eq!(resolved.mappers.len(), observed.mappers.len());
    if observed.egresses.is_empty() || observed.pods.is_empty() {
        assert!(resolved.shards.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn pods_leave_with_what_the_definition_says(observed in any_cluster()) {
        let resolved = resolve(&observed);
        prop_assert_eq!(published(&resolved), expected(&observed, &resolved));
    }

    #[test]
    fn the_order_of_objects_never_matters(
        observed in any_cluster(),
        seed in proptest::collection::vec(any::<Index>(), 12),
    ) {
        let other = Observed {
            vips: shuffled(&observed.vips, &seed),
            egresses: shuffled(&observed.egresses, &seed),
            mappers: shuffled(&observed.mappers, &seed),
            pods: shuffled(&observed.pods, &seed),
            owned: shuffled(&observed.owned, &seed),
            nodes: shuffled(&observed.nodes, &seed),
            ..observed.clone()
        };
        prop_assert_eq!(resolve(&other), resolve(&observed));
    }

    #[test]
    fn deleting_in_any_order_leaves_nothing_behind(
        observed in any_cluster(),
        order in proptest::collection::vec(any::<Index>(), 64),
    ) {
        let mut left = settled(&observed);
        for which in order {
            let Some(next) = without_one(&left, which) else { break };
            left = settled(&next);
            nothing_is_left_of_what_is_gone(&left);
        }
        prop_assert!(left.pods.is_empty() && left.egresses.is_empty());
    }

    #[test]
    fn what_is_published_stays_when_nothing_changes(observed in any_cluster()) {
        let once = settled(&observed);
        prop_assert_eq!(resolve(&once), resolve(&observed));
    }

    #[test]
    fn unrelated_objects_change_nothing(observed in any_cluster()) {
        let observed = settled(&observed);
        let before = resolve(&observed);
        let stranger = pod("stranger", &["10.99.0.1"]).with(|pod| {
            pod.namespace = "unrelated".to_owned();
            pod.created = at(99);
        });
        let more = observed
            .clone()
            .pod(stranger)
            .egress(egress("zz", "198.51.100.200", "pod", "nobody").in_namespace("unrelated"))
            // Older than all others, so that it would come first wherever age decides.
            .vip(vip("unrelated", "198.51.100.201").created(-9));
        let mut after = resolve(&more);
        after.egresses.retain(|key, _| key.namespace != "unrelated");
        after.vips.retain(|key, _| key.name != "unrelated");
        let new: Vip = "198.51.100.201".parse().unwrap();
        after.route_ids.remove(&new);
        after.candidates.remove(&new);
        prop_assert_eq!(after.shards, before.shards);
        prop_assert_eq!(after.egresses, before.egresses);
        prop_assert_eq!(after.vips, before.vips);
        prop_assert_eq!(after.route_ids, before.route_ids);
    }

    #[test]
    fn what_is_published_is_what_nodes_take(observed in any_cluster()) {
        let resolved = resolve(&observed);
        let mut store = MappingsStore::default();
        let mut apply = |object: &str, data| {
            store.apply(Change { object: object.to_owned(), content: Content::Whole(data) });
        };
        apply(NETWORKS, encode_networks(&resolved.networks));
        apply(ROUTE_IDS, encode_route_ids(&resolved.route_ids));
        apply(config_map::PODS, BTreeMap::new());
        for (node, pods) in &resolved.shards {
            apply(&config_map::pods_of_node(node), encode_pods(pods));
        }
        prop_assert_eq!(store.rejected(), vec![]);
        let mappings = store.mappings().unwrap();
        prop_assert_eq!(mappings.problems(), vec![]);
        prop_assert_eq!(mappings.vips(), &resolved.route_ids);
        prop_assert_eq!(mappings.networks(), &resolved.networks);
        let pods: BTreeMap<PodIp, Option<Vip>> =
            published(&resolved).into_iter().map(|(ip, (_, vip))| (ip, vip)).collect();
        prop_assert_eq!(mappings.pods(), &pods);
    }

    #[test]
    fn counts_fit_what_is_published(observed in any_cluster()) {
        let resolved = resolve(&observed);
        let published = published(&resolved);
        for verdict in resolved.egresses.values() {
            prop_assert!(verdict.mapped <= verdict.pods);
            prop_assert_eq!(verdict.ready.reason == EgressReason::Mapped, verdict.mapped > 0);
        }
        for &vip in resolved.route_ids.keys() {
            let with_vip = |pod: &&Arc<crate::model::Pod>| {
                let is_its = |ip| published.get(ip).is_some_and(|(_, of)| *of == Some(vip));
                pod.ips.iter().any(is_its)
            };
            let count = observed.pods.iter().filter(with_vip).count();
            let verdict = resolved
                .vips
                .values()
                .find(|verdict| verdict.route_id == resolved.route_ids.get(&vip).copied());
            // A pod that lost its address to another has it in its list, too.
            prop_assert!(verdict.unwrap().pods <= count);
            prop_assert_eq!(verdict.unwrap().pods == 0, count == 0);
        }
    }
}
