//! Which pods an Egress reaches, and what becomes of each address.

use rstest::rstest;
use shared::crd::{Kind, LabelSelector};

use super::builders::*;
use crate::model::{EgressReason, Observed, Owner, Pod};

const IP: &str = "10.244.1.2";

fn with_vip() -> Observed {
    cluster().node(node("node1", "192.168.122.11")).holds("node1", VIP, 1).vip(vip("a", VIP))
}

fn owned_pod(kind: Kind, owner_name: &str) -> Pod {
    pod("p", &[IP]).with(|pod| pod.owner = Some(owner(kind, owner_name)))
}

fn deployment() -> Owner {
    owner(Kind::Deployment, "web")
}

fn cron_job() -> Owner {
    owner(Kind::CronJob, "nightly")
}

#[rstest]
#[case::pod("pod", "p", pod("p", &[IP]), None)]
#[case::replication_controller("rc", "x", owned_pod(Kind::ReplicationController, "x"), None)]
#[case::replica_set("ReplicaSet", "x", owned_pod(Kind::ReplicaSet, "x"), None)]
#[case::stateful_set("sts", "x", owned_pod(Kind::StatefulSet, "x"), None)]
#[case::daemon_set("daemonsets", "x", owned_pod(Kind::DaemonSet, "x"), None)]
#[case::job("JOB", "x", owned_pod(Kind::Job, "x"), None)]
#[case::deployment("deploy", "web", owned_pod(Kind::ReplicaSet, "web-1"), Some((Kind::ReplicaSet, "web-1", deployment())))]
#[case::replica_set_of_deployment("rs", "web-1", owned_pod(Kind::ReplicaSet, "web-1"), Some((Kind::ReplicaSet, "web-1", deployment())))]
#[case::cron_job("cj", "nightly", owned_pod(Kind::Job, "nightly-1"), Some((Kind::Job, "nightly-1", cron_job())))]
#[case::namespace("ns", "default", pod("p", &[IP]), None)]
#[case::own_namespace("namespace", "", pod("p", &[IP]), None)]
fn every_kind_reaches_its_pods(
    #[case] kind: &str,
    #[case] name: &str,
    #[case] member: Pod,
    #[case] middle: Option<(Kind, &str, Owner)>,
) {
    let stranger = pod("stranger", &["10.244.9.9"]).with(|pod| {
        pod.namespace = "elsewhere".to_owned();
        pod.owner = Some(owner(Kind::StatefulSet, "another"));
    });
    let mut observed = with_vip().pod(member).pod(stranger).egress(egress("e", VIP, kind, name));
    if let Some((kind, name, by)) = middle {
        observed = observed.owned(kind, name, Some(by));
    }
    let outcome = outcome(&observed);
    assert_eq!(outcome.mapped(), [format!("{IP} {VIP}")]);
    assert_eq!(outcome.said("e"), format!("Mapped: 1 pod leaves with {VIP}"));
}

#[rstest]
#[case::another_name("pod", "q", pod("p", &[IP]))]
#[case::kind_of_owner("sts", "x", owned_pod(Kind::DaemonSet, "x"))]
#[case::owner_is_no_pod_name("pod", "x", owned_pod(Kind::StatefulSet, "x"))]
#[case::orphan("deploy", "web", pod("web-1-abcde", &[IP]))]
#[case::other_namespace("ns", "elsewhere", pod("p", &[IP]))]
fn other_pods_are_left_alone(#[case] kind: &str, #[case] name: &str, #[case] other: Pod) {
    let outcome = outcome(&with_vip().pod(other).egress(egress("e", VIP, kind, name)));
    assert!(outcome.mapped().is_empty());
    assert_eq!(outcome.egress("e").ready.reason, EgressReason::NoMatchingPods);
}

#[rstest]
#[case::replica_set("deploy", "web", Kind::ReplicaSet, "web-5d4f", true)]
#[case::name_with_dashes("deploy", "web-x", Kind::ReplicaSet, "web-x-5d4f", true)]
#[case::other_hash("deploy", "web", Kind::ReplicaSet, "web-7777", false)]
#[case::job("cronjob", "nightly", Kind::Job, "nightly-28394820", true)]
#[case::job_with_another_number("cronjob", "nightly", Kind::Job, "nightly-7", false)]
#[case::job_by_hand("cronjob", "nightly", Kind::Job, "nightly-manual", false)]
fn pods_stay_mapped_when_what_controls_them_is_deleted_first(
    #[case] kind: &str,
    #[case] name: &str,
    #[case] owner_kind: Kind,
    #[case] owner_name: &str,
    #[case] reached: bool,
) {
    let terminating = owned_pod(owner_kind, owner_name).with(|pod| {
        pod.terminating = true;
        pod.labels = labels(&[("pod-template-hash", "5d4f")]).into();
    });
    let outcome = outcome(&with_vip().pod(terminating).egress(egress("e", VIP, kind, name)));
    assert_eq!(outcome.mapped().len(), usize::from(reached));
}

#[test]
fn a_known_replica_set_without_a_deployment_is_of_none() {
    let member = owned_pod(Kind::ReplicaSet, "web-5d4f")
        .with(|pod| pod.labels = labels(&[("pod-template-hash", "5d4f")]).into());
    let observed = with_vip().pod(member).owned(Kind::ReplicaSet, "web-5d4f", None).egress(egress(
        "e",
        VIP,
        "deployment",
        "web",
    ));
    assert!(outcome(&observed).mapped().is_empty());
}

#[rstest]
#[case::deployment_is_older(1, 2, "192.168.122.7")]
#[case::replica_set_is_older(2, 1, VIP)]
fn both_owners_of_a_pod_count_alike(
    #[case] of_deployment: i64,
    #[case] of_replica_set: i64,
    #[case] expected: &str,
) {
    let observed = with_vip()
        .vip(vip("b", "192.168.122.7"))
        .pod(owned_pod(Kind::ReplicaSet, "web-1"))
        .owned(Kind::ReplicaSet, "web-1", Some(deployment()))
        .egress(egress("d", "192.168.122.7", "deploy", "web").created(of_deployment))
        .egress(egress("r", VIP, "rs", "web-1").created(of_replica_set));
    assert_eq!(outcome(&observed).mapped(), [format!("{IP} {expected}")]);
}

#[test]
fn a_selector_selects_pods_of_the_namespace() {
    let selector: LabelSelector =
        serde_json::from_str(r#"{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"tier","operator":"NotIn","values":["test"]}]}"#).unwrap();
    let labelled = |name: &str, ip: &str, of: &[(&str, &str)]| {
        pod(name, &[ip]).with(|pod| pod.labels = labels(of).into())
    };
    let observed = with_vip()
        .pod(labelled("a", "10.244.1.1", &[("app", "web")]))
        .pod(labelled("b", "10.244.1.2", &[("app", "db")]))
        .pod(labelled("c", "10.244.1.3", &[("app", "web"), ("tier", "test")]))
        .pod(
            labelled("d", "10.244.1.4", &[("app", "web")])
                .with(|pod| pod.namespace = "elsewhere".to_owned()),
        )
        .egress(egress("e", VIP, "pod", "").with(|egress| egress.spec.selector = Some(selector)));
    assert_eq!(outcome(&observed).mapped(), [format!("10.244.1.1 {VIP}")]);
}

#[test]
fn what_cannot_be_mapped_is_left_out_and_counted() {
    let observed = with_vip()
        .pod(pod("a", &["10.244.1.1"]))
        .pod(pod("b", &["192.168.122.11"]).with(|pod| pod.host_network = true))
        .pod(pod("c", &["10.244.1.3"]).with(|pod| pod.finished = true))
        .pod(pod("d", &[]).with(|pod| pod.node = None))
        .pod(pod("e", &["10.244.1.5"]).with(|pod| pod.terminating = true))
        .pod(pod("f", &["fd00:244::6"]))
        .pod(pod("g", &["192.168.122.11"]))
        .egress(egress("e", VIP, "namespace", ""));
    let outcome = outcome(&observed);
    assert_eq!(
        outcome.mapped(),
        [format!("10.244.1.1 {VIP}"), format!("10.244.1.5 {VIP}"), "fd00:244::6 held".to_owned()]
    );
    let verdict = outcome.egress("e");
    assert_eq!((verdict.pods, verdict.mapped, verdict.left_out), (5, 2, 2));
    assert_eq!(
        outcome.said("e"),
        "Mapped: 2 pods leave with 192.168.122.222; 1 pod without an address yet; 1 pod without an \
         address of the VIP's family; 1 pod with an address that is another pod's or a node's; 1 \
         pod left out on the host network; 1 pod left out as finished"
    );
    assert_eq!(outcome.vip("a").pods, 2);
}

#[test]
fn pods_are_published_with_their_node() {
    let observed = with_vip()
        .pod(pod("a", &["10.244.1.1"]))
        .pod(pod("b", &["10.244.2.1"]).with(|pod| pod.node = Some("node2".to_owned())))
        .pod(pod("c", &["10.244.3.1"]).with(|pod| {
            pod.node = Some("node3".to_owned());
            pod.namespace = "elsewhere".to_owned();
        }))
        .egress(egress("e", VIP, "namespace", ""));
    let shards = outcome(&observed).0.shards;
    let nodes: Vec<_> = shards.iter().map(|(node, pods)| (node.as_str(), pods.len())).collect();
    assert_eq!(nodes, [("node1", 1), ("node2", 1)]);
}

const VIP6: &str = "2001:db8::222";

#[rstest]
#[case::both(&[VIP, VIP6], &["10.244.1.1 192.168.122.222", "fd00:244::1 2001:db8::222"])]
#[case::ipv4_alone(&[VIP], &["10.244.1.1 192.168.122.222", "fd00:244::1 held"])]
#[case::ipv6_alone(&[VIP6], &["10.244.1.1 held", "fd00:244::1 2001:db8::222"])]
#[case::the_other_is_missing(&[VIP, "2001:db8::9"], &["10.244.1.1 192.168.122.222", "fd00:244::1 held"])]
#[case::neither_exists(&["192.168.122.9"], &["10.244.1.1 held", "fd00:244::1 held"])]
#[case::no_address_at_all(&["nonsense"], &["10.244.1.1 held", "fd00:244::1 held"])]
fn each_family_has_its_vip_or_is_held(#[case] ips: &[&str], #[case] expected: &[&str]) {
    let mut observed =
        with_vip().vip(vip("six", VIP6)).pod(pod("p", &["10.244.1.1", "fd00:244::1"]));
    for (number, ip) in ips.iter().enumerate() {
        observed = observed.egress(egress(&format!("e{number}"), ip, "pod", "p"));
    }
    assert_eq!(outcome(&observed).mapped(), expected);
}

#[rstest]
#[case::the_newer_has_it(5, 9, &["10.244.1.1 192.168.122.7"])]
#[case::also_when_listed_first(9, 5, &["10.244.1.1 192.168.122.222"])]
fn an_address_that_was_given_away_is_the_newer_pods(
    #[case] first_created: i64,
    #[case] second_created: i64,
    #[case] expected: &[&str],
) {
    let created =
        |name: &str, seconds: i64| pod(name, &["10.244.1.1"]).with(|pod| pod.created = at(seconds));
    let observed = with_vip()
        .vip(vip("b", "192.168.122.7"))
        .pod(created("first", first_created))
        .pod(created("second", second_created))
        .egress(egress("e1", VIP, "pod", "first"))
        .egress(egress("e2", "192.168.122.7", "pod", "second"));
    assert_eq!(outcome(&observed).mapped(), expected);
}

#[test]
fn an_address_that_was_given_to_an_unmapped_pod_inherits_nothing() {
    let observed = with_vip()
        .pod(pod("old", &[IP]))
        .pod(pod("new", &[IP]).with(|pod| pod.created = at(5)))
        .egress(egress("e", VIP, "pod", "old"));
    let outcome = outcome(&observed);
    assert!(outcome.mapped().is_empty());
    assert_eq!(
        outcome.said("e"),
        "NoMatchingPods: no matching pod has an address to map; 1 pod with an address that is \
         another pod's or a node's"
    );
}

#[test]
fn an_address_that_was_given_away_is_not_called_one_of_the_other_family() {
    let observed = with_vip()
        .pod(pod("old", &[IP, "fd00:244::2"]))
        .pod(pod("new", &[IP]).with(|pod| pod.created = at(5)))
        .egress(egress("e", VIP, "pod", "old"));
    let outcome = outcome(&observed);
    assert_eq!(outcome.mapped(), ["fd00:244::2 held"]);
    assert!(outcome.said("e").ends_with("1 pod with an address that is another pod's or a node's"));
}

#[test]
fn a_finished_pod_does_not_keep_its_address() {
    let observed = with_vip()
        .pod(pod("live", &[IP]))
        .pod(pod("finished", &[IP]).with(|pod| {
            pod.created = at(5);
            pod.finished = true;
        }))
        .egress(egress("e", VIP, "pod", "live"));
    assert_eq!(outcome(&observed).mapped(), [format!("{IP} {VIP}")]);
}
