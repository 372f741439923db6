//! Large clusters over days.

use std::collections::{BTreeMap, VecDeque};

use super::cluster::Cluster;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn of_63_nodes_at_once_47_get_a_block_and_the_others_are_named() {
    let mut cluster = Cluster::new(63);
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.pods(&names);
    cluster.pass();
    assert_eq!(cluster.writes, 1);
    cluster.settle();
    let with =
        |cluster: &Cluster| names.iter().filter(|node| cluster.open(node).len() == 1).count();
    assert_eq!(with(&cluster), 47);
    let without: Vec<&str> =
        names.iter().copied().filter(|node| cluster.open(node).is_empty()).collect();
    assert_eq!(
        cluster.says(),
        format!(
            "NoFreeBlock: Nodes {}, {}, {} and 13 more got none of its blocks of ports, for none is \
             free: pods there leave over the holder; run its pods on fewer nodes, or give some of \
             them another Vip",
            without[0], without[1], without[2]
        )
    );
    // Nobody's block is taken for them.
    let before = cluster.published.clone();
    cluster.minutes(60);
    assert_eq!(cluster.published, before);
    // Pods leave 16 nodes: the others get theirs, soon for they are in need.
    let stay: Vec<&str> = names[16..].to_vec();
    cluster.pods(&stay);
    cluster.minutes(3);
    assert!(stay.iter().all(|node| cluster.open(node).len() == 1), "{:?}", cluster.published);
    assert_eq!(cluster.reason(), "Proven");
}

#[test]
fn thousands_of_nodes_come_and_go() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut cluster = Cluster::new(30);
    let mut joined = 30;
    // Until when each node with pods has them, in minutes.
    let mut busy: BTreeMap<String, u64> = BTreeMap::new();
    let mut gone = VecDeque::new();
    let mut changes = 0;
    for minute in 0..5_000 {
        if dice.below(2) == 0 {
            joined += 1;
            cluster.join(joined);
        }
        while cluster.nodes.len() > 40 {
            let place = usize::try_from(dice.below(cluster.nodes.len() as u64)).unwrap();
            let name = cluster.nodes.keys().nth(place).unwrap().clone();
            cluster.nodes.remove(&name);
            cluster.deaf.remove(&name);
            busy.remove(&name);
            // Reports of nodes that are gone stay; here for some hours.
            gone.push_back(name);
            if gone.len() > 100 {
                cluster.reports.remove(&gone.pop_front().unwrap());
            }
        }
        busy.retain(|_, until| *until > minute);
        if busy.len() < 25 {
            let place = usize::try_from(dice.below(cluster.nodes.len() as u64)).unwrap();
            let name = cluster.nodes.keys().nth(place).unwrap().clone();
            busy.insert(name.clone(), minute + 1 + dice.below(120));
            if dice.below(20) == 0 {
                cluster.deaf.insert(name);
            }
        }
        if dice.below(10) == 0 {
            cluster.deaf.pop_first();
        }
        if dice.below(200) == 0 {
            cluster.allocator = super::super::Allocator::default();
        }
        let before: BTreeMap<_, _> =
            busy.keys().map(|node| (node.clone(), cluster.open(node))).collect();
        cluster.with_pods = busy.keys().cloned().collect();
        let writes = cluster.writes;
        cluster.minutes(1);
        changes += cluster.writes - writes;
        for (node, had) in before {
            let has = cluster.open(&node);
            assert!(!has.is_empty(), "minute {minute}: {node} has pods and no block");
            assert!(had.is_subset(&has), "minute {minute}: {node} lost what it had for no reason");
        }
    }
    assert!(joined > 2_000, "{joined}");
    assert!(changes > 1_000 && changes < 20_000, "{changes}");
    // All is quiet in the end, and only what is used is given.
    cluster.deaf.clear();
    cluster.with_pods.clear();
    cluster.minutes(40);
    assert_eq!(cluster.published, Some([].into()));
}
