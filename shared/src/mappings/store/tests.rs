use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::Vip;
use crate::config_map::{
    NETWORKS, PODS, PodKey, ROUTE_IDS, Reason, decode_expected, decode_pods, decode_route_ids,
};

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

fn any_object() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(ROUTE_IDS),
        2 => Just(NETWORKS),
        3 => Just(PODS),
        3 => Just("podip-vip-mappings-a"),
        3 => Just("podip-vip-mappings-b"),
        1 => Just("vip-configmap"),
        1 => Just("podip-vip-mappings-"),
    ]
    .prop_map(str::to_owned)
}

fn any_uid() -> impl Strategy<Value = PodUid> {
    "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c2[1-3]".prop_map(|text| text.parse().unwrap())
}

/// What is known on the node of which pods have which addresses.
fn any_addresses() -> impl Strategy<Value = BTreeMap<PodUid, BTreeSet<PodIp>>> {
    let ip = "(10\\.0\\.0\\.[1-4]|fd00::[12])".prop_map(|text| text.parse().unwrap());
    btree_map(any_uid(), proptest::collection::btree_set(ip, 0..3), 0..3)
}

/// Few enough that entries of different objects meet each other.
fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "10\\.0\\.0\\.[1-4]",
        4 => "(fd|FD)00-(0-|-)-[1-2]",
        3 => "pod-subnets|service-subnets|node-addresses",
        2 => any_uid().prop_map(|uid| uid.to_string()),
        1 => "junk[12]",
    ]
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "10\\.0\\.0\\.[1-4]",
        2 => "fd00::[1-2]",
        3 => "[1-3]",
        1 => "10\\.0\\.0\\.[0-4]/(30|31),fd00::[12]",
        1 => Just(String::new()),
        1 => "10\\.0\\.0\\.[1-4],fd00::[1-2]",
        1 => "garbage[12]",
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let content = prop_oneof![
        3 => btree_map(any_key(), any_value(), 0..8).prop_map(Content::Whole),
        5 => vec((any_key(), proptest::option::weighted(0.7, any_value())), 0..4)
            .prop_map(Content::Keys),
        1 => Just(Content::Missing),
    ];
    (any_object(), content).prop_map(|(object, content)| Change { object, content })
}

#[derive(Clone, Debug)]
enum News {
    Change(Change),
    Learnt(BTreeMap<PodUid, BTreeSet<PodIp>>),
}

fn any_news() -> impl Strategy<Value = News> {
    prop_oneof![
        4 => any_change().prop_map(News::Change),
        1 => any_addresses().prop_map(News::Learnt),
    ]
}

/// What the latest content of each object is, found in the plainest way.
#[derive(Default)]
struct Latest {
    objects: BTreeMap<String, Data>,
    read: BTreeSet<String>,
    missing: BTreeSet<String>,
    learnt: BTreeMap<PodUid, BTreeSet<PodIp>>,
}

impl Latest {
    fn apply(&mut self, change: Change) {
        let Change { object, content } = change;
        if Object::of_name(&object).is_none() {
            return;
        }
        if content == Content::Missing {
            if self.read.contains(&object) {
                self.missing.insert(object);
            }
            return;
        }
        self.missing.remove(&object);
        match content {
            Content::Whole(data) => {
                self.read.insert(object.clone());
                self.objects.insert(object, data);
            }
            Content::Keys(keys) => {
                let data = self.objects.entry(object).or_default();
                for (key, value) in keys {
                    data.remove(&key);
                    data.extend(value.map(|value| (key, value)));
                }
            }
            Content::Missing => {}
        }
    }

    fn of(&self, object: &str) -> Data {
        self.objects.get(object).cloned().unwrap_or_default()
    }

    /// The objects with pods, the one that wins first.
    fn pod_objects(&self) -> Vec<&String> {
        let of_pods = |name: &&String| name.starts_with(PODS);
        let mut names: Vec<_> = self.objects.keys().filter(of_pods).collect();
        names.sort_by_key(|name| (name.as_str() == PODS, *name));
        names
    }

    fn mappings(&self) -> Mappings {
        let vips = decode_route_ids(ROUTE_IDS, &self.of(ROUTE_IDS)).entries;
        let networks = decode_networks(NETWORKS, &self.of(NETWORKS)).entries;
        Mappings::new(vips, self.claimed(), networks).0
    }

    fn claimed(&self) -> BTreeMap<PodIp, Option<Vip>> {
        let mut pods = self.joined();
        for name in self.pod_objects() {
            for (pod, vip) in decode_pods(name, &self.of(name)).entries {
                pods.entry(pod).or_insert(vip);
            }
        }
        pods
    }

    /// What follows from UIDs and addresses learnt.
    fn joined(&self) -> BTreeMap<PodIp, Option<Vip>> {
        let mut joined = BTreeMap::new();
        for name in self.pod_objects().into_iter().rev() {
            for (uid, of) in decode_expected(name, &self.of(name)).entries {
                let ips = self.learnt.get(&uid).into_iter().flatten();
                joined.extend(ips.map(|ip| (*ip, of.of(*ip))));
            }
        }
        joined
    }

    /// Object and key of every entry with a pod that does not count as it was meant.
    fn rejected_pods(&self) -> BTreeSet<(String, String)> {
        let (claimed, joined, mappings) = (self.claimed(), self.joined(), self.mappings());
        let mut rejected = BTreeSet::new();
        for name in self.pod_objects() {
            for (key, value) in self.of(name) {
                let fine = config_map::pod_key(&key).ok().is_some_and(|pod| match pod {
                    PodKey::AddressesOf(_) => config_map::pod_addresses(&value).is_ok(),
                    PodKey::Uid(_) => config_map::expected_value(&value).1.is_none(),
                    PodKey::Ip(pod) => {
                        let wish = config_map::pod_value(pod, &value);
                        mappings.pods().contains_key(&pod)
                            && wish
                                .is_ok_and(|vip| vip == claimed[&pod] || joined.contains_key(&pod))
                    }
                });
                if !fine {
                    rejected.insert((name.clone(), key));
                }
            }
        }
        rejected
    }

    fn store(&self) -> MappingsStore {
        let mut store = MappingsStore::default();
        for (object, data) in &self.objects {
            let content = Content::Whole(data.clone());
            store.apply(Change { object: object.clone(), content });
        }
        store.learn(self.learnt.clone());
        store
    }
}

fn check_guarantees(mappings: &Mappings) -> Result<(), TestCaseError> {
    let Mappings { vips, pods, networks, blocks: _ } = mappings;
    let ids: BTreeSet<_> = vips.values().collect();
    prop_assert_eq!(ids.len(), vips.len());
    let nodes = networks.node_addresses();
    for vip in vips.keys() {
        let subnets = networks.pod_subnets().iter().chain(networks.service_subnets());
        prop_assert!(!subnets.into_iter().any(|net| net.contains(&vip.addr())));
        prop_assert!(!nodes.contains(&vip.addr()));
    }
    for (pod, vip) in pods {
        prop_assert!(!nodes.contains(&pod.addr()));
        prop_assert!(!vips.keys().any(|vip| vip.addr() == pod.addr()));
        prop_assert!(vip.is_none_or(|vip| vip.is_ipv4() == pod.is_ipv4()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changes_one_by_one_amount_to_what_the_objects_say_in_the_end(
        changes in vec(any_news(), 0..16)
    ) {
        let (mut store, mut latest) = (MappingsStore::default(), Latest::default());
        for change in changes {
            let before = store.mappings.clone();
            let effect = match change {
                News::Change(change) => {
                    latest.apply(change.clone());
                    store.apply(change)
                }
                News::Learnt(addresses) => {
                    latest.learnt.clone_from(&addresses);
                    store.learn(addresses)
                }
            };

            prop_assert_eq!(&store.mappings, &latest.mappings());
            check_guarantees(&store.mappings)?;

            let rebuilt = latest.store();
            prop_assert_eq!(&store.mappings, &rebuilt.mappings);
            prop_assert_eq!(store.rejected(), rebuilt.rejected());
            let named: Vec<_> = store.rejected().into_iter()
                .filter(|rejected| rejected.object.starts_with(PODS))
                .map(|rejected| (rejected.object, rejected.key))
                .collect();
            prop_assert_eq!(named, latest.rejected_pods().into_iter().collect::<Vec<_>>());
            prop_assert!(store.missing().eq(latest.missing.iter()));

            let after = &store.mappings;
            prop_assert_eq!(effect.vips, before.vips != after.vips);
            prop_assert_eq!(effect.networks, before.networks != after.networks);
            let either: BTreeSet<PodIp> = before.pods.keys().chain(after.pods.keys()).copied().collect();
            let changed = |pod: &PodIp| before.pods.get(pod) != after.pods.get(pod);
            prop_assert_eq!(effect.pods, either.into_iter().filter(changed).collect::<BTreeSet<_>>());
        }
    }
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
