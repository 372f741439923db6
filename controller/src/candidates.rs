//! Which nodes may hold a VIP, and which first.
//!
//! Each VIP has a first node, spread evenly; a VIP keeps the one it has unless that node is gone or
//! has two VIPs more than another. The nodes after it are in an order of the VIP's own, so that the
//! VIPs of a lost node spread over all that are left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shared::Vip;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How many nodes are named for a VIP: with more, the object would outgrow its limit of 1 MiB.
pub const MOST: usize = 32;

/// The nodes for each VIP, best first; `published` is what they were before.
///
/// `spare` nodes (those being emptied) come last.
pub fn candidates(
    vips: &BTreeSet<Vip>,
    gateways: &BTreeSet<&str>,
    spare: &BTreeSet<&str>,
    published: &BTreeMap<Vip, Vec<String>>,
) -> BTreeMap<Vip, Vec<String>> {
    let first = spread(vips, gateways, published);
    let list = |&vip: &Vip| {
        let mut names: Vec<&str> = first.get(&vip).copied().into_iter().collect();
        let others = gateways.iter().filter(|&&node| Some(&node) != first.get(&vip)).copied();
        names.extend(best(vip, others));
        names.extend(best(vip, spare.iter().copied()));
        (vip, names.into_iter().take(MOST).map(str::to_owned).collect())
    };
    vips.iter().map(list).collect()
}

/// The first node of each VIP: none has two more than another.
fn spread<'a>(
    vips: &BTreeSet<Vip>,
    nodes: &BTreeSet<&'a str>,
    published: &BTreeMap<Vip, Vec<String>>,
) -> BTreeMap<Vip, &'a str> {
    let mut held: BTreeMap<&str, BTreeSet<Vip>> =
        nodes.iter().map(|&node| (node, BTreeSet::new())).collect();
    let mut homeless = Vec::new();
    for &vip in vips {
        let before = published.get(&vip).and_then(|names| names.first());
        match before.and_then(|name| held.get_mut(name.as_str())) {
            Some(vips) => {
                vips.insert(vip);
            }
            None => homeless.push(vip),
        }
    }
    for vip in homeless {
        let dislikes = dislikes(vip);
        let least = held.iter_mut().min_by_key(|(node, vips)| (vips.len(), dislikes(node)));
        if let Some((_, vips)) = least {
            vips.insert(vip);
        }
    }
    even_out(&mut held);
    held.into_iter().flat_map(|(node, vips)| vips.into_iter().map(move |vip| (vip, node))).collect()
}

/// Moves as few VIPs as it takes from the fullest nodes to the emptiest.
fn even_out(held: &mut BTreeMap<&str, BTreeSet<Vip>>) {
    loop {
        let fullest = held.iter().max_by_key(|(node, vips)| (vips.len(), Reverse(**node)));
        let emptiest = held.iter().min_by_key(|(node, vips)| (vips.len(), **node));
        let (Some((&full, many)), Some((&empty, few))) = (fullest, emptiest) else { return };
        if many.len() <= few.len() + 1 {
            return;
        }
        let Some(vip) = many.iter().copied().min_by_key(|&vip| (dislikes(vip)(empty), vip)) else {
            return;
        };
        for (node, vips) in held.iter_mut() {
            if *node == full {
                vips.remove(&vip);
            } else if *node == empty {
                vips.insert(vip);
            }
        }
    }
}

/// The best of these nodes for the VIP, best first, at most [`MOST`].
fn best<'a>(vip: Vip, nodes: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let dislikes = dislikes(vip);
    let mut rated: Vec<_> = nodes.map(|node| (dislikes(node), node)).collect();
    if rated.len() > MOST {
        rated.select_nth_unstable(MOST);
        rated.truncate(MOST);
    }
    rated.sort_unstable();
    rated.into_iter().map(|(_, node)| node).collect()
}

/// How little each node suits the VIP: numbers that only the two decide.
fn dislikes(vip: Vip) -> impl Fn(&str) -> u64 {
    let seed = xxh3_64(vip.to_string().as_bytes());
    move |node| xxh3_64_with_seed(node.as_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn vips(numbers: &BTreeSet<u8>) -> BTreeSet<Vip> {
        numbers.iter().map(|n| format!("192.0.2.{n}").parse().unwrap()).collect()
    }

    fn names(numbers: &BTreeSet<u8>) -> Vec<String> {
        numbers.iter().map(|n| format!("node{n}")).collect()
    }

    fn run(
        vips: &BTreeSet<Vip>,
        nodes: &[String],
        published: &BTreeMap<Vip, Vec<String>>,
    ) -> BTreeMap<Vip, Vec<String>> {
        let nodes = nodes.iter().map(String::as_str).collect();
        candidates(vips, &nodes, &BTreeSet::new(), published)
    }

    fn loads(of: &BTreeMap<Vip, Vec<String>>, nodes: &[String]) -> Vec<usize> {
        let first = |node: &String| of.values().filter(|list| list.first() == Some(node)).count();
        nodes.iter().map(first).collect()
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
            let loads = loads(&after, &nodes);
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
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
                    let without: Vec<_> = list.iter().filter(|node| *node != lost).collect();
                    prop_assert_eq!(after[vip].iter().collect::<Vec<_>>(), without);
                }
            }
            prop_assert_eq!(&run(&vips, left, &after), &after);
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
    }

    #[test]
    fn a_node_that_is_emptied_comes_last() {
        let vips = vips(&(1..=9).collect());
        let of = candidates(&vips, &["a", "b"].into(), &["c"].into(), &BTreeMap::new());
        assert!(of.values().all(|list| list.len() == 3 && list.last().unwrap() == "c"));
    }

    #[test]
    fn of_many_nodes_some_are_named() {
        let nodes: Vec<String> = (0..100).map(|n| format!("node{n}")).collect();
        let of = run(&vips(&(1..=252).collect()), &nodes, &BTreeMap::new());
        assert!(of.values().all(|list| list.len() == MOST));
        let named: BTreeSet<_> = of.values().flatten().collect();
        assert_eq!(named.len(), 100);
    }

    #[test]
    fn without_a_node_there_is_no_candidate() {
        let of = run(&vips(&[1].into()), &[], &BTreeMap::new());
        assert_eq!(of.into_values().collect::<Vec<_>>(), [Vec::<String>::new()]);
    }
}
