use super::*;
use crate::node_facts::{Link, LocalAddress, OnLink, Routed};

const VIP: &str = "192.168.122.222";

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

/// `eth0` in 192.168.122.0/24, `vxlan` towards pods of another node.
fn facts(local: &[&str]) -> NodeFacts {
    let link = |index, name: &str| {
        let device = Device { index, name: name.to_owned() };
        (index, Link { device, up: true, loopback: false })
    };
    let local = local.iter().map(|addr| addr.parse().unwrap());
    NodeFacts {
        links: [link(2, "eth0"), link(5, "vxlan")].into(),
        addresses: local.map(|addr| LocalAddress { addr, device: 2, usable: true }).collect(),
        on_link: [OnLink { network: "192.168.122.0/24".parse().unwrap(), device: 2, metric: 0 }]
            .into(),
        routed: [Routed { network: "10.244.2.0/24".parse().unwrap(), device: 5 }].into(),
        ..NodeFacts::default()
    }
}

fn mappings(vips: &[(&str, u32)]) -> Mappings {
    let networks =
        shared::ClusterNetworks::default().with_pod_subnets(["10.244.0.0/16".parse().unwrap()]);
    let vips = vips.iter().map(|(addr, id)| (vip(addr), RouteId::try_from(*id).unwrap()));
    Mappings::new(vips, [], networks).0
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_way_to_the_holder_waits_while_the_vip_is_here() {
    let mappings = mappings(&[(VIP, 64)]);
    let ruleset = Ruleset::default();
    for here in [true, false] {
        let facts = facts(if here { &[VIP] } else { &[] });
        let desired = desired(&mappings, &facts, &Settings::default(), &ruleset);
        let ways = |routes: &BTreeSet<Route>| routes.iter().filter(|r| !r.is_unreachable()).count();
        assert_eq!((ways(&desired.routes), desired.later.len()), (usize::from(!here), here.into()));
        assert!(desired.routes.iter().any(Route::is_unreachable));
        assert_eq!(desired.places.values().map(|place| place.here).collect::<Vec<_>>(), [here]);
    }
}

#[test]
fn a_vip_in_no_network_of_the_node_is_named_and_only_held() {
    let (far, near) = ("203.0.113.7", VIP);
    let mappings = mappings(&[(far, 7), (near, 64)]);
    let (input, notes) = ruleset_input(&mappings, &facts(&[]), &Settings::default());
    assert_eq!(
        notes,
        [Note { vip: vip(far), reason: Reason::NoUplink(NoUplink::NotOnLink { vip: vip(far) }) }]
    );
    assert_eq!(input.reachable, BTreeSet::from([vip(near)]));
    assert_eq!(input.uplinks, names(&["eth0"]));

    let ruleset = Ruleset::default();
    let desired = desired(&mappings, &facts(&[]), &Settings::default(), &ruleset);
    assert_eq!(desired.rules.iter().filter(|rule| rule.table().is_some()).count(), 2);
    assert_eq!(desired.routes.iter().filter(|route| route.is_unreachable()).count(), 2);
    assert_eq!(desired.routes.len(), 3);
}

#[test]
fn only_interfaces_that_carry_pods_of_other_nodes_are_loosened() {
    let ruleset = Ruleset::default();
    let loose = |vips: &[(&str, u32)]| {
        desired(&mappings(vips), &facts(&[]), &Settings::default(), &ruleset).loose
    };
    assert_eq!(loose(&[(VIP, 64)]), names(&["eth0", "vxlan"]));
    assert_eq!(loose(&[]), names(&[]));
    assert_eq!(loose(&[("fd00::7", 7)]), names(&[]));
}

#[test]
fn networks_that_overlap_become_one() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let nets = ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "fd00::/64", "192.0.2.1/32"];
    assert_eq!(
        disjoint(nets.map(net).into_iter()),
        ["10.0.0.0/8", "192.0.2.1/32", "fd00::/64"].map(net)
    );
}

#[test]
fn what_is_always_internal_can_be_read() {
    assert_eq!(always_internal().count(), ALWAYS_INTERNAL.len());
}
