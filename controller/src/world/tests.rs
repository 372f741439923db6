use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::watch::objects::{NodeObject, PodObject, ReplicaSetMeta};
use shared::crd::Kind;

fn pod_object(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("u-{name}"), "resourceVersion": "5",
            "labels": { "app": "web" }, "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": { "bulk": "x" }, "managedFields": [{ "manager": "m" }],
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n" },
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "rs", "controller": true },
            ],
        },
        "spec": { "nodeName": "n1", "containers": [{ "name": "main" }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }, { "ip": "fd00::1" }] },
    })
}

fn a_pod(name: &str, ip: &str) -> Pod {
    pod(serde_json::from_value::<PodObject>(pod_object(name, ip)).unwrap()).unwrap()
}

#[test]
fn a_pod_is_reduced_to_what_decides() {
    let pod = a_pod("a", "10.0.0.1");
    let owner = pod.owner.clone().unwrap();
    assert_eq!((owner.kind, owner.uid.as_str()), (Kind::ReplicaSet, "rs"));
    assert_eq!(
        pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::1"]
    );
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert_eq!(pod.created, "2026-01-02T03:04:05Z".parse::<Timestamp>().unwrap());
    assert!(!pod.finished && !pod.terminating && !pod.host_network);
}

#[test]
fn what_an_object_lacks_is_no_failure() {
    let bare = json!({ "metadata": { "name": "a", "namespace": "b" } });
    let pod = pod(serde_json::from_value(bare.clone()).unwrap()).unwrap();
    assert!(pod.ips.is_empty() && pod.node.is_none() && pod.owner.is_none());
    let null =
        json!({ "metadata": { "name": "a" }, "status": { "conditions": null, "addresses": null } });
    let node = node(serde_json::from_value::<NodeObject>(null).unwrap()).unwrap();
    assert!(!node.ready && node.addresses.is_empty());
    let meta = serde_json::from_value::<ReplicaSetMeta>(bare).unwrap();
    // Without a uid nobody can refer to it.
    assert_eq!(owned(Kind::ReplicaSet, meta.metadata), None);
}

#[test]
fn a_node_says_which_addresses_and_networks_are_its_own() {
    let object = json!({
        "metadata": { "name": "n1", "labels": { "zone": "a" } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"], "unschedulable": true },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": "192.168.0.1" },
                { "type": "ExternalIP", "address": "203.0.113.1" },
                { "type": "Hostname", "address": "n1" },
            ],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    let node = node(serde_json::from_value::<NodeObject>(object).unwrap()).unwrap();
    assert!(node.ready && node.unschedulable);
    assert_eq!(node.addresses.len(), 2);
    assert_eq!(node.internal, ["192.168.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.pod_cidrs.len(), 2);
}

#[test]
fn nothing_is_decided_before_everything_was_listed() {
    let mut world = World::new("default");
    assert_eq!(world.missing().len(), 9);
    assert!(world.learn(News::Pods(Change::Listed(vec![]))), "that a list is complete is news");
    assert!(!world.missing().contains(&"Pods"));
    assert!(!world.learn(News::Pods(Change::Listed(vec![]))));
}

#[test]
fn only_what_is_different_is_news() {
    let mut world = World::new("default");
    assert!(world.learn(News::Pods(Change::Seen(a_pod("a", "10.0.0.1")))));
    assert!(!world.learn(News::Pods(Change::Seen(a_pod("a", "10.0.0.1")))));
    assert!(world.learn(News::Pods(Change::Seen(a_pod("a", "10.0.0.2")))));
    assert!(!world.learn(News::Pods(Change::Gone(a_pod("b", "10.0.0.2")))));
    assert_eq!(world.observed(Timestamp::UNIX_EPOCH).pods.len(), 1);
    assert!(world.learn(News::Pods(Change::Gone(a_pod("a", "10.0.0.2")))));
    assert!(world.observed(Timestamp::UNIX_EPOCH).pods.is_empty());
}

#[test]
fn a_new_list_replaces_what_was_known() {
    let mut world = World::new("default");
    world.learn(News::Pods(Change::Listed(vec![a_pod("a", "10.0.0.1"), a_pod("b", "10.0.0.2")])));
    assert!(world.learn(News::Pods(Change::Listed(vec![a_pod("b", "10.0.0.2")]))));
    let names: Vec<_> =
        world.observed(Timestamp::UNIX_EPOCH).pods.iter().map(|pod| pod.name.clone()).collect();
    assert_eq!(names, ["b"]);
    assert!(!world.learn(News::Pods(Change::Listed(vec![a_pod("b", "10.0.0.2")]))));
}

#[test]
fn equal_labels_are_kept_once() {
    let mut world = World::new("default");
    let pods = (0..300).map(|n| a_pod(&format!("p{n}"), "10.0.0.1")).collect();
    world.learn(News::Pods(Change::Listed(pods)));
    let observed = world.observed(Timestamp::UNIX_EPOCH);
    let first = &observed.pods[0].labels;
    assert!(observed.pods.iter().all(|pod| Arc::ptr_eq(&pod.labels, first)));
    assert_eq!(world.labels.0.len(), 1);
}

#[test]
fn what_nodes_report_is_read_anew_when_it_changes() {
    let report = |version: &str, holds: &str| -> ConfigMapObject {
        let object = json!({
            "metadata": { "name": "egress-node-n1", "resourceVersion": version },
            "data": { "holds": holds, "synced": "true" },
        });
        serde_json::from_value(object).unwrap()
    };
    let held = "192.168.0.9 2026-11-23T10:00:00Z";
    let mut world = World::new("default");
    assert!(world.learn(News::ConfigMaps(Change::Seen(report("1", held)))));
    assert!(world.reports()["n1"].synced);
    assert_eq!(world.reports()["n1"].holds.len(), 1);
    assert!(world.learn(News::ConfigMaps(Change::Seen(report("2", "")))));
    assert!(world.observed(Timestamp::UNIX_EPOCH).reports["n1"].holds.is_empty());
    assert!(world.learn(News::ConfigMaps(Change::Gone(report("3", "")))));
    assert!(world.reports().is_empty());
}

#[test]
fn other_nodes_reach_a_node_by_its_first_internal_address_of_each_family() {
    let address = |kind: &str, address: &str| json!({ "type": kind, "address": address });
    let object = json!({
        "metadata": { "name": "n1" },
        "status": { "addresses": [
            address("Hostname", "n1"),
            address("ExternalIP", "203.0.113.1"),
            address("InternalIP", "192.168.0.1"),
            address("InternalIP", "fd00::1"),
            address("InternalIP", "192.168.1.1"),
        ] },
    });
    let node = super::convert::node(serde_json::from_value(object).unwrap()).unwrap();
    let reached_at: Vec<_> = node.reached_at().map(|addr| addr.to_string()).collect();
    assert_eq!(reached_at, ["192.168.0.1", "fd00::1"]);
    assert_eq!(node.internal.len(), 3);
    assert_eq!(node.addresses.len(), 4);
}

#[test]
fn published_route_ids_are_those_in_the_object() {
    let object = json!({
        "metadata": { "name": "vip-routeid-mappings", "resourceVersion": "1" },
        "data": { "192.168.0.9": "7", "nonsense": "8" },
    });
    let mut world = World::new("default");
    world.learn(News::ConfigMaps(Change::Seen(serde_json::from_value(object).unwrap())));
    let ids = world.observed(Timestamp::UNIX_EPOCH).published_route_ids;
    assert_eq!(
        ids.into_iter().map(|(vip, id)| format!("{vip} {id}")).collect::<Vec<_>>(),
        ["192.168.0.9 7"]
    );
}

#[test]
fn of_a_report_that_is_not_understood_no_block_is_thought_to_be_unused() {
    let mut world = World::new("default");
    let report = |node: &str, version: &str, blocks: &str| {
        let object = json!({
            "metadata": { "name": format!("egress-node-{node}"), "resourceVersion": version },
            "data": { "synced": "true", "blocks": blocks },
        });
        News::ConfigMaps(Change::Seen(serde_json::from_value(object).unwrap()))
    };
    let said = |world: &World| -> Vec<String> {
        let all = world.uses_of_blocks();
        all.map(|(node, of)| format!("{node} {}", of.len())).collect()
    };
    world.learn(report("a", "1", "192.168.0.222 1,2 Direct 3"));
    world.learn(report("b", "2", "192.168.0.222 1,2 Direct 3\n192.168.0.223 from the future"));
    world.learn(report("c", "3", ""));
    assert_eq!(said(&world), ["a 1", "c 0"]);
    assert!(world.reports()["b"].synced);
    world.learn(report("b", "4", "192.168.0.222 1,2 Direct 3"));
    assert_eq!(said(&world), ["a 1", "b 1", "c 0"]);
}
