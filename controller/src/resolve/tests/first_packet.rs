//! What is published of pods whose addresses the API does not know yet.

use shared::{PodIp, PodUid};

use super::builders::{
    Build, Change, VIP, at, cluster, egress, node, or_node_address, outcome, pod, vip,
};
use crate::model::{Named, Observed, Pod};
use crate::resolve;

const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";
const OTHER: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22";

/// A pod that was bound to node1 and has no address yet.
fn new_pod(name: &str, uid: &str) -> Pod {
    pod(name, &[]).with(|pod| uid.clone_into(&mut pod.uid))
}

fn covered(pod: Pod) -> Observed {
    cluster()
        .node(node("node1", "192.168.122.11"))
        .node(node("node2", "192.168.122.12"))
        .vip(vip("vip", VIP))
        .egress(egress("egress", VIP, "pod", "pod1"))
        .pod(pod)
}

fn reports(mut observed: Observed, node: &str, uid: &str, ips: &[&str]) -> Observed {
    let ips = ips.iter().map(|ip| ip.parse::<PodIp>().unwrap()).collect();
    let pods = &mut observed.reports.entry(node.to_owned()).or_default().pods;
    pods.insert(uid.parse::<PodUid>().unwrap(), ips);
    observed
}

/// Every pod that is named by its UID: "NODE UID VIPS".
fn expected(observed: &Observed) -> Vec<String> {
    let named = resolve(observed).named;
    let of_node = |(node, pods): (&String, &Named)| {
        let data = shared::config_map::encode_expected(&pods.expected);
        data.into_iter().map(|(uid, vips)| format!("{node} {uid} {vips}")).collect::<Vec<_>>()
    };
    named.iter().flat_map(of_node).collect()
}

/// Every pod of which it is said which addresses it has: "NODE UID ADDRESSES".
fn addresses(observed: &Observed) -> Vec<String> {
    let named = resolve(observed).named;
    let of_pod = |node: &String, (uid, ips): (&PodUid, &Vec<PodIp>)| {
        let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
        format!("{node} {uid} {}", ips.join(","))
    };
    let of_node = |(node, pods): (&String, &Named)| {
        pods.addresses.iter().map(|pod| of_pod(node, pod)).collect::<Vec<_>>()
    };
    named.iter().flat_map(of_node).collect()
}

/// Every pod of which it is said that nothing is for it: "NODE UID".
fn uncovered(observed: &Observed) -> Vec<String> {
    let named = resolve(observed).named;
    let of_node = |(node, pods): (&String, &Named)| {
        pods.uncovered.iter().map(|uid| format!("{node} {uid}")).collect::<Vec<_>>()
    };
    named.iter().flat_map(of_node).collect()
}

#[test]
fn a_pod_is_named_by_its_uid_from_when_it_is_bound_until_it_has_an_address() {
    let unbound = covered(new_pod("pod1", UID).with(|pod| pod.node = None));
    assert_eq!(expected(&unbound), [""; 0]);
    let bound = covered(new_pod("pod1", UID));
    assert_eq!(expected(&bound), [format!("node1 {UID} {VIP}")]);
    assert_eq!(outcome(&bound).mapped(), [""; 0]);
    assert_eq!(
        outcome(&bound).said("egress"),
        "NoMatchingPods: no matching pod has an address to map; 1 pod without an address yet"
    );
    let with_address = covered(new_pod("pod1", UID).with(|pod| {
        pod.ips = vec!["10.244.0.1".parse().unwrap()];
    }));
    assert_eq!(expected(&with_address), [""; 0]);
    assert_eq!(outcome(&with_address).mapped(), [format!("10.244.0.1 {VIP}")]);
}

#[test]
fn pods_that_no_egress_maps_or_holds_are_not_named() {
    let never = [
        new_pod("pod1", UID).with(|pod| pod.host_network = true),
        new_pod("pod1", UID).with(|pod| pod.finished = true),
        new_pod("pod2", UID),
        new_pod("pod1", "static"),
    ];
    for pod in never {
        assert_eq!(expected(&covered(pod)), [""; 0]);
    }
    let mut held = covered(new_pod("pod1", UID));
    held.vips.clear();
    assert_eq!(expected(&held), [format!("node1 {UID} ")]);
    held.egresses = vec![or_node_address(egress("egress", VIP, "pod", "pod1")).into()];
    assert_eq!(expected(&held), [""; 0], "it leaves with the node's address");
}

#[test]
fn both_families_are_named() {
    let both = covered(new_pod("pod1", UID)).vip(vip("vip6", "fd00:122::222")).egress(egress(
        "egress6",
        "fd00:122::222",
        "pod",
        "pod1",
    ));
    assert_eq!(expected(&both), [format!("node1 {UID} {VIP},fd00:122::222")]);
}

#[test]
fn what_its_node_has_learnt_counts_until_the_api_knows() {
    let bound = covered(new_pod("pod1", UID));
    let told = reports(bound.clone(), "node1", UID, &["10.244.0.1", "fd00:244::1"]);
    assert_eq!(expected(&told), [""; 0]);
    assert_eq!(
        outcome(&told).mapped(),
        [format!("10.244.0.1 {VIP}"), "fd00:244::1 held".to_owned()]
    );
    assert_eq!(
        outcome(&told).said("egress"),
        format!(
            "Mapped: 1 pod leaves with {VIP} as soon as a node holds it; no node does, so external traffic is dropped"
        )
    );

    let by_another_node = reports(bound, "node2", UID, &["10.244.0.1"]);
    assert_eq!(expected(&by_another_node), [format!("node1 {UID} {VIP}")]);
    assert_eq!(outcome(&by_another_node).mapped(), [""; 0]);

    let known = new_pod("pod1", UID).with(|pod| pod.ips = vec!["10.244.0.2".parse().unwrap()]);
    let known = reports(covered(known), "node2", UID, &["10.244.0.1"]);
    assert_eq!(outcome(&known).mapped(), [format!("10.244.0.2 {VIP}")], "of another node");
}

#[test]
fn a_pod_whose_sandbox_is_made_anew_has_its_new_address_before_the_api_knows() {
    let before = pod("pod1", &["10.244.0.1"]).with(|pod| UID.clone_into(&mut pod.uid));
    let anew = reports(covered(before), "node1", UID, &["10.244.0.2", "192.168.122.12"]);
    let both = [format!("10.244.0.1 {VIP}"), format!("10.244.0.2 {VIP}")];
    assert_eq!(outcome(&anew).mapped(), both);
    assert_eq!(addresses(&anew), [format!("node1 {UID} 10.244.0.1,10.244.0.2")]);
    let older = pod("pod2", &["10.244.0.2"]).with(|pod| OTHER.clone_into(&mut pod.uid));
    let taken = outcome(&anew.pod(older)).mapped();
    assert_eq!(taken, [format!("10.244.0.1 {VIP}")], "what the API knows counts first");
}

#[test]
fn an_address_that_is_learnt_belongs_to_the_newest_pod() {
    let old = pod("pod1", &["10.244.0.1"]).with(|pod| pod.terminating = true);
    let new = new_pod("pod2", OTHER).with(|pod| pod.created = at(9));
    let recycled = covered(old).pod(new);
    assert_eq!(outcome(&recycled).mapped(), [format!("10.244.0.1 {VIP}")], "nobody knows yet");
    let recycled = reports(recycled, "node1", OTHER, &["10.244.0.1"]);
    assert_eq!(outcome(&recycled).mapped(), [""; 0], "the new pod is not covered");
}

#[test]
fn it_is_said_whose_the_addresses_are() {
    let ips = ["10.244.0.1", "fd00:244::1"];
    let known = covered(new_pod("pod1", UID).with(|pod| {
        pod.ips = ips.map(|ip| ip.parse().unwrap()).into();
    }));
    assert_eq!(addresses(&known), [format!("node1 {UID} 10.244.0.1,fd00:244::1")]);
    let learnt = reports(covered(new_pod("pod1", UID)), "node1", UID, &ips);
    assert_eq!(addresses(&learnt), addresses(&known));
    let newer = new_pod("pod2", OTHER).with(|pod| {
        pod.created = at(9);
        pod.ips = vec!["fd00:244::1".parse().unwrap()];
    });
    assert_eq!(addresses(&known.pod(newer)), [format!("node1 {UID} 10.244.0.1")]);
    assert_eq!(addresses(&covered(new_pod("pod1", UID))), [""; 0]);
}

#[test]
fn a_node_that_asks_is_told_that_a_pod_gets_nothing() {
    let pods = || covered(new_pod("pod1", UID)).pod(new_pod("pod2", OTHER));
    assert_eq!(uncovered(&pods()), [""; 0]);
    let asked = reports(pods(), "node1", OTHER, &["10.244.0.2"]);
    assert_eq!(uncovered(&asked), [format!("node1 {OTHER}")]);
    assert_eq!(uncovered(&reports(pods(), "node2", OTHER, &["10.244.0.2"])), [""; 0]);
    assert_eq!(uncovered(&reports(pods(), "node1", UID, &["10.244.0.1"])), [""; 0]);
    let mut released = reports(pods(), "node1", UID, &["10.244.0.1"]);
    released.vips.clear();
    released.egresses = vec![or_node_address(egress("egress", VIP, "pod", "pod1")).into()];
    assert_eq!(uncovered(&released), [format!("node1 {UID}")], "it leaves with the node's address");
}
