//! Pods in maps and sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use agent::kernel::elements::{Action, Elements, ElementsError};
use agent::pod_tables::{PodChanges, PodTables};
use agent::pod_tables::{PodSet, PodStray};
use agent::unsure::Unsure;
use nix::errno::Errno;
use serde_json::Value;
use shared::{PodIp, Vip};

use crate::namespace::{SCHEMA, in_namespace, names, nft, nft_json, run};

fn pod(text: &str) -> PodIp {
    text.parse().unwrap()
}

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

/// Adds all of `tables` to an empty kernel.
pub(crate) fn additions(tables: &PodTables) -> PodChanges {
    PodChanges {
        map: tables.vips.iter().map(|(&pod, &vip)| (pod, vip)).collect(),
        guard: tables.guarded.iter().copied().collect(),
        know: tables.known.iter().copied().collect(),
        ..PodChanges::default()
    }
}

/// As many pods as asked for, of both families when told so, one in a hundred held.
pub(crate) fn many(count: u32, both_families: bool) -> PodTables {
    let v4 = |n: u32| PodIp::try_from(std::net::IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
    let v6 = |n: u32| {
        PodIp::try_from(std::net::IpAddr::from(Ipv6Addr::from((0xfd00 << 112) + u128::from(n))))
    };
    let mut tables = PodTables::default();
    for n in 1..=count {
        let (pod, address) = if both_families && n % 2 == 0 {
            (v6(n).unwrap(), vip("fd01::1"))
        } else {
            (v4(n).unwrap(), vip("192.0.2.1"))
        };
        tables.vips.insert(pod, (n % 100 != 0).then_some(address));
        tables.guarded.insert(pod);
    }
    tables
}

fn few() -> PodTables {
    PodTables {
        vips: BTreeMap::from([
            (pod("10.244.1.2"), Some(vip("192.0.2.222"))),
            (pod("10.244.1.3"), None),
            (pod("fd00:244::2"), Some(vip("fd01::222"))),
            (pod("fd00:244::3"), None),
        ]),
        guarded: BTreeSet::from([pod("10.244.1.2"), pod("10.244.1.9"), pod("fd00:244::9")]),
        known: BTreeSet::from([pod("10.244.1.9"), pod("fd00:244::8")]),
        ..PodTables::default()
    }
}

/// The same in the words of nft.
const FEW: &str = "
add element inet egress pod_vip4 { 10.244.1.2 : 192.0.2.222, 10.244.1.3 : 0.0.0.0 }
add element inet egress pod_vip6 { fd00:244::2 : fd01::222, fd00:244::3 : :: }
add element inet egress known4 { 10.244.1.9 }
add element inet egress known6 { fd00:244::8 }
add element inet egress-guard mapped4 { 10.244.1.2, 10.244.1.9 }
add element inet egress-guard mapped6 { fd00:244::9 }
";

/// What nft lists of a map or set: `key` or `key : value`.
fn listed(kind: &str, table: &str, name: &str) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    nft_json(&["list", kind, "inet", table, name])
        .iter()
        .filter_map(|object| object[kind]["elem"].as_array())
        .flatten()
        .map(|element| match element.as_array() {
            Some(pair) => format!("{} : {}", text(&pair[0]), text(&pair[1])),
            None => text(element),
        })
        .collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn nft_sees_the_pods_the_agent_adds() {
    in_namespace(|| {
        nft(SCHEMA);
        nft("table inet other { map pod_vip4 { type ipv4_addr : ipv4_addr; }; }");
        let mut elements = Elements::open(names()).unwrap();
        elements.apply(&additions(&few())).unwrap();
        assert_eq!(
            listed("map", "egress", "pod_vip4"),
            set(["10.244.1.2 : 192.0.2.222", "10.244.1.3 : 0.0.0.0"])
        );
        assert_eq!(
            listed("map", "egress", "pod_vip6"),
            set(["fd00:244::2 : fd01::222", "fd00:244::3 : ::"])
        );
        assert_eq!(listed("set", "egress-guard", "mapped4"), set(["10.244.1.2", "10.244.1.9"]));
        assert_eq!(listed("set", "egress-guard", "mapped6"), set(["fd00:244::9"]));
        assert_eq!(listed("map", "other", "pod_vip4"), set([]));
    });
}

#[test]
fn the_agent_sees_the_pods_nft_adds() {
    in_namespace(|| {
        nft(SCHEMA);
        let mut elements = Elements::open(names()).unwrap();
        assert_eq!(elements.dump().unwrap(), PodTables::default());
        nft(FEW);
        assert_eq!(elements.dump().unwrap(), few());
    });
}

#[test]
fn a_pod_changes_its_vip_in_one_transaction() {
    in_namespace(|| {
        nft(SCHEMA);
        nft(FEW);
        let mut elements = Elements::open(names()).unwrap();
        let changes = PodChanges {
            unmap: vec![pod("10.244.1.2"), pod("fd00:244::2")],
            map: vec![(pod("10.244.1.2"), Some(vip("192.0.2.1"))), (pod("fd00:244::4"), None)],
            unguard: vec![pod("10.244.1.9"), pod("fd00:244::9")],
            guard: vec![pod("fd00:244::4")],
            disown: vec![pod("fd00:244::8")],
            know: vec![pod("10.244.1.7")],
            ..PodChanges::default()
        };
        elements.apply(&changes).unwrap();
        let mut expected = few();
        expected.vips.insert(pod("10.244.1.2"), Some(vip("192.0.2.1")));
        expected.vips.remove(&pod("fd00:244::2"));
        expected.vips.insert(pod("fd00:244::4"), None);
        expected.guarded = [pod("10.244.1.2"), pod("fd00:244::4")].into();
        expected.known = [pod("10.244.1.7"), pod("10.244.1.9")].into();
        assert_eq!(elements.dump().unwrap(), expected);
    });
}

#[test]
fn unknown_pods_are_held_until_told_otherwise_or_the_time_is_over() {
    in_namespace(|| {
        nft(SCHEMA);
        let mut elements = Elements::open(names()).unwrap();
        let mut unsure = |unsure| {
            let changes = PodChanges { unsure: Some(unsure), ..PodChanges::default() };
            elements.apply(&changes).unwrap();
            elements.dump().unwrap().unsure
        };
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(unsure(Unsure::Always), [Unsure::Always; 2]);
        for (seconds, again) in [(30, 5), (5, 60)] {
            for seconds in [seconds, again] {
                let end = later(seconds);
                for seen in unsure(Unsure::Until(end)) {
                    let Unsure::Until(seen) = seen else { panic!("{seen:?}") };
                    let off = seen.max(end) - seen.min(end);
                    assert!(off < Duration::from_millis(500), "off by {off:?}");
                }
            }
        }
        assert_eq!(unsure(Unsure::No), [Unsure::No; 2]);
        assert_eq!(unsure(Unsure::No), [Unsure::No; 2]);
        unsure(Unsure::Until(Instant::now() + Duration::from_millis(50)));
        let mut gone = || elements.dump().unwrap().unsure == [Unsure::No; 2];
        let deadline = later(20);
        while !gone() {
            assert!(Instant::now() < deadline, "it does not go by itself");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_refused_change_names_its_element_and_changes_nothing() {
    in_namespace(|| {
        nft(SCHEMA);
        nft(FEW);
        let before = run("nft", &["list", "ruleset"]);
        let mut elements = Elements::open(names()).unwrap();

        let mut changes = additions(&many(5_000, true));
        changes.map.insert(4_000, (pod("10.244.1.2"), Some(vip("192.0.2.1"))));
        match elements.apply(&changes).unwrap_err() {
            ElementsError::Refused { action, set, table, element, source } => {
                assert_eq!((action, set, table.as_str()), (Action::Add, PodSet::Vip4, "egress"));
                assert_eq!(element, Some(pod("10.244.1.2").addr()));
                assert_eq!(source, Errno::EEXIST);
            }
            other => panic!("{other}"),
        }
        let mut changes = additions(&many(10, true));
        changes.unguard.push(pod("fd00::abcd"));
        let error = elements.apply(&changes).unwrap_err();
        assert!(matches!(error, ElementsError::Refused { source: Errno::ENOENT, .. }));
        assert_eq!(
            error.to_string(),
            "cannot remove fd00::abcd from mapped6 of table inet egress-guard"
        );
        assert_eq!(run("nft", &["list", "ruleset"]), before);
        elements.apply(&additions(&many(10, true))).unwrap();
    });
}

#[test]
fn a_missing_set_is_named() {
    in_namespace(|| {
        let mut elements = Elements::open(names()).unwrap();
        let missing = |error| match error {
            ElementsError::Missing { set, table } => (set, table),
            other => panic!("{other}"),
        };
        assert_eq!(elements.dump().unwrap(), PodTables::default());
        nft(SCHEMA);
        nft("delete set inet egress-guard mapped6");
        let expected = (PodSet::Mapped6, "egress-guard".to_owned());
        assert_eq!(missing(elements.apply(&additions(&few())).unwrap_err()), expected);
        nft("delete table inet egress-guard");
        let expected = (PodSet::Mapped4, "egress-guard".to_owned());
        assert_eq!(missing(elements.apply(&additions(&few())).unwrap_err()), expected);
        assert_eq!(listed("map", "egress", "pod_vip4"), set([]));
    });
}

#[test]
fn strays_are_told_apart_and_removed() {
    in_namespace(|| {
        nft(SCHEMA);
        nft(FEW);
        nft("
            add element inet egress pod_vip4 { 224.0.0.1 : 192.0.2.1, 10.0.0.9 : 127.0.0.1 }
            add element inet egress pod_vip4 { * : 192.0.2.66 }
            add element inet egress pod_vip6 { ::ffff:10.0.0.1 : fd01::1 }
            add element inet egress-guard mapped4 { 0.0.0.0, 255.255.255.255 }
        ");
        let mut elements = Elements::open(names()).unwrap();
        let dump = elements.dump().unwrap();
        assert_eq!((&dump.vips, &dump.guarded), (&few().vips, &few().guarded));
        let stray = |set, key: &[u8]| PodStray { set, key: key.to_vec() };
        let mapped_v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1];
        assert_eq!(
            BTreeSet::from_iter(dump.strays.clone()),
            BTreeSet::from([
                stray(PodSet::Vip4, &[]),
                stray(PodSet::Vip4, &[10, 0, 0, 9]),
                stray(PodSet::Vip4, &[224, 0, 0, 1]),
                stray(PodSet::Vip6, &mapped_v4),
                stray(PodSet::Mapped4, &[0, 0, 0, 0]),
                stray(PodSet::Mapped4, &[255, 255, 255, 255]),
            ])
        );
        let map = vec![(pod("10.0.0.9"), None)];
        let strays = dump.strays.into_iter().collect();
        elements.apply(&PodChanges { map, strays, ..PodChanges::default() }).unwrap();
        let mut expected = few();
        expected.vips.insert(pod("10.0.0.9"), None);
        assert_eq!(elements.dump().unwrap(), expected);
    });
}

#[test]
fn a_hundred_thousand_pods_come_and_go_in_one_transaction_each() {
    in_namespace(|| {
        nft(SCHEMA);
        let tables = many(100_000, true);
        let mut elements = Elements::open(names()).unwrap();
        elements.apply(&additions(&tables)).unwrap();
        let dump = elements.dump().unwrap();
        assert!(dump.strays.is_empty());
        assert!(dump == tables);
        let changes = PodChanges {
            unmap: tables.vips.keys().copied().collect(),
            unguard: tables.guarded.iter().copied().collect(),
            ..PodChanges::default()
        };
        elements.apply(&changes).unwrap();
        assert_eq!(elements.dump().unwrap(), PodTables::default());
    });
}

#[test]
fn a_dump_survives_a_stranger_who_keeps_writing() {
    in_namespace(|| {
        nft(SCHEMA);
        let tables = many(20_000, true);
        let mut elements = Elements::open(names()).unwrap();
        elements.apply(&additions(&tables)).unwrap();
        let mut stranger = std::process::Command::new("sh")
            .args(["-c", "for i in 1 2 3 4 5 6 7 8 9 10; do nft add table ip other; nft delete table ip other; done"])
            .spawn()
            .unwrap();
        while stranger.try_wait().unwrap().is_none() {
            match elements.dump() {
                Ok(dump) => assert!(dump == tables),
                Err(ElementsError::Read { .. }) => {} // disturbed each time, and said so
                Err(other) => panic!("{other}"),
            }
        }
        assert!(elements.dump().unwrap() == tables);
    });
}

#[test]
fn sets_with_a_size_are_seen_as_declared_and_have_room_for_what_is_replaced_at_once() {
    in_namespace(|| {
        let sized = SCHEMA.replace("_addr; }", "_addr; size 131072; }");
        nft(&sized);
        let mut tables = agent::kernel::tables::Tables::open(names()).unwrap();
        let mut elements = Elements::open(names()).unwrap();
        let all = many(100_000, false);
        elements.apply(&additions(&all)).unwrap();
        let main = tables.look().unwrap().main.unwrap();
        let set = &main.sets["pod_vip4"];
        assert_eq!(set.size, 131_072);
        assert!(set.count.is_none_or(|count| count == 100_000), "{set:?}");

        let other = Some(vip("192.0.2.9"));
        let changes = PodChanges {
            unmap: all.vips.keys().copied().collect(),
            map: all.vips.keys().map(|pod| (*pod, other)).collect(),
            ..PodChanges::default()
        };
        elements.apply(&changes).unwrap();
        let now = elements.dump().unwrap();
        assert!(now.vips.values().all(|vip| *vip == other) && now.vips.len() == 100_000);
    });
}
