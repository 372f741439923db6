mod latest;
mod uids;

use super::*;
use crate::Vip;
use crate::config_map::{NETWORKS, PODS, ROUTE_IDS, Reason};

type Data = BTreeMap<String, String>;

fn data(entries: &[(&str, &str)]) -> Data {
    entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn whole(object: &str, entries: &[(&str, &str)]) -> Change {
    Change { object: object.to_owned(), content: Content::Whole(data(entries)) }
}

fn key(object: &str, key: &str, value: Option<&str>) -> Change {
    let keys = vec![(key.to_owned(), value.map(str::to_owned))];
    Change { object: object.to_owned(), content: Content::Keys(keys) }
}

fn missing(object: &str) -> Change {
    Change { object: object.to_owned(), content: Content::Missing }
}

fn store(changes: impl IntoIterator<Item = Change>) -> MappingsStore {
    let mut store = MappingsStore::default();
    for change in changes {
        store.apply(change);
    }
    store
}

fn pods(store: &MappingsStore) -> Vec<String> {
    let text = |(pod, vip): (&PodIp, &Option<Vip>)| match vip {
        Some(vip) => format!("{pod} {vip}"),
        None => format!("{pod} held"),
    };
    store.mappings.pods().iter().map(text).collect()
}

fn rejected(store: &MappingsStore) -> Vec<String> {
    store.rejected().iter().map(ToString::to_string).collect()
}

#[test]
fn there_are_no_mappings_before_everything_was_read_once() {
    let mut store =
        store([key(PODS, "10.0.0.1", Some("")), whole(NETWORKS, &[]), missing(ROUTE_IDS)]);
    assert_eq!(
        store.mappings().unwrap_err().to_string(),
        "waiting for vip-routeid-mappings and podip-vip-mappings (or podip-vip-mappings-<node>); \
         create what is missing, it may be empty"
    );
    store.apply(whole("podip-vip-mappings-a", &[]));
    assert_eq!(store.mappings().unwrap_err().objects, [ROUTE_IDS]);
    store.apply(whole(ROUTE_IDS, &[]));
    assert_eq!(pods(&store), ["10.0.0.1 held"]);
    assert!(store.mappings().is_ok());
}

#[test]
fn a_missing_object_is_named_and_keeps_its_last_entries() {
    let entries = [("10.0.0.1", "192.168.0.1")];
    let mut store = store([whole("podip-vip-mappings-a", &entries), whole(ROUTE_IDS, &[])]);
    assert_eq!(store.apply(missing("podip-vip-mappings-a")), Effect::default());
    store.apply(missing(ROUTE_IDS));
    store.apply(missing(PODS));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.1"]);
    assert_eq!(store.missing().collect::<Vec<_>>(), ["podip-vip-mappings-a", ROUTE_IDS]);

    store.apply(whole("podip-vip-mappings-a", &[]));
    assert_eq!(pods(&store), [""; 0]);
    assert_eq!(store.missing().collect::<Vec<_>>(), [ROUTE_IDS]);
}

#[test]
fn the_objects_of_nodes_beat_that_of_the_cluster_and_the_lower_name_beats_the_higher() {
    let mut store = store([
        whole(PODS, &[("10.0.0.1", "192.168.0.1"), ("10.0.0.2", "192.168.0.2")]),
        whole("podip-vip-mappings-b", &[("10.0.0.1", "192.168.0.2")]),
        whole(
            "podip-vip-mappings-a",
            &[("10.0.0.1", "192.168.0.3"), ("10.0.0.2", "192.168.0.2\n")],
        ),
    ]);
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.3", "10.0.0.2 192.168.0.2"]);
    let winner = "the same address has another value in podip-vip-mappings-a under key \"10.0.0.1\", \
                  which counts; remove one of the two";
    assert_eq!(
        rejected(&store),
        [
            format!("podip-vip-mappings, key \"10.0.0.1\", value \"192.168.0.1\": {winner}"),
            format!("podip-vip-mappings-b, key \"10.0.0.1\", value \"192.168.0.2\": {winner}"),
        ]
    );

    store.apply(key("podip-vip-mappings-a", "10.0.0.1", None));
    store.apply(key(PODS, "10.0.0.1", None));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.2", "10.0.0.2 192.168.0.2"]);
    assert_eq!(rejected(&store), [""; 0]);
}

#[test]
fn a_bad_value_holds_the_pod_whatever_other_objects_say() {
    let store = store([
        whole(PODS, &[("10.0.0.1", "192.168.0.1")]),
        whole("podip-vip-mappings-a", &[("10.0.0.1", "oops")]),
    ]);
    assert_eq!(pods(&store), ["10.0.0.1 held"]);
    let reasons: Vec<Reason> = store.rejected().into_iter().map(|entry| entry.reason).collect();
    assert!(matches!(reasons[..], [Reason::Contradicted { .. }, Reason::NoVip(_)]));
}

#[test]
fn pods_and_vips_come_back_when_the_entry_in_their_way_goes() {
    let mut store = store([
        whole(ROUTE_IDS, &[("192.168.0.1", "7"), ("192.168.0.2", "7"), ("192.168.0.9", "8")]),
        whole(NETWORKS, &[("node-addresses", "192.168.0.9")]),
        whole(PODS, &[("10.0.0.1", "192.168.0.2"), ("192.168.0.1", ""), ("192.168.0.9", "")]),
    ]);
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.2"]);
    assert_eq!(
        rejected(&store),
        [
            "podip-vip-mappings, key \"192.168.0.1\", value \"\": pod IP 192.168.0.1 is itself a \
             VIP; remove the one or the other",
            "podip-vip-mappings, key \"192.168.0.9\", value \"\": pod IP 192.168.0.9 is the address \
             of a node; map only pods that have their own address",
            "vip-routeid-mappings, key \"192.168.0.2\", value \"7\": route id 7 of VIP 192.168.0.2 \
             belongs to VIP 192.168.0.1; give it a free one",
            "vip-routeid-mappings, key \"192.168.0.9\", value \"8\": VIP 192.168.0.9 is the address \
             of a node; choose an address that no host has",
        ]
    );
    let problems: Vec<String> =
        store.mappings().unwrap().problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "VIP 192.168.0.2 has no route id, so external traffic is dropped for 10.0.0.1; give the VIP \
          a route id or map the pods to another VIP"
        ]
    );

    let effect = store.apply(key(ROUTE_IDS, "192.168.0.1", None));
    assert_eq!(pods(&store), ["10.0.0.1 192.168.0.2", "192.168.0.1 held"]);
    assert_eq!(effect.pods, ["192.168.0.1".parse().unwrap()].into());
    assert!(effect.vips && !effect.networks);
    assert_eq!(store.mappings().unwrap().problems(), []);

    store.apply(whole(NETWORKS, &[]));
    assert_eq!(
        pods(&store),
        ["10.0.0.1 192.168.0.2", "192.168.0.1 held"],
        "192.168.0.9 is a VIP now"
    );
}

#[test]
fn objects_of_others_are_ignored() {
    let entries = [("10.0.0.1", "192.168.0.1")];
    let names = ["vip-configmap", "vip-candidates", "egress-node-a", "podip-vip-mappings-", "x"];
    let store = store(names.map(|name| whole(name, &entries)));
    assert_eq!((pods(&store), rejected(&store), store.missing().count()), (vec![], vec![], 0));
}

#[test]
fn blocks_come_and_go_with_their_objects() {
    const OBJECT: &str = "vip-blocks-192.168.0.1";
    let vip: Vip = "192.168.0.1".parse().unwrap();
    let mut store = MappingsStore::default();
    assert!(store.apply(whole(OBJECT, &[("n1", "1 via 192.168.0.11")])).vips);
    assert!(!store.apply(whole(OBJECT, &[("n1", "1 via  192.168.0.11")])).vips);
    // An object that is gone with what it said goes on to count.
    assert!(!store.apply(missing(OBJECT)).vips);
    assert_eq!(store.missing().collect::<Vec<_>>(), [OBJECT]);
    assert_eq!(store.mappings.blocks()[&vip]["n1"].open.len(), 1);
    // Its holder keeps clear of blocks until it is gone after it was empty.
    assert!(store.apply(whole(OBJECT, &[])).vips);
    assert!(store.mappings.blocks().contains_key(&vip));
    assert!(store.apply(missing(OBJECT)).vips);
    assert!(!store.mappings.blocks().contains_key(&vip));
    assert_eq!(store.missing().count(), 0);
}
