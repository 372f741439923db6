use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::{ClusterNetworks, PodIp, PodUid, RouteId, Vip};

fn data(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn texts(rejected: &[Rejected]) -> Vec<String> {
    rejected.iter().map(ToString::to_string).collect()
}

fn any_vip() -> impl Strategy<Value = Vip> {
    any::<IpAddr>().prop_filter_map("not a VIP", |addr| Vip::try_from(addr).ok())
}

fn any_pod() -> impl Strategy<Value = (PodIp, Option<Vip>)> {
    (any::<IpAddr>(), proptest::option::of(any_vip())).prop_filter_map("not a pod", |(pod, vip)| {
        let pod = PodIp::try_from(pod).ok()?;
        Some((pod, vip.filter(|vip| vip.is_ipv4() == pod.is_ipv4())))
    })
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 1..=32u8).prop_map(|(addr, len)| Ipv4Net::new(addr.into(), len));
    let v6 = (any::<[u8; 16]>(), 1..=128u8).prop_map(|(addr, len)| Ipv6Net::new(addr.into(), len));
    prop_oneof![v4.prop_map(|net| net.unwrap().into()), v6.prop_map(|net| net.unwrap().into())]
}

fn any_networks() -> impl Strategy<Value = ClusterNetworks> {
    let nets = || vec(any_net(), 0..4);
    let nodes = btree_set(any_vip().prop_map(Vip::addr), 0..4);
    (nets(), nets(), nodes, nets()).prop_map(|(pods, services, nodes, excluded)| {
        ClusterNetworks::default()
            .with_gateway_addresses(nodes.iter().copied().skip(1))
            .with_pod_subnets(pods)
            .with_service_subnets(services)
            .with_node_addresses(nodes)
            .with_excluded(excluded)
    })
}

/// Keys and values that are sometimes right, and addresses that are often the same.
fn any_data() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = prop_oneof![
        4 => "10\\.0\\.0\\.[0-9]",
        4 => "(fd|FD)00-(0-|-|00-)-[0-3]",
        1 => "pod-subnets|node-addresses|excluded|service-subnets|gateway-addresses",
        2 => any::<IpAddr>().prop_map(super::key),
        1 => any::<String>(),
    ];
    let value = prop_oneof![
        "[0-9]{1,3}",
        "[ ,\n]{0,2}10\\.[0-9]\\.0\\.0(/[0-9]{1,2})?",
        "fd00::[0-3]",
        any::<String>(),
        Just(String::new()),
    ];
    btree_map(key, value, 0..12)
}

fn any_item() -> impl Strategy<Value = String> {
    prop_oneof![
        any_net().prop_map(|net| net.to_string()),
        any::<IpAddr>().prop_map(|addr| addr.to_string()),
        "10\\.0\\.0\\.[0-2]/[0-9]{1,2}",
        "[a-f0-9:./]{1,9}",
    ]
}

proptest! {
    #[test]
    fn route_ids_survive_being_written_and_read(
        vips in btree_map(any_vip(), (1..=252u32).prop_map(|id| RouteId::try_from(id).unwrap()), 0..9)
    ) {
        let decoded = decode_route_ids(ROUTE_IDS, &encode_route_ids(&vips));
        prop_assert_eq!(decoded, Decoded { entries: vips, rejected: vec![] });
    }

    #[test]
    fn pods_survive_being_written_and_read(pods in vec(any_pod(), 0..9)) {
        let pods: BTreeMap<_, _> = pods.into_iter().collect();
        let decoded = decode_pods(PODS, &encode_pods(&pods));
        prop_assert_eq!(decoded, Decoded { entries: pods, rejected: vec![] });
    }

    #[test]
    fn networks_survive_being_written_and_read(networks in any_networks()) {
        let decoded = decode_networks(NETWORKS, &encode_networks(&networks));
        prop_assert_eq!(decoded, Decoded { entries: networks, rejected: vec![] });
    }

    #[test]
    fn keys_are_legal_and_stand_for_their_address(addr in any::<IpAddr>()) {
        let key = super::key(addr);
        let legal = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        prop_assert!(key.chars().all(legal));
        prop_assert_eq!(addr_of_key(&key), Ok(addr));
    }

    #[test]
    fn no_entry_is_lost(data in any_data()) {
        let vips = decode_route_ids(ROUTE_IDS, &data);
        let pods = decode_pods(PODS, &data);
        let of = |rejected: &[Rejected]| -> BTreeSet<String> {
            rejected.iter().map(|rejected| rejected.key.clone()).collect()
        };
        for rejected in [&vips.rejected, &pods.rejected] {
            prop_assert!(of(rejected).len() == rejected.len());
        }
        for (key, value) in &data {
            let addr = addr_of_key(key).ok();
            let vip = addr.and_then(|addr| Vip::try_from(addr).ok());
            let pod = addr.and_then(|addr| PodIp::try_from(addr).ok());
            let shown = crate::address::shortened(key);

            let id = value.trim().parse::<RouteId>().ok();
            let good = id.is_some() && vip.is_some_and(|vip| vips.entries.get(&vip) == id.as_ref());
            prop_assert!(good != of(&vips.rejected).contains(&shown), "{}", key);

            let good = key.parse::<PodUid>().is_ok()
                || pod.is_some_and(|pod| Ok(pods.entries[&pod]) == pod_value(pod, value));
            prop_assert!(good != of(&pods.rejected).contains(&shown), "{}", key);
        }
    }

    #[test]
    fn no_item_of_a_list_is_lost(list in vec(any_item(), 0..8), separator in "[, \n]{1,3}") {
        for key in ["pod-subnets", "service-subnets", "node-addresses", "excluded"] {
            let read = |value: &str| decode_networks(NETWORKS, &data(&[(key, value)]));
            let (mut encoded, mut rejected) = (BTreeSet::new(), Vec::new());
            for item in &list {
                let alone = read(item);
                let good = encode_networks(&alone.entries)[key].clone();
                prop_assert!(good.is_empty() != alone.rejected.is_empty());
                encoded.extend((!good.is_empty()).then_some(good));
                rejected.extend(alone.rejected);
            }
            rejected.sort();
            let all = read(&list.join(&separator));
            prop_assert_eq!(all.rejected, rejected);
            let good: BTreeSet<String> = encode_networks(&all.entries)[key]
                .split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(good, encoded);
        }
    }
}

#[rstest]
#[case("vip-routeid-mappings", Some(Object::RouteIds))]
#[case("egress-networks", Some(Object::Networks))]
#[case("podip-vip-mappings", Some(Object::Pods))]
#[case("podip-vip-mappings-node-1", Some(Object::PodsOfNode("node-1")))]
#[case("podip-vip-mappings-", None)]
#[case("podip-vip-mappingsx", None)]
#[case("vip-configmap", None)]
#[case("vip-candidates", None)]
#[case("egress-node-a", Some(Object::ReportOfNode("a")))]
#[case("egress-node-", None)]
#[case("", None)]
fn an_object_is_known_by_its_name(#[case] name: &str, #[case] object: Option<Object<'_>>) {
    assert_eq!(Object::of_name(name), object);
    if let Some(Object::PodsOfNode(node)) = object {
        assert_eq!(pods_of_node(node), name);
    }
}

#[test]
fn bad_route_ids_are_named_and_the_others_kept() {
    let decoded = decode_route_ids(
        ROUTE_IDS,
        &data(&[
            ("192.168.0.1", " 64\n"),
            ("192.168.0.2", "253"),
            ("192.168.0.3", ""),
            ("fd00--1", "65"),
            ("fd00-0--1", "66"),
            ("fd00-0-0--1", "65"),
            ("127.0.0.1", "7"),
            ("vip", "7"),
        ]),
    );
    assert_eq!(
        encode_route_ids(&decoded.entries),
        data(&[("192.168.0.1", "64"), ("fd00--1", "65")])
    );
    assert_eq!(
        texts(&decoded.rejected),
        [
            "vip-routeid-mappings, key \"127.0.0.1\", value \"7\": the key is not a VIP: it is a \
             loopback address; use one that other hosts can reach (in IPv6 '-' stands for ':')",
            "vip-routeid-mappings, key \"192.168.0.2\", value \"253\": the value is not a route id; \
             use a whole number from 1 to 252",
            "vip-routeid-mappings, key \"192.168.0.3\", value \"\": the value is not a route id; use \
             a whole number from 1 to 252",
            "vip-routeid-mappings, key \"fd00-0--1\", value \"66\": the same address has another \
             value in vip-routeid-mappings under key \"fd00--1\", which counts; remove one of the \
             two",
            "vip-routeid-mappings, key \"vip\", value \"7\": the key is not a VIP: it is not an IP \
             address; write one address, such as 192.0.2.10 or fd00::10 (in IPv6 '-' stands for \
             ':')",
        ]
    );
}

#[test]
fn a_pod_with_a_bad_value_is_held_and_named() {
    let decoded = decode_pods(
        "podip-vip-mappings-a",
        &data(&[
            ("10.0.0.1", "192.168.0.1\n"),
            ("10.0.0.2", " \n"),
            ("10.0.0.3", "fd00::1"),
            ("10.0.0.4", &"x".repeat(100)),
            ("10.0.0.0.5", "192.168.0.1"),
        ]),
    );
    assert_eq!(
        encode_pods(&decoded.entries),
        data(&[("10.0.0.1", "192.168.0.1"), ("10.0.0.2", ""), ("10.0.0.3", ""), ("10.0.0.4", "")])
    );
    let long = "x".repeat(64);
    assert_eq!(
        texts(&decoded.rejected),
        [
            "podip-vip-mappings-a, key \"10.0.0.0.5\", value \"192.168.0.1\": the key is not a pod \
             IP: it is not an IP address; write one address, such as 192.0.2.10 or fd00::10 (in IPv6 \
             '-' stands for ':')"
                .to_owned(),
            "podip-vip-mappings-a, key \"10.0.0.3\", value \"fd00::1\": pod 10.0.0.3 is held because \
             VIP fd00::1 is of the other address family; map it to a VIP of its own family, or to an \
             empty value to hold it"
                .to_owned(),
            format!(
                "podip-vip-mappings-a, key \"10.0.0.4\", value \"{long}…\": the pod is held because \
                 the value is not a VIP: it is not an IP address; write one address, such as \
                 192.0.2.10 or fd00::10"
            ),
        ]
    );
}

#[test]
fn lists_take_commas_lines_and_plain_addresses() {
    let decoded = decode_networks(
        NETWORKS,
        &data(&[
            ("pod-subnets", "10.244.1.7/16,fd00:244::/56\n0.0.0.0/0 , ::/0"),
            ("service-subnets", "\n 10.96.0.0/12 \n\n10.1.1.1, fd00:96::1\n10.96.0.0/33"),
            ("node-addresses", "192.168.0.1 192.168.0.2,,127.0.0.1"),
            ("gateway-addresses", "192.168.0.1,192.168.0.300"),
            ("excluded", "::ffff:10.0.0.0/104"),
            ("exclude", "10.0.0.0/8"),
        ]),
    );
    assert_eq!(
        encode_networks(&decoded.entries),
        data(&[
            ("pod-subnets", "10.244.0.0/16,fd00:244::/56"),
            ("service-subnets", "10.1.1.1/32,10.96.0.0/12,fd00:96::1/128"),
            ("node-addresses", "192.168.0.1,192.168.0.2"),
            ("gateway-addresses", "192.168.0.1"),
            ("excluded", ""),
        ])
    );
    let reasons: Vec<_> = decoded
        .rejected
        .into_iter()
        .map(|rejected| (rejected.key, rejected.value, rejected.reason))
        .collect();
    let expected = [
        ("exclude", "10.0.0.0/8", Reason::UnknownKey),
        ("excluded", "::ffff:10.0.0.0/104", Reason::Ipv4NetworkInIpv6),
        ("gateway-addresses", "192.168.0.300", Reason::NoNodeAddress(Unusable::NotAnAddress)),
        ("node-addresses", "127.0.0.1", Reason::NoNodeAddress(Unusable::Loopback)),
        ("pod-subnets", "0.0.0.0/0", Reason::DefaultRoute),
        ("pod-subnets", "::/0", Reason::DefaultRoute),
        ("service-subnets", "10.96.0.0/33", Reason::NoNetwork),
    ];
    let expected: Vec<_> = expected.map(|(k, v, r)| (k.to_owned(), v.to_owned(), r)).into();
    assert_eq!(reasons, expected);
}
