mod cluster;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use self::cluster::{Cluster, any_fault};
use super::*;

type Lists = BTreeMap<Address, Vec<String>>;

fn vips(numbers: &BTreeSet<u8>) -> BTreeSet<Address> {
    numbers.iter().map(|n| format!("192.0.2.{n}").parse().unwrap()).collect()
}

fn names(numbers: &BTreeSet<u8>) -> Vec<String> {
    numbers.iter().map(|n| format!("node{n}")).collect()
}

fn usual(nodes: &[String]) -> Nodes<'_> {
    let usual: BTreeSet<&str> = nodes.iter().map(String::as_str).collect();
    Nodes { in_sync: usual.clone(), usual, ..Nodes::default() }
}

/// VIPs that nobody is known to hold.
fn run(vips: &BTreeSet<Address>, nodes: &[String], published: &Lists) -> Lists {
    let vips = vips.iter().map(|&vip| (vip, Vip::default())).collect();
    candidates(&vips, &usual(nodes), published)
}

fn loads(of: &Lists, nodes: &[String]) -> Vec<usize> {
    let first = |node: &String| of.values().filter(|list| list.first() == Some(node)).count();
    nodes.iter().map(first).collect()
}

fn is_even(loads: &[usize]) -> bool {
    loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0) <= 1
}

fn set(numbers: &BTreeSet<u8>) -> BTreeSet<String> {
    names(numbers).into_iter().collect()
}

fn cluster(vips_: &BTreeSet<u8>, nodes: &BTreeSet<u8>) -> Cluster {
    let published = vips(vips_).into_iter().map(|vip| (vip, Vec::new())).collect();
    let mut cluster = Cluster { usual: set(nodes), published, ..Cluster::default() };
    cluster.settle();
    cluster
}

fn numbers(count: u8) -> BTreeSet<u8> {
    (1..=count).collect()
}

proptest! {
    #[test]
    fn vips_are_spread_evenly_and_every_node_may_hold_each(
        vip_numbers in btree_set(1u8..250, 0..40),
        node_numbers in btree_set(1u8..99, 1..9),
        before in btree_set(1u8..99, 1..9),
    ) {
        let (vips, nodes) = (vips(&vip_numbers), names(&node_numbers));
        let published = run(&vips, &names(&before), &BTreeMap::new());
        let after = run(&vips, &nodes, &published);
        prop_assert_eq!(after.keys().copied().collect::<BTreeSet<_>>(), vips);
        for list in after.values() {
            let mut sorted = list.clone();
            sorted.sort();
            let mut all = nodes.clone();
            all.sort();
            prop_assert_eq!(sorted, all);
        }
        prop_assert!(is_even(&loads(&after, &nodes)));
    }

    #[test]
    fn only_the_vips_of_a_lost_node_move(
        vip_numbers in btree_set(1u8..250, 0..40),
        node_numbers in btree_set(1u8..99, 2..9),
    ) {
        let (vips, nodes) = (vips(&vip_numbers), names(&node_numbers));
        let before = run(&vips, &nodes, &BTreeMap::new());
        let (lost, left) = nodes.split_first().unwrap();
        let after = run(&vips, left, &before);
        for (vip, list) in &before {
            if list.first() != Some(lost) {
                prop_assert_eq!(after[vip].first(), list.first());
            }
        }
        prop_assert_eq!(&run(&vips, left, &after), &after);
    }

    #[test]
    fn whichever_node_is_lost_its_vips_spread_evenly_over_the_others(
        vip_numbers in btree_set(1u8..250, 0..60),
        node_numbers in btree_set(1u8..99, 2..9),
        before in btree_set(1u8..99, 1..9),
    ) {
        let (vips, nodes) = (vips(&vip_numbers), names(&node_numbers));
        let published = run(&vips, &names(&before), &BTreeMap::new());
        let lists = run(&vips, &nodes, &published);
        for lost in &nodes {
            let mut without = lists.clone();
            for list in without.values_mut() {
                list.retain(|node| node != lost);
            }
            let left: Vec<String> = nodes.iter().filter(|node| *node != lost).cloned().collect();
            prop_assert!(is_even(&loads(&without, &left)), "{lost}: {lists:?}");
        }
    }

    #[test]
    fn a_vip_that_comes_changes_few_other_lists(
        vip_numbers in btree_set(1u8..250, 1..60),
        node_numbers in btree_set(1u8..99, 2..9),
    ) {
        let (all, nodes) = (vips(&vip_numbers), names(&node_numbers));
        let new = *all.first().unwrap();
        let old: BTreeSet<Address> = all.iter().copied().filter(|vip| *vip != new).collect();
        let before = run(&old, &nodes, &BTreeMap::new());
        let after = run(&all, &nodes, &before);
        let changed = old.iter().filter(|vip| before[*vip] != after[*vip]).count();
        // For each node that may be lost, one.
        prop_assert!(changed < nodes.len(), "{changed} of {}", old.len());
        prop_assert!(!before.contains_key(&new));
    }

    #[test]
    fn a_new_node_takes_only_its_share(
        vip_numbers in btree_set(1u8..250, 1..40),
        node_numbers in btree_set(1u8..99, 2..9),
    ) {
        let (vips, nodes) = (vips(&vip_numbers), names(&node_numbers));
        let (new, old) = nodes.split_first().unwrap();
        let before = run(&vips, old, &BTreeMap::new());
        let after = run(&vips, &nodes, &before);
        let moved = vips.iter().filter(|vip| before[vip].first() != after[vip].first());
        prop_assert!(moved.clone().all(|vip| after[vip].first() == Some(new)));
        prop_assert_eq!(moved.count(), vips.len() / nodes.len());
    }

    #[test]
    fn whatever_happens_it_comes_to_rest(
        faults in vec(vec(any_fault(), 1..4), 1..12),
        nodes in 1..4u8,
    ) {
        let mut cluster = cluster(&numbers(8), &numbers(nodes));
        for together in faults {
            for fault in together {
                cluster.suffer(fault);
            }
            cluster.settle();
            let working: BTreeSet<&String> = cluster
                .usual
                .iter()
                .filter(|node| !cluster.dead.contains(*node) && !cluster.unsynced.contains(*node))
                .collect();
            for (vip, holder) in &cluster.holders {
                // A drained node holds nothing that a gateway could, a wish is fulfilled.
                let elsewhere = cluster.emptied.contains(holder)
                    && cluster.published[vip].iter().any(|node| working.contains(node));
                prop_assert!(!elsewhere, "{vip} on {holder}: {cluster:?}");
                if let Some(wish) = cluster.preferred.get(vip).filter(|of| working.contains(of)) {
                    prop_assert_eq!(wish, holder);
                }
            }
        }
    }

    #[test]
    fn a_node_that_comes_back_and_what_changes_elsewhere_move_nothing(
        vip_count in 1..60u8, nodes in 2..5u8, lost in 1..5u8,
    ) {
        let mut cluster = cluster(&numbers(vip_count), &numbers(nodes));
        prop_assert!(is_even(&cluster.held(&cluster.usual)));
        let before = cluster.holders.clone();
        let lost = format!("node{}", lost.min(nodes));
        cluster.dead.insert(lost.clone());
        cluster.settle();
        prop_assert_eq!(cluster.moves, 0, "only those of the lost node");
        let mut left = cluster.usual.clone();
        left.remove(&lost);
        prop_assert!(left.is_empty() || is_even(&cluster.held(&left)));
        for (vip, holder) in &before {
            prop_assert_eq!(*holder == lost, cluster.holders[vip] != *holder);
        }
        let after = cluster.holders.clone();
        cluster.usual.remove(&lost);
        cluster.spare.insert(lost.clone());
        cluster.settle();
        cluster.dead.clear();
        cluster.settle();
        cluster.spare.clear();
        cluster.usual.insert(lost.clone());
        cluster.settle();
        prop_assert_eq!(&cluster.holders, &after);
        // New VIPs fill the emptier node.
        let new: Vec<Address> =
            (1..=vip_count / nodes).map(|n| format!("198.51.100.{n}").parse().unwrap()).collect();
        cluster.published.extend(new.iter().map(|&vip| (vip, Vec::new())));
        cluster.settle();
        prop_assert!(new.iter().all(|vip| cluster.holders[vip] == lost));
        // Asked to, they spread evenly, with no move more than it takes.
        cluster.movable = cluster.published.keys().copied().collect();
        cluster.settle();
        prop_assert!(is_even(&cluster.held(&cluster.usual)));
        prop_assert!(cluster.moves <= cluster.published.len());
    }

    #[test]
    fn a_node_is_drained_by_moving_each_of_its_vips_once(vip_count in 1..60u8, nodes in 2..5u8) {
        let mut cluster = cluster(&numbers(vip_count), &numbers(nodes));
        let before = cluster.held(&cluster.usual);
        cluster.usual.remove("node1");
        cluster.emptied.insert("node1".to_owned());
        cluster.settle();
        prop_assert_eq!(cluster.moves, before[0]);
        prop_assert!(is_even(&cluster.held(&cluster.usual)));
    }
}

#[test]
fn vips_that_the_first_node_took_before_others_were_there_are_spread_if_nobody_uses_them() {
    let mut cluster = cluster(&numbers(252), &numbers(1));
    cluster.usual = set(&numbers(3));
    cluster.settle();
    assert_eq!(cluster.held(&cluster.usual), [252, 0, 0], "they are fine where they are");
    cluster.movable = cluster.published.keys().copied().collect();
    cluster.settle();
    assert_eq!(cluster.held(&cluster.usual), [84, 84, 84]);
    assert_eq!(cluster.moves, 168);
    assert!(cluster.published.values().all(|list| list.len() == 3));
}

#[test]
fn a_vip_moves_to_the_preferred_node_and_stays_there() {
    let mut cluster = cluster(&numbers(1), &numbers(3));
    let vip: Address = "192.0.2.1".parse().unwrap();
    let holder = cluster.holders[&vip].clone();
    let other = cluster.usual.iter().find(|node| **node != holder).unwrap().clone();
    cluster.preferred.insert(vip, other.clone());
    assert_eq!(cluster.decide()[&vip], std::slice::from_ref(&other), "nobody else");
    cluster.settle();
    assert_eq!(cluster.holders[&vip], other);
    assert_eq!(cluster.published[&vip].len(), 3);
    cluster.preferred.clear();
    cluster.settle();
    assert_eq!((&cluster.holders[&vip], cluster.moves), (&other, 0));
}

#[test]
fn spare_nodes_come_last_and_emptied_ones_only_when_there_are_no_others() {
    let vips = vips(&numbers(9)).into_iter().map(|vip| (vip, Vip::default())).collect();
    let mut nodes = Nodes {
        usual: ["a", "b"].into(),
        spare: ["c"].into(),
        emptied: ["d"].into(),
        ..Nodes::default()
    };
    let of = candidates(&vips, &nodes, &BTreeMap::new());
    assert!(of.values().all(|list| list.len() == 3 && list.last().unwrap() == "c"));
    nodes.usual.clear();
    nodes.spare.clear();
    let of = candidates(&vips, &nodes, &of);
    assert!(of.values().all(|list| list == &["d"]));
}

#[test]
fn of_many_nodes_some_are_named_and_the_holder_always() {
    let nodes: Vec<String> = (0..100).map(|n| format!("node{n}")).collect();
    let vips = vips(&(1..=252).collect());
    let of = run(&vips, &nodes, &BTreeMap::new());
    assert!(of.values().all(|list| list.len() == MOST));
    let named: BTreeSet<_> = of.values().flatten().collect();
    assert_eq!(named.len(), 100);
    let mut nodes = usual(&nodes);
    nodes.usual.remove("node77");
    nodes.spare.insert("node77");
    let held = vips.iter().map(|&vip| (vip, Vip { holder: Some("node77"), ..Vip::default() }));
    let of = candidates(&held.collect(), &nodes, &of);
    assert!(of.values().all(|list| list.len() == MOST && list.last().unwrap() == "node77"));
}

#[test]
fn without_a_node_there_is_no_candidate() {
    let of = run(&vips(&[1].into()), &[], &BTreeMap::new());
    assert_eq!(of.into_values().collect::<Vec<_>>(), [Vec::<String>::new()]);
}
