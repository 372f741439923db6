//! What is said of an Egress, and what its pods do.

use rstest::rstest;
use shared::crd::{self, EgressMapperSpec, Kind, LabelSelector};

use super::builders::*;
use crate::model::Observed;

const IP: &str = "10.244.1.2";

fn with_pod() -> Observed {
    cluster().node(node("node1", "192.168.122.11")).holds("node1", VIP, 1).pod(pod("p", &[IP]))
}

fn with_vip() -> Observed {
    with_pod().vip(vip("a", VIP))
}

fn of_pod(ip: &str) -> crd::Egress {
    egress("e", ip, "pod", "p")
}

fn selecting() -> crd::Egress {
    egress("e", VIP, "pod", "").with(|egress| egress.spec.selector = Some(LabelSelector::default()))
}

fn said(observed: &Observed) -> String {
    let outcome = outcome(observed);
    format!("{} -> {}", outcome.said("e"), outcome.mapped().join(", "))
}

#[rstest]
#[case::mapped(with_vip().egress(of_pod(VIP)),
    "Mapped: 1 pod leaves with 192.168.122.222 -> 10.244.1.2 192.168.122.222")]
#[case::written_otherwise(
    with_pod().vip(vip("a", "2001:DB8::1")).pod(pod("six", &["fd00::6"])).egress(egress("e", "2001:db8:0::1", "pod", "six")),
    "Mapped: 1 pod leaves with 2001:db8::1 as soon as a node holds it; no node does, so external \
     traffic is dropped -> fd00::6 2001:db8::1")]
#[case::no_pod(with_vip().egress(egress("e", VIP, "deploy", "web")),
    "NoMatchingPods: no live pod matches Deployment default/web -> ")]
#[case::no_pod_selected(with_vip().egress(selecting().with(|e| e.spec.namespace = Some("b".into()))),
    "NoMatchingPods: no live pod matches the selector in namespace b -> ")]
#[case::vip_not_found(with_pod().egress(of_pod(VIP)),
    "VipNotFound: no Vip has the address 192.168.122.222; create one in namespace default; external \
     traffic of 1 pod is dropped -> 10.244.1.2 held")]
#[case::vip_not_found_node_address(with_pod().egress(or_node_address(of_pod(VIP))),
    "VipNotFound: no Vip has the address 192.168.122.222; create one in namespace default; external \
     traffic of 1 pod leaves with the node's address -> ")]
#[case::vip_not_found_and_no_pod(with_pod().egress(egress("e", VIP, "pod", "q")),
    "VipNotFound: no Vip has the address 192.168.122.222; create one in namespace default -> ")]
#[case::no_address(with_pod().egress(of_pod("10.0.0.1/24")),
    "VipNotFound: \"10.0.0.1/24\" cannot be a VIP: it is not an IP address; write one address, such \
     as 192.0.2.10 or fd00::10; external traffic of 1 pod is dropped -> 10.244.1.2 held")]
#[case::vip_elsewhere(with_pod().vip(vip("a", VIP).in_namespace("b")).egress(of_pod(VIP)),
    "VipNotAccepted: Vip b/a is not accepted: Vips count only in namespace default, where the \
     controller runs; create it there; external traffic of 1 pod is dropped -> 10.244.1.2 held")]
#[case::vip_is_a_node(with_pod().vip(vip("a", "192.168.122.11")).egress(or_node_address(of_pod("192.168.122.11"))),
    "VipNotAccepted: Vip default/a is not accepted: 192.168.122.11 is an address of Node node1; \
     choose an address of the nodes' network that no host has; external traffic of 1 pod leaves \
     with the node's address -> ")]
#[case::no_holder(with_vip().with(|all| all.reports.clear()).egress(of_pod(VIP)),
    "Mapped: 1 pod leaves with 192.168.122.222 as soon as a node holds it; no node does, so external \
     traffic is dropped -> 10.244.1.2 192.168.122.222")]
#[case::no_holder_node_address(with_vip().with(|all| all.reports.clear()).egress(or_node_address(of_pod(VIP))),
    "VipNotHeld: no node holds the address of Vip default/a; external traffic of 1 pod leaves with \
     the node's address -> ")]
#[case::held_node_address(with_vip().egress(or_node_address(of_pod(VIP))),
    "Mapped: 1 pod leaves with 192.168.122.222 -> 10.244.1.2 192.168.122.222")]
#[case::unknown_kind(with_vip().egress(egress("e", VIP, "service", "p")),
    "UnknownKind: kind \"service\" is unknown; use pod, replicationcontroller, replicaset, \
     deployment, statefulset, daemonset, job, cronjob or namespace -> ")]
#[case::no_name(with_vip().egress(egress("e", VIP, "pod", "")),
    "InvalidSpec: name is missing: name the object whose pods are meant -> ")]
#[case::selector_and_name(with_vip().egress(of_pod(VIP).with(|e| e.spec.selector = Some(LabelSelector::default()))),
    "InvalidSpec: selector and name exclude each other; remove one of them -> ")]
#[case::selector_of_owner(with_vip().egress(egress("e", VIP, "job", "").with(|e| e.spec.selector = Some(LabelSelector::default()))),
    "InvalidSpec: selector is for kind pod only; remove it, or use kind pod -> ")]
fn an_egress_is_told_what_is_the_case(#[case] observed: Observed, #[case] expected: &str) {
    assert_eq!(said(&observed), expected);
}

/// An Egress of namespace `from` for the pod `to/p`.
fn across(from: &str, to: &str) -> crd::Egress {
    of_pod(VIP).in_namespace(from).with(|egress| egress.spec.namespace = Some(to.to_owned()))
}

#[rstest]
#[case::own("b", "b", None, true, "Mapped: 1 pod leaves with 192.168.122.222")]
#[case::from_the_controllers(
    "default",
    "b",
    None,
    true,
    "Mapped: 1 pod leaves with 192.168.122.222"
)]
#[case::foreign(
    "c",
    "b",
    None,
    false,
    "NotPermitted: pods of namespace b can be named only by Egresses of that namespace or of \
     namespace default; move the Egress there"
)]
#[case::vip_not_for_it(
    "b",
    "b",
    Some("c"),
    false,
    "NotPermitted: Vip default/a may be used by Egresses of namespace c; add b to its \
     spec.namespaces; external traffic of 1 pod is dropped"
)]
#[case::vip_for_it("b", "b", Some("b"), true, "Mapped: 1 pod leaves with 192.168.122.222")]
#[case::vip_for_all("b", "b", Some("*"), true, "Mapped: 1 pod leaves with 192.168.122.222")]
#[case::vip_not_for_the_controllers(
    "default",
    "b",
    Some("b"),
    false,
    "NotPermitted: Vip default/a may be used by Egresses of namespace b; add default to its \
     spec.namespaces; external traffic of 1 pod is dropped"
)]
fn namespaces_are_kept_apart(
    #[case] from: &str,
    #[case] to: &str,
    #[case] vip_for: Option<&str>,
    #[case] mapped: bool,
    #[case] expected: &str,
) {
    let vip_for = match (vip_for, from) {
        (Some(namespace), _) => Some(vec![namespace.to_owned()]),
        (None, OWN) => None,
        (None, other) => Some(vec![other.to_owned()]),
    };
    let vip = vip("a", VIP).with(|vip| vip.spec.namespaces = vip_for);
    let observed = cluster()
        .node(node("node1", "192.168.122.11"))
        .holds("node1", VIP, 1)
        .vip(vip)
        .pod(pod("p", &[IP]).with(|pod| pod.namespace = to.to_owned()))
        .egress(across(from, to));
    let outcome = outcome(&observed);
    assert_eq!(outcome.said(&format!("{from}/e")), expected);
    assert_eq!(outcome.mapped() == [format!("{IP} {VIP}")], mapped);
    assert_eq!(outcome.vip("a").used_by.len(), usize::from(mapped));
}

#[test]
fn an_egress_for_foreign_pods_does_not_hold_them() {
    let observed = with_vip().egress(across("c", OWN));
    assert!(outcome(&observed).mapped().is_empty());
}

#[test]
fn kind_namespace_takes_the_namespace_from_either_field() {
    for (name, namespace) in [(Some("b"), None), (None, Some("b")), (Some("b"), Some("c"))] {
        let egress = egress("e", VIP, "ns", "").with(|egress| {
            egress.spec.name = name.map(str::to_owned);
            egress.spec.namespace = namespace.map(str::to_owned);
        });
        let observed = with_vip()
            .pod(pod("q", &["10.244.1.9"]).with(|pod| pod.namespace = "b".to_owned()))
            .egress(egress);
        assert_eq!(outcome(&observed).mapped(), [format!("10.244.1.9 {VIP}")]);
    }
}

const OTHER: &str = "192.168.122.7";

fn of_kind(name: &str, ip: &str, kind: &str) -> crd::Egress {
    match kind {
        "owner" => egress(name, ip, "statefulset", "db"),
        "selector" => egress(name, ip, "pod", "")
            .with(|egress| egress.spec.selector = Some(LabelSelector::default())),
        "namespace" => egress(name, ip, "namespace", ""),
        _ => egress(name, ip, "pod", "p"),
    }
}

#[rstest]
#[case::pod_before_owner(of_kind("w", OTHER, "pod").created(9), of_kind("l", VIP, "owner"))]
#[case::owner_before_selector(of_kind("w", OTHER, "owner").created(9), of_kind("l", VIP, "selector"))]
#[case::selector_before_namespace(of_kind("w", OTHER, "selector").created(9), of_kind("l", VIP, "namespace"))]
#[case::older_before_younger(of_kind("w", OTHER, "owner").created(1), of_kind("l", VIP, "owner").created(2))]
#[case::first_name_of_one_second(of_kind("a", OTHER, "owner"), of_kind("b", VIP, "owner"))]
#[case::first_namespace_of_one_name(of_kind("a", OTHER, "pod"), of_kind("a", VIP, "pod").in_namespace("zz").with(|e| e.spec.namespace = Some(OWN.into())))]
fn of_two_egresses_one_wins(#[case] winner: crd::Egress, #[case] loser: crd::Egress) {
    let foreign = loser.metadata.namespace.as_deref() != Some(OWN);
    let observed = |egresses: [&crd::Egress; 2]| {
        let member = pod("p", &[IP]).with(|pod| pod.owner = Some(owner(Kind::StatefulSet, "db")));
        egresses.into_iter().fold(
            cluster()
                .node(node("node1", "192.168.122.11"))
                .holds("node1", VIP, 1)
                .holds("node1", OTHER, 1)
                .vip(vip("a", VIP))
                .vip(vip("b", OTHER))
                .pod(member),
            |all, egress| all.egress(egress.clone()),
        )
    };
    for order in [[&winner, &loser], [&loser, &winner]] {
        let outcome = outcome(&observed(order));
        assert_eq!(outcome.mapped(), [format!("{IP} {OTHER}")]);
        let name = winner.metadata.name.as_deref().unwrap();
        assert_eq!(outcome.said(name), format!("Mapped: 1 pod leaves with {OTHER}"));
        if !foreign {
            let loser = outcome.said(loser.metadata.name.as_deref().unwrap());
            assert_eq!(loser, format!("Overridden: 1 pod taken by Egress default/{name}"));
        }
    }
}

#[test]
fn an_egress_that_loses_some_pods_keeps_the_others_and_names_who_took_them() {
    let mut observed = with_vip().vip(vip("b", OTHER)).egress(egress("all", VIP, "ns", ""));
    for number in 0..5 {
        let name = format!("q{number}");
        observed = observed.pod(pod(&name, &[&format!("10.244.7.{number}")])).egress(egress(
            &format!("e{number}"),
            OTHER,
            "pod",
            &name,
        ));
    }
    let outcome = outcome(&observed);
    assert_eq!(
        outcome.said("all"),
        "Mapped: 1 pod leaves with 192.168.122.222; 5 pods taken by Egress default/e0, default/e1, \
         default/e2 and 2 more"
    );
    assert_eq!((outcome.egress("all").pods, outcome.egress("all").mapped), (6, 1));
}

#[test]
fn an_egress_of_the_other_family_is_not_in_the_way() {
    let observed = with_vip()
        .pod(pod("dual", &["10.244.1.5", "fd00:244::5"]))
        .vip(vip("six", "2001:db8::1"))
        .egress(egress("four", VIP, "pod", "dual"))
        .egress(egress("six", "2001:db8::1", "ns", ""));
    let outcome = outcome(&observed);
    assert_eq!(
        outcome.mapped(),
        ["10.244.1.2 held", "10.244.1.5 192.168.122.222", "fd00:244::5 2001:db8::1",]
    );
    assert_eq!(outcome.egress("six").mapped, 1);
}

#[test]
fn the_winner_decides_even_when_its_vip_is_missing() {
    let held = with_vip().egress(of_pod("192.168.122.9")).egress(egress("all", VIP, "ns", ""));
    assert_eq!(outcome(&held).mapped(), [format!("{IP} held")]);
    let released = with_vip()
        .egress(or_node_address(of_pod("192.168.122.9")))
        .egress(egress("all", VIP, "ns", ""));
    assert!(outcome(&released).mapped().is_empty());
}

#[test]
fn releasing_one_family_does_not_release_the_other() {
    let observed = with_pod()
        .pod(pod("dual", &["10.244.1.5", "fd00:244::5"]))
        .vip(vip("six", "2001:db8::1"))
        .egress(or_node_address(egress("four", VIP, "pod", "dual")))
        .egress(egress("six", "2001:db8::1", "pod", "dual"));
    assert_eq!(outcome(&observed).mapped(), ["fd00:244::5 2001:db8::1"]);
}

#[test]
fn only_the_oldest_mapper_of_the_own_namespace_counts() {
    let with_subnet = |name: &str, subnet: &str| {
        let pod_subnet = Some(subnet.to_owned());
        mapper(name, EgressMapperSpec { pod_subnet, ..EgressMapperSpec::default() })
    };
    let observed = cluster()
        .mapper(with_subnet("young", "10.1.0.0/16").created(5))
        .mapper(with_subnet("elder", "10.2.0.0/16").created(4))
        .mapper(with_subnet("elsewhere", "10.3.0.0/16").created(1).in_namespace("b"));
    let outcome = outcome(&observed);
    assert_eq!(outcome.0.networks.pod_subnets(), ["10.2.0.0/16".parse().unwrap()]);
    let said = |name: &str| {
        let verdict = outcome.mapper(name);
        format!("{} {:?}: {}", verdict.counts, verdict.accepted.reason, verdict.accepted.message)
    };
    assert_eq!(said("elder"), "true Accepted: it is the EgressMapper that counts");
    assert_eq!(
        said("young"),
        "false NotTheOldest: EgressMapper default/elder is older and the only one that counts; \
         remove one"
    );
    assert_eq!(
        said("b/elsewhere"),
        "false WrongNamespace: EgressMappers count only in namespace default, where the controller \
         runs"
    );
}

#[test]
fn addresses_of_gateways_are_those_of_selected_nodes_also_when_they_are_not_ready() {
    let match_labels = labels(&[("gateway", "yes")]);
    let selector = LabelSelector { match_labels, ..LabelSelector::default() };
    let spec = EgressMapperSpec { gateway_selector: Some(selector), ..EgressMapperSpec::default() };
    let gateway = |name: &str, address: &str| {
        node(name, address).with(|node| node.labels = labels(&[("gateway", "yes")]))
    };
    let observed = cluster()
        .mapper(mapper("m", spec))
        .node(gateway("a", "192.168.122.21").with(|node| {
            node.addresses.push("203.0.113.9".parse().unwrap());
            node.internal.push("fd00::21".parse().unwrap());
        }))
        .node(gateway("b", "192.168.122.22").with(|node| node.ready = false))
        .node(node("c", "192.168.122.23"));
    let outcome = outcome(&observed);
    let gateways: Vec<String> =
        outcome.0.networks.gateway_addresses().iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["192.168.122.21", "192.168.122.22", "fd00::21"]);
}

#[test]
fn networks_come_from_the_mapper_and_the_nodes() {
    let spec = EgressMapperSpec {
        pod_subnet: Some(" 10.244.3.0/16 ,0.0.0.0/0".to_owned()),
        service_subnet: Some("10.96.0.0/12,fd00:96::/112,x".to_owned()),
        excluded_networks: vec!["10.0.0.0/8".to_owned()],
        ..EgressMapperSpec::default()
    };
    let observed =
        cluster().mapper(mapper("m", spec)).node(node("node1", "192.168.122.11").with(|node| {
            node.addresses.push("fe80::1".parse().unwrap());
            node.pod_cidrs = vec!["10.9.0.0/24".parse().unwrap(), "fd00:244::/64".parse().unwrap()];
        }));
    let outcome = outcome(&observed);
    let data = shared::config_map::encode_networks(&outcome.0.networks);
    let values: Vec<_> = data.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        values,
        [
            "excluded=10.0.0.0/8",
            "gateway-addresses=192.168.122.11",
            "node-addresses=192.168.122.11",
            "pod-subnets=10.244.0.0/16,fd00:244::/64",
            "service-subnets=10.96.0.0/12,fd00:96::/112",
        ]
    );
    let accepted = &outcome.mapper("m").accepted;
    assert_eq!(
        format!("{:?}: {}", accepted.reason, accepted.message),
        "InvalidNetworks: what is usable counts, but not PodSubnet \"0.0.0.0/0\": it is every \
         destination, so nothing would be egress traffic; name smaller networks, ServiceSubnet \
         \"x\": it is not a network; write a CIDR such as 10.244.0.0/16, or one address"
    );
}

#[test]
fn gateways_are_the_nodes_that_are_selected() {
    let spec = EgressMapperSpec {
        gateway_selector: Some(LabelSelector {
            match_labels: labels(&[("gateway", "yes")]),
            ..LabelSelector::default()
        }),
        ..EgressMapperSpec::default()
    };
    let gateway = |name: &str, address: &str| {
        node(name, address).with(|node| node.labels = labels(&[("gateway", "yes")]))
    };
    let observed = cluster()
        .mapper(mapper("m", spec))
        .node(node("a", "192.168.122.1"))
        .node(gateway("b", "192.168.122.2").with(|node| node.unschedulable = true))
        .node(gateway("c", "192.168.122.3").with(|node| node.ready = false))
        .vip(vip("a", VIP));
    let outcome = outcome(&observed);
    assert_eq!(outcome.0.candidates.into_values().collect::<Vec<_>>(), [["c", "b"]]);
    assert_eq!(outcome.0.mappers.values().next().unwrap().gateways, 2);
}
