//! Pods that objects name by their UIDs, and the addresses that are learnt of them.

use super::super::*;
use super::*;

const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";

fn addresses(ips: &[&str]) -> BTreeMap<PodUid, BTreeSet<PodIp>> {
    [(UID.parse().unwrap(), ips.iter().map(|ip| ip.parse().unwrap()).collect())].into()
}

#[test]
fn a_pod_expected_by_uid_is_mapped_when_its_address_is_learnt_whichever_comes_first() {
    let expected = || key("podip-vip-mappings-a", UID, Some("192.168.0.1"));
    let learnt = || addresses(&["10.0.0.1", "fd00::1"]);
    let mapped = ["10.0.0.1 192.168.0.1", "fd00::1 held"];

    let mut first = MappingsStore::of_node("a");
    assert!(first.apply(expected()).named);
    assert_eq!(pods(&first), [""; 0]);
    assert_eq!(first.learn(learnt()).pods.len(), 2);
    assert_eq!(pods(&first), mapped);

    let mut second = MappingsStore::of_node("a");
    assert_eq!(second.learn(learnt()), Effect::default());
    assert_eq!(second.apply(expected()).pods.len(), 2);
    assert_eq!(pods(&second), mapped);

    let mut elsewhere = MappingsStore::of_node("b");
    elsewhere.apply(expected());
    elsewhere.learn(learnt());
    assert_eq!(pods(&elsewhere), [""; 0], "it is another node's pod");
}

#[test]
fn a_learnt_address_stays_mapped_until_the_object_names_it_or_the_pod_is_gone() {
    let mut store = MappingsStore::of_node("a");
    store.apply(key("podip-vip-mappings-a", UID, Some("192.168.0.1")));
    store.learn(addresses(&["10.0.0.1"]));
    let named = [("10.0.0.1", "192.168.0.1")];
    assert_eq!(store.apply(whole("podip-vip-mappings-a", &named)).pods, [].into());
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1"]);
    store.apply(whole("podip-vip-mappings-a", &[(UID, "192.168.0.1")]));
    store.learn(BTreeMap::new());
    assert_eq!(pods(&store), [""; 0], "the address was given back");
    store.learn(addresses(&["10.0.0.1"]));
    store.apply(whole("podip-vip-mappings-a", &[]));
    assert_eq!(pods(&store), [""; 0], "nobody expects the pod");
}

#[test]
fn a_new_pod_never_inherits_what_its_address_is_mapped_to() {
    let mut store = MappingsStore::of_node("a");
    let old = ("10.0.0.1", "192.168.0.1");
    store.apply(whole("podip-vip-mappings-a", &[old, (UID, "192.168.0.2")]));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1"]);
    store.learn(addresses(&["10.0.0.1"]));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.2"]);
    assert_eq!(rejected(&store), [""; 0], "that is as it should be");
    store.apply(key("podip-vip-mappings-a", UID, Some("192.168.0.3,192.168.0.4,fd00::1")));
    assert_eq!(pods(&store), ["10.0.0.1 held"]);
    assert_eq!(
        rejected(&store),
        [format!(
            "podip-vip-mappings-a, key \"{UID}\", value \"192.168.0.3,192.168.0.4,fd00::1\": the pod \
             is held in that family because it names two VIPs of it; remove one"
        )]
    );
}

const OTHER: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22";

/// The object of node a, of a pod whose addresses are known.
fn with_addresses() -> MappingsStore {
    let mut store = MappingsStore::of_node("a");
    let entries = [("10.0.0.1", "192.168.0.1"), (&format!("{UID}.addresses"), "10.0.0.1,fd00::1")];
    store.apply(whole("podip-vip-mappings-a", &entries));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1"]);
    store
}

fn of_pods(pods: &[(&str, &str)]) -> BTreeMap<PodUid, BTreeSet<PodIp>> {
    let of_pod = |(uid, ip): &(&str, &str)| (uid.parse().unwrap(), [ip.parse().unwrap()].into());
    pods.iter().map(of_pod).collect()
}

#[test]
fn a_pod_that_no_object_knows_never_inherits_what_its_address_is_mapped_to() {
    let mut store = with_addresses();
    assert_eq!(store.learn(of_pods(&[(UID, "10.0.0.1")])), Effect::default());
    let effect = store.learn(of_pods(&[(OTHER, "10.0.0.1")]));
    assert_eq!(effect.pods, ["10.0.0.1".parse().unwrap()].into());
    assert_eq!(pods(&store), [""; 0]);
    assert_eq!(rejected(&store), [""; 0], "nobody's fault");
    store.learn(BTreeMap::new());
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1"], "nobody has it");

    let mut later = MappingsStore::of_node("a");
    later.learn(of_pods(&[(OTHER, "10.0.0.1")]));
    later.apply(key("podip-vip-mappings-a", "10.0.0.1", Some("192.168.0.1")));
    assert_eq!(pods(&later), ["10.0.0.1 192.168.0.1"], "nobody says whose it is");
    let addresses = format!("{UID}.addresses");
    later.apply(key("podip-vip-mappings-a", &addresses, Some("10.0.0.1")));
    assert_eq!(pods(&later), [""; 0]);
    later.apply(key("podip-vip-mappings-a", &addresses, Some("junk")));
    assert_eq!(pods(&later), ["10.0.0.1 192.168.0.1"]);
    assert_eq!(rejected(&later).len(), 1);
    later.apply(key("podip-vip-mappings-a", &addresses, None));
    assert_eq!(rejected(&later), [""; 0]);
}

#[test]
fn a_pod_keeps_its_vip_with_a_new_address_and_does_not_leave_it_to_the_next() {
    let mut store = with_addresses();
    store.learn(of_pods(&[(UID, "10.0.0.2")]));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1", "10.0.0.2 192.168.0.1"]);
    store.learn(of_pods(&[(UID, "10.0.0.2"), (OTHER, "10.0.0.1")]));
    assert_eq!(pods(&store), ["10.0.0.2 192.168.0.1"]);
    store.apply(key("podip-vip-mappings-a", "10.0.0.1", Some("192.168.0.7")));
    assert_eq!(pods(&store), ["10.0.0.2 192.168.0.7"], "its VIP changes");
    store.learn(of_pods(&[(UID, "fd00::2")]));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.7"], "nothing is said of that family");
}

#[test]
fn pods_that_nothing_is_for_are_told_of_their_own_node_alone() {
    let mut store = MappingsStore::of_node("a");
    assert!(store.apply(key("podip-vip-mappings-a", UID, Some("uncovered"))).named);
    store.apply(key("podip-vip-mappings-b", OTHER, Some("uncovered")));
    assert_eq!(store.uncovered(), [UID.parse().unwrap()].into());
    assert_eq!(store.expected(), [].into());
    store.apply(key("podip-vip-mappings-a", UID, Some("192.168.0.1")));
    assert_eq!(store.uncovered(), [].into());
    assert_eq!(store.expected().len(), 1);
}

#[test]
fn a_pod_that_is_gone_is_held_while_its_node_has_it() {
    let gone = || whole("podip-vip-mappings-a", &[(UID, "gone")]);
    let mut store = with_addresses();
    store.learn(addresses(&["10.0.0.1", "fd00::1"]));
    assert_eq!(store.apply(gone()).pods.len(), 2);
    assert_eq!(pods(&store), ["10.0.0.1 held", "fd00::1 held"]);
    assert_eq!((store.expected(), store.uncovered()), ([].into(), [].into()));
    assert_eq!(rejected(&store), [""; 0]);
    store.learn(of_pods(&[(OTHER, "10.0.0.1")]));
    assert_eq!(pods(&store), [""; 0], "another pod has the address");
    store.learn(addresses(&["10.0.0.1"]));
    store.learn(BTreeMap::new());
    assert_eq!(pods(&store), [""; 0], "its node is done with it");
    store.learn(addresses(&["10.0.0.1"]));
    assert_eq!(pods(&store), ["10.0.0.1 held"]);
    store.apply(key("podip-vip-mappings-a", UID, None));
    assert_eq!(pods(&store), [""; 0]);

    let mut elsewhere = MappingsStore::of_node("b");
    elsewhere.apply(gone());
    elsewhere.apply(whole("egress-node-a", &[("pods", &format!("{UID} 10.0.0.1"))]));
    assert_eq!(pods(&elsewhere), [""; 0], "that is for its own node");
}

#[test]
fn what_a_node_reports_of_its_pods_counts_while_its_object_expects_them() {
    let report = |node: &str, ip: &str| {
        whole(&format!("egress-node-{node}"), &[("pods", &format!("{UID} {ip}")), ("synced", "x")])
    };
    let mut store = MappingsStore::of_node("a");
    store.apply(whole("podip-vip-mappings-b", &[(UID, "192.168.0.1")]));
    store.apply(report("c", "10.0.0.3"));
    assert_eq!(pods(&store), [""; 0], "it is not a pod of that node");
    let effect = store.apply(report("b", "10.0.0.2"));
    assert_eq!(effect.pods, ["10.0.0.2".parse().unwrap()].into());
    assert_eq!(pods(&store), ["10.0.0.2 192.168.0.1"]);
    store.apply(missing("egress-node-b"));
    assert_eq!(pods(&store), [""; 0]);
    assert_eq!(store.missing().count(), 0, "nodes come and go");
    store.apply(report("b", "10.0.0.2"));
    store.apply(whole("podip-vip-mappings-b", &[]));
    assert_eq!(pods(&store), [""; 0]);

    store.apply(whole("podip-vip-mappings-a", &[(UID, "192.168.0.1")]));
    store.apply(report("a", "10.0.0.9"));
    assert_eq!(pods(&store), [""; 0], "a node knows better than its own report");
}
