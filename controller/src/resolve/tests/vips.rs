//! Which Vips are accepted, with which route id, held by whom and used by whom.

use rstest::rstest;
use shared::crd::{self, EgressMapperSpec, PathTaken, VipStatus};
use shared::{Vip, VipPath};

use super::builders::*;
use crate::model::Observed;

fn asking(name: &str, ip: &str, route_id: i64) -> crd::Vip {
    vip(name, ip).with(|vip| vip.spec.routeid = Some(route_id))
}

fn subnets() -> crd::EgressMapper {
    let spec = EgressMapperSpec {
        pod_subnet: Some("10.244.0.0/16".to_owned()),
        service_subnet: Some("10.96.0.0/12".to_owned()),
        ..EgressMapperSpec::default()
    };
    mapper("m", spec)
}

#[rstest]
#[case::any(vip("a", VIP), "Accepted: pods can leave with 192.168.122.222 under route id 1")]
#[case::with_route_id(
    asking("a", VIP, 64),
    "Accepted: pods can leave with 192.168.122.222 under route id 64"
)]
#[case::elsewhere(vip("a", VIP).in_namespace("b"),
    "WrongNamespace: Vips count only in namespace default, where the controller runs; create it there")]
#[case::no_address(
    vip("a", "x"),
    "InvalidAddress: \"x\" cannot be a VIP: it is not an IP address; write one address, such as \
     192.0.2.10 or fd00::10"
)]
#[case::loopback(
    vip("a", "127.0.0.1"),
    "InvalidAddress: \"127.0.0.1\" cannot be a VIP: it is a loopback address; use one that other \
     hosts can reach"
)]
#[case::node(
    vip("a", "192.168.122.11"),
    "InvalidAddress: 192.168.122.11 is an address of Node node1; choose an address of the nodes' \
     network that no host has"
)]
#[case::pod_subnet(
    vip("a", "10.244.9.9"),
    "InvalidAddress: 10.244.9.9 lies in pod subnet 10.244.0.0/16; choose an address of the nodes' \
     network that no host has"
)]
#[case::service_subnet(
    vip("a", "10.96.0.10"),
    "InvalidAddress: 10.96.0.10 lies in service subnet 10.96.0.0/12; choose an address of the \
     nodes' network that no host has"
)]
#[case::pod(
    vip("a", "192.168.122.99"),
    "InvalidAddress: 192.168.122.99 is the address of Pod default/p; choose an address of the \
     nodes' network that no host has"
)]
#[case::route_id_out_of_range(
    asking("a", VIP, 253),
    "RouteIdConflict: routeid \"253\" is not a route id; use a whole number from 1 to 252"
)]
fn a_vip_is_told_what_is_the_case(#[case] vip: crd::Vip, #[case] expected: &str) {
    let namespace = vip.metadata.namespace.clone().unwrap();
    let observed = cluster()
        .mapper(subnets())
        .node(node("node1", "192.168.122.11"))
        .pod(pod("p", &["192.168.122.99"]))
        .vip(vip);
    let outcome = outcome(&observed);
    assert_eq!(outcome.accepted(&format!("{namespace}/a")), expected);
    let accepted = usize::from(expected.starts_with("Accepted"));
    assert_eq!((outcome.0.route_ids.len(), outcome.0.candidates.len()), (accepted, accepted));
}

#[rstest]
#[case::older(3, 2, "b", "a")]
#[case::name(2, 2, "a", "b")]
fn of_two_vips_with_one_address_the_older_counts(
    #[case] a: i64,
    #[case] b: i64,
    #[case] winner: &str,
    #[case] loser: &str,
) {
    let observed = cluster()
        .vip(vip("a", "fd00::1").created(a))
        .vip(vip("b", "fd00:0::1").created(b))
        .vip(vip("c", "fd00::1").created(1).in_namespace("elsewhere"));
    let outcome = outcome(&observed);
    assert!(outcome.accepted(winner).starts_with("Accepted: "));
    assert_eq!(
        outcome.accepted(loser),
        format!(
            "AddressConflict: fd00::1 belongs to Vip default/{winner}, which is older; remove one of \
             the two"
        )
    );
}

fn two_asking() -> Observed {
    cluster()
        .vip(asking("old", "192.168.122.1", 7).created(1))
        .vip(asking("new", "192.168.122.2", 7).created(2))
}

#[test]
fn of_two_vips_with_one_route_id_the_older_counts() {
    let outcome = outcome(&two_asking());
    assert!(outcome.accepted("old").ends_with("under route id 7"));
    assert_eq!(
        outcome.accepted("new"),
        "RouteIdConflict: route id 7 belongs to Vip default/old; choose another, or leave routeid out"
    );
}

#[test]
fn a_route_id_in_use_is_not_taken_away() {
    let outcome = outcome(&two_asking().published("192.168.122.2", 7));
    assert!(outcome.accepted("new").ends_with("under route id 7"));
    assert!(
        outcome
            .accepted("old")
            .starts_with("RouteIdConflict: route id 7 belongs to Vip default/new")
    );
}

#[rstest]
#[case::published(None, Some(9), 9)]
#[case::in_status(Some(8), None, 8)]
#[case::status_before_edits(Some(8), Some(9), 8)]
#[case::nonsense_in_status(Some(0), None, 1)]
fn a_route_id_stays(#[case] status: Option<i64>, #[case] published: Option<u32>, #[case] is: u8) {
    let routeid = status;
    let vip =
        vip("a", VIP).with(|vip| vip.status = Some(VipStatus { routeid, ..VipStatus::default() }));
    let mut observed = cluster().vip(vip);
    if let Some(route_id) = published {
        observed = observed.published(VIP, route_id);
    }
    assert_eq!(outcome(&observed).vip("a").route_id.unwrap().number(), is);
}

#[test]
fn without_a_free_route_id_a_vip_is_refused() {
    let mut observed = cluster();
    for number in 1..=253 {
        observed = observed.vip(vip(
            &format!("v{number:03}"),
            &format!("198.51.{}.{}", number / 200, number % 200 + 1),
        ));
    }
    assert_eq!(
        outcome(&observed).accepted("v253"),
        "NoFreeRouteId: all 252 route ids are taken; remove a Vip"
    );
}

#[rstest]
#[case::nobody(&[], None, "no node reports that it holds 192.168.122.222, so external traffic of its \
    pods is dropped; look at the pods of DaemonSets kube-keepalived-vip and kube-egress")]
#[case::one(&[("a", 5)], Some("a"), "Node a holds 192.168.122.222")]
#[case::the_latest(&[("a", 5), ("b", 6)], Some("b"), "Node b holds 192.168.122.222")]
#[case::of_one_time_the_first_name(&[("b", 5), ("a", 5)], Some("a"), "Node a holds 192.168.122.222")]
#[case::a_node_that_is_gone(&[("a", 5), ("gone", 6)], Some("a"), "Node a holds 192.168.122.222")]
fn the_holder_is_the_node_that_got_the_address_last(
    #[case] reports: &[(&str, i64)],
    #[case] holder: Option<&str>,
    #[case] message: &str,
) {
    let mut observed =
        cluster().node(node("a", "10.1.0.1")).node(node("b", "10.1.0.2")).vip(vip("v", VIP));
    for &(node, since) in reports {
        observed = observed.holds(node, VIP, since);
    }
    let outcome = outcome(&observed);
    assert_eq!(outcome.vip("v").holder.as_deref(), holder);
    assert_eq!(outcome.vip("v").held.message, message);
    assert_eq!(outcome.vip("v").held.holds(), holder.is_some());
}

#[test]
fn a_vip_says_who_uses_it_also_when_no_pod_does() {
    let observed = cluster()
        .vip(vip("v", VIP))
        .vip(vip("w", "192.168.122.9"))
        .egress(egress("b", VIP, "pod", "none"))
        .egress(or_node_address(egress("a", VIP, "pod", "none")))
        .egress(egress("stranger", VIP, "pod", "none").in_namespace("elsewhere"));
    let outcome = outcome(&observed);
    assert_eq!(outcome.vip("v").in_use.message, "used by Egress default/a, default/b");
    assert!(outcome.vip("v").in_use.holds());
    assert_eq!(outcome.vip("w").in_use.message, "no Egress uses it");
    assert!(!outcome.vip("w").in_use.holds());
}

#[test]
fn a_vip_that_is_being_deleted_counts_until_it_is_gone() {
    let observed = cluster()
        .vip(vip("v", VIP).with(|vip| {
            vip.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(9)));
        }))
        .pod(pod("p", &["10.244.1.1"]))
        .egress(egress("e", VIP, "pod", "p"));
    assert_eq!(outcome(&observed).mapped(), [format!("10.244.1.1 {VIP}")]);
}

#[rstest]
#[case::nobody_says(None, None, VipPath::ViaHolder)]
#[case::by_default(None, Some(VipPath::Direct), VipPath::Direct)]
#[case::the_vip_says(Some(VipPath::ViaHolder), Some(VipPath::Direct), VipPath::ViaHolder)]
#[case::only_the_vip_says(Some(VipPath::Direct), None, VipPath::Direct)]
fn a_vip_says_its_path_or_the_mapper_does(
    #[case] path: Option<VipPath>,
    #[case] default_path: Option<VipPath>,
    #[case] expected: VipPath,
) {
    let spec = EgressMapperSpec { default_path, ..EgressMapperSpec::default() };
    let observed = cluster()
        .vip(vip("a", VIP).with(|vip| vip.spec.path = path))
        .vip(vip("refused", VIP).created(1))
        .mapper(mapper("m", spec));
    let outcome = outcome(&observed);
    let paths: Vec<(&Vip, VipPath)> =
        outcome.0.paths.iter().map(|(vip, (_, path))| (vip, *path)).collect();
    assert_eq!(paths, [(&VIP.parse().unwrap(), expected)]);
    // Until it is known what nodes do.
    assert_eq!(outcome.vip("a").path.as_ref().map(|path| path.taken), Some(PathTaken::ViaHolder));
    assert_eq!(outcome.vip("refused").path, None);
}
