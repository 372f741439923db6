//! Changes one by one amount to what the objects say in the end.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::super::*;
use super::Data;
use crate::Vip;
use crate::config_map::{
    NETWORKS, PODS, PodKey, ROUTE_IDS, decode_expected, decode_pods, decode_route_ids,
};

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
