//! Each rule by itself.

use std::time::Duration;

use shared::VipPath;
use shared::config_map::{BlockUse, NodeBlocks};
use shared::crd::{BlocksStatus, PathTaken};

use super::super::{Allocator, KEEP_EMPTY, PATIENCE, QUARANTINE};
use super::cluster::{Cluster, blocks, vip};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_node_gets_blocks_with_its_first_pod_and_keeps_them() {
    let mut cluster = Cluster::new(5);
    cluster.pass();
    assert_eq!(cluster.published, Some([].into()), "an object from the beginning");
    cluster.pods(&["n2"]);
    cluster.pass();
    assert_eq!(cluster.of("n2"), "1,2,3,4,5,6");
    cluster.pods(&["n1", "n2", "n5"]);
    cluster.pass();
    assert_eq!(cluster.of("n1"), "7,8,9,10,11,12");
    assert_eq!(cluster.of("n5"), "13,14,15,16,17,18");
    cluster.settle();
    let writes = cluster.writes;
    cluster.minutes(60);
    assert_eq!(cluster.writes, writes);
    // Another controller finds nothing to do.
    cluster.allocator = Allocator::default();
    cluster.minutes(60);
    assert_eq!(cluster.writes, writes);
    let counts = BlocksStatus { nodes: 3, given: 18, draining: 0, free: 29 };
    let verdict = cluster.verdict.as_ref().unwrap();
    assert_eq!((verdict.taken, verdict.blocks), (PathTaken::Direct, Some(counts)));
    assert_eq!(cluster.reason(), "Proven");
}

#[test]
fn a_node_without_pods_gives_back_after_a_while() {
    let mut cluster = Cluster::new(3);
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    cluster.pods(&["n2"]);
    cluster.minutes(9);
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    cluster.pods(&["n1", "n2"]);
    cluster.minutes(1);
    cluster.connections.insert("n1".into(), blocks([2]));
    cluster.pods(&["n2"]);
    // A new controller waits anew.
    cluster.minutes(8);
    cluster.allocator = Allocator::default();
    cluster.minutes(9);
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    cluster.minutes(2);
    assert_eq!(cluster.of("n1"), "draining 2");
    // Pods again: others, for the agent might not have read yet that this one drains.
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    assert_eq!(cluster.of("n1"), "1,3,4,5,6,7,8,17 draining 2");
    cluster.connections.clear();
    cluster.settle();
    assert_eq!(cluster.of("n1"), "1,3,4,5,6,7,8,17");
    assert_eq!(cluster.of("n2"), "9,10,11,12,13,14,15,16");
}

#[test]
fn what_the_owner_has_not_read_is_not_taken_away() {
    let mut cluster = Cluster::new(2);
    cluster.deaf.insert("n1".into());
    cluster.pods(&["n1"]);
    cluster.settle();
    cluster.pods(&[]);
    cluster.minutes(30);
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    // Also if it has reported before that it has none.
    cluster.reports.insert("n1".into(), [].into());
    cluster.direct = false;
    cluster.minutes(30);
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    assert!(cluster.says().starts_with("Draining: the agent on Node n1 is yet to say"));
    cluster.deaf.clear();
    cluster.connections.insert("n1".into(), blocks([1, 2]));
    cluster.settle();
    assert_eq!(cluster.of("n1"), "draining 1,2");
    // A report that is gone, or not understood, says nothing.
    cluster.connections.clear();
    cluster.deaf.insert("n1".into());
    cluster.reports.clear();
    cluster.minutes(30);
    assert_eq!(cluster.of("n1"), "draining 1,2");
    cluster.deaf.clear();
    cluster.settle();
    assert_eq!(cluster.of("n1"), "");
}

#[test]
fn on_the_other_path_all_drains_then_the_object_goes() {
    let mut cluster = Cluster::new(2);
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    cluster.connections.insert("n1".into(), blocks([3]));
    cluster.direct = false;
    cluster.settle();
    assert_eq!((cluster.of("n1").as_str(), cluster.of("n2").as_str()), ("draining 3", ""));
    let verdict = cluster.verdict.clone().unwrap();
    let counts = BlocksStatus { nodes: 1, given: 1, draining: 1, free: 46 };
    assert_eq!((verdict.taken, verdict.blocks), (PathTaken::ViaHolder, Some(counts)));
    assert_eq!(
        cluster.says(),
        "Draining: new connections go over the holder; those that Node n1 translates end as they \
         began"
    );
    cluster.connections.clear();
    cluster.settle();
    assert_eq!(cluster.published, Some([].into()));
    assert_eq!(cluster.verdict.clone().unwrap().blocks, None);
    assert_eq!(cluster.says(), "");
    cluster.minutes(KEEP_EMPTY.as_secs() / 60 - 1);
    assert_eq!(cluster.published, Some([].into()));
    cluster.minutes(2);
    assert_eq!(cluster.published, None);
    // And it can begin again.
    cluster.direct = true;
    cluster.settle();
    assert_eq!(cluster.of("n1").len(), "1,2,3,4,5,6,7,8".len());
}

#[test]
fn the_blocks_of_a_node_that_is_gone_are_in_quarantine() {
    let mut cluster = Cluster::new(3);
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    let address = cluster.nodes.remove("n1").unwrap();
    cluster.pods(&["n2"]);
    cluster.pass();
    assert_eq!(cluster.of("n1"), "draining 1,2,3,4,5,6,7,8");
    cluster.now += QUARANTINE / 2;
    cluster.pass();
    assert_eq!(cluster.next, Some(cluster.now + QUARANTINE / 2));
    cluster.allocator = Allocator::default();
    cluster.now += QUARANTINE / 2;
    cluster.pass();
    assert_eq!(cluster.of("n1"), "draining 1,2,3,4,5,6,7,8", "a new controller waits anew");
    cluster.minutes(4);
    assert_eq!(cluster.of("n1"), "draining 1,2,3,4,5,6,7,8");
    cluster.minutes(1);
    assert_eq!(cluster.published.as_ref().unwrap()["n1"].all().count(), 0);
    // It is named until its agent, should there be one, has seen that.
    cluster.minutes(14);
    assert!(cluster.published.as_ref().unwrap().contains_key("n1"));
    cluster.minutes(2);
    assert!(!cluster.published.as_ref().unwrap().contains_key("n1"));
    // The node is back, and its old report says that it may use what it had: others.
    assert_eq!(cluster.reports["n1"][&vip()].blocks, blocks(1..9));
    cluster.nodes.insert("n1".into(), address);
    cluster.pods(&["n1", "n2", "n3"]);
    cluster.pass();
    assert_eq!(cluster.of("n1"), "17,18,19,20,21,22,23,24 draining 1,2,3,4,5,6,7,8");
    assert_eq!(cluster.of("n3"), "25,26,27,28,29,30,31,32");
    cluster.settle();
    assert_eq!(cluster.of("n1"), "17,18,19,20,21,22,23,24");
}

#[test]
fn who_runs_short_gets_more_and_who_is_idle_gives_back() {
    let mut cluster = Cluster::new(16);
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    assert_eq!(cluster.of("n1"), "1,2");
    cluster.used.insert("n1".into(), 1400);
    cluster.settle();
    assert_eq!(cluster.of("n1"), "1,2", "1400 of 2048 is enough");
    cluster.used.insert("n1".into(), 1500);
    cluster.settle();
    assert_eq!(cluster.of("n1"), "1,2,5,6");
    cluster.used.insert("n1".into(), 60_000);
    cluster.settle();
    assert_eq!(cluster.open("n1").len(), 24, "never more than half of the ports");
    assert_eq!(cluster.reason(), "Exhausted");
    assert!(cluster.says().contains("Node n1 used up nearly all"), "{}", cluster.says());
    cluster.used.insert("n1".into(), 1400);
    cluster.minutes(2);
    assert_eq!(cluster.reason(), "Proven");
    cluster.minutes(7);
    assert_eq!(cluster.open("n1").len(), 24);
    cluster.minutes(3);
    assert_eq!(cluster.of("n1"), "1,2,5,6", "the lowest stay");
    // Never below the share it got first.
    cluster.used.clear();
    cluster.minutes(30);
    assert_eq!(cluster.of("n1"), "1,2");
    assert_eq!(cluster.of("n2"), "3,4");
}

#[test]
fn a_node_that_has_none_gets_what_others_can_spare() {
    let mut cluster = Cluster::new(4);
    cluster.pods(&["n1", "n2", "n3"]);
    cluster.settle();
    cluster.used.insert("n1".into(), 5_000);
    cluster.used.insert("n2".into(), 5_800);
    cluster.settle();
    // All of them have more than they need, for many nodes have come.
    (5..=60).for_each(|number| cluster.join(number));
    let names: Vec<String> = (1..=60).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.pods(&names[..25]);
    cluster.settle();
    let without = |cluster: &Cluster| {
        let nodes = cluster.with_pods.iter();
        nodes.filter(|node| cluster.open(node).is_empty()).count()
    };
    let before = (cluster.open("n1"), cluster.open("n2"), cluster.open("n3"));
    assert!(without(&cluster) > 0);
    assert_eq!(cluster.reason(), "NoFreeBlock");
    cluster.now += Duration::from_secs(31);
    cluster.settle();
    assert_eq!(without(&cluster), 0, "{:?}", cluster.published);
    assert_eq!((cluster.open("n1"), cluster.open("n2")), (before.0, before.1), "they need theirs");
    assert!(cluster.open("n3").len() < before.2.len());
    assert_eq!(cluster.reason(), "Proven");
}

#[test]
fn what_is_used_and_nobodys_drains_at_who_uses_it() {
    let mut cluster = Cluster::new(3);
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    // A hand deletes the object.
    cluster.published = None;
    cluster.allocator = Allocator::default();
    cluster.pods(&["n1", "n2", "n3"]);
    cluster.pass();
    assert_eq!(cluster.of("n1"), "17,18,19,20,21,22,23,24 draining 1,2,3,4,5,6,7,8");
    assert_eq!(cluster.of("n2"), "25,26,27,28,29,30,31,32 draining 9,10,11,12,13,14,15,16");
    assert_eq!(cluster.of("n3"), "33,34,35,36,37,38,39");
    cluster.settle();
    assert_eq!(cluster.of("n1"), "17,18,19,20,21,22,23,24");
    // Two that use one: nobody gets it before at most one does.
    let both = |path| BlockUse { blocks: blocks([1]), path, ..BlockUse::default() };
    cluster.deaf = ["n1", "n2"].map(str::to_owned).into();
    for node in ["n1", "n2"] {
        cluster.reports.insert(node.into(), [(vip(), both(VipPath::Direct))].into());
    }
    cluster.pods(&["n1", "n2", "n3"]);
    cluster.minutes(30);
    let block = blocks([1]);
    let named = cluster.published.as_ref().unwrap().values().flat_map(NodeBlocks::all);
    assert_eq!(named.filter(|of| block.contains(of)).count(), 0);
}

#[test]
fn answers_follow_a_node_to_its_new_address() {
    let mut cluster = Cluster::new(2);
    cluster.pods(&["n1"]);
    cluster.settle();
    let via = |cluster: &Cluster| cluster.published.as_ref().unwrap()["n1"].via.to_string();
    assert_eq!(via(&cluster), "192.168.0.1");
    let new = ["10.0.0.1", "fd00::1", "192.168.0.77"].map(|addr| addr.parse().unwrap());
    cluster.nodes.insert("n1".into(), new.into());
    cluster.settle();
    assert_eq!(via(&cluster), "192.168.0.77");
    cluster.nodes.insert("n1".into(), vec!["fd00::1".parse().unwrap()]);
    cluster.settle();
    assert_eq!(via(&cluster), "192.168.0.77", "the last one that is known");
    cluster.nodes.insert("n2".into(), Vec::new());
    cluster.pods(&["n1", "n2"]);
    cluster.settle();
    assert_eq!(cluster.of("n2"), "");
    assert_eq!(
        cluster.says(),
        "NoAddress: Node n2 has no InternalIP of the VIP's family, so answers could not be passed \
         on: pods there leave over the holder; run its pods on other nodes"
    );
}

#[test]
fn what_stands_in_the_way_is_said_after_a_moment() {
    let mut cluster = Cluster::new(3);
    cluster.pass();
    assert_eq!(cluster.reason(), "NoPods");
    cluster.pods(&["n1", "n2"]);
    cluster.deaf = ["n1", "n2"].map(str::to_owned).into();
    cluster.pass();
    assert_eq!(cluster.reason(), "Starting");
    assert_eq!(cluster.next, Some(cluster.now + Duration::from_secs(10)));
    cluster.now += Duration::from_secs(10);
    cluster.pass();
    assert!(cluster.says().starts_with("NoAnswer: Nodes n1, n2 did not report"));
    cluster.deaf = ["n2".to_owned()].into();
    cluster.settle();
    assert!(cluster.says().starts_with("NoAnswer: Node n2 did not report"));
    let of = BlockUse {
        blocks: cluster.open("n2"),
        path: VipPath::ViaHolder,
        used: 0,
        message: "no answer to probes".into(),
    };
    cluster.reports.insert("n2".into(), [(vip(), of)].into());
    cluster.pass();
    assert!(cluster.says().starts_with("NotProven: Node n2 (no answer to probes) cannot use"));
    let taken = |cluster: &Cluster| cluster.verdict.as_ref().unwrap().taken;
    assert_eq!(taken(&cluster), PathTaken::Mixed);
    // Who comes later does not undo what is said of all, at least not at once.
    cluster.deaf.clear();
    cluster.settle();
    assert_eq!((cluster.reason().as_str(), taken(&cluster)), ("Proven", PathTaken::Direct));
    cluster.pods(&["n1", "n2", "n3"]);
    cluster.pass();
    assert_eq!(cluster.reason(), "Proven");
    // A new controller does not wait where another one has.
    cluster.agents();
    cluster.reports.remove("n1");
    cluster.allocator = Allocator::default();
    cluster.pass();
    assert_eq!(cluster.reason(), "NoAnswer");
}

#[test]
fn times_count_only_while_one_looks() {
    let mut cluster = Cluster::new(2);
    cluster.pods(&["n1"]);
    cluster.settle();
    cluster.pods(&[]);
    cluster.pass();
    // Frozen, and nobody knows what has happened meanwhile.
    cluster.now += PATIENCE + MINUTE;
    cluster.pass();
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    cluster.minutes(9);
    assert_eq!(cluster.of("n1"), "1,2,3,4,5,6,7,8");
    cluster.minutes(2);
    assert_eq!(cluster.of("n1"), "");
}
