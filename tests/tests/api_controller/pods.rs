//! Which pods leave with which VIP: what is published of them, and that nothing else is written.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{ApiServer, Controller, ObjectCluster};

use crate::{OTHER_VIP, VIP, egress, mapped, started, two_nodes, uid};

fn owned_by(kind: &str, name: &str, uid: &str) -> Value {
    let group = match kind {
        "Job" | "CronJob" => "batch/v1",
        "ReplicationController" => "v1",
        _ => "apps/v1",
    };
    json!({ "ownerReferences": [
        { "apiVersion": group, "kind": kind, "name": name, "uid": uid, "controller": true }
    ]})
}

/// An object in the middle of a chain of owners.
fn middle(cluster: &ObjectCluster, kind: &str, name: &str, owner: &Value) -> Result<String> {
    let mut metadata = owner.clone();
    metadata["name"] = name.into();
    metadata["namespace"] = "default".into();
    let pod = json!({ "containers": [{ "name": "main", "image": "localhost/none" }] });
    let labels = json!({ "of": name });
    let object = if kind == "Job" {
        let mut pod = pod;
        pod["restartPolicy"] = "Never".into();
        json!({ "apiVersion": "batch/v1", "kind": kind, "metadata": metadata,
            "spec": { "template": { "spec": pod } } })
    } else {
        json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": metadata,
            "spec": { "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod } } })
    };
    Ok(uid(&cluster.apply(&object)?)?.to_owned())
}

#[test]
fn pods_of_every_kind_of_owner_are_published() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let controller = started(&server, "one")?;

    let set = middle(&cluster, "ReplicaSet", "web-1", &owned_by("Deployment", "web", "u-web"))?;
    let lone = middle(&cluster, "ReplicaSet", "lone", &json!({}))?;
    let job = middle(&cluster, "Job", "tick-1", &owned_by("CronJob", "tick", "u-tick"))?;
    let single = middle(&cluster, "Job", "once", &json!({}))?;
    let owners = [
        ("deployment", "web", owned_by("ReplicaSet", "web-1", &set)),
        ("RS", "lone", owned_by("ReplicaSet", "lone", &lone)),
        ("cronjob", "tick", owned_by("Job", "tick-1", &job)),
        ("Job", "once", owned_by("Job", "once", &single)),
        ("StatefulSet", "db", owned_by("StatefulSet", "db", "u-db")),
        ("ds", "each", owned_by("DaemonSet", "each", "u-each")),
        ("rc", "old", owned_by("ReplicationController", "old", "u-old")),
        ("pod", "pod7", json!({})),
    ];
    for (number, (kind, name, metadata)) in owners.iter().enumerate() {
        cluster.egress(&format!("egress-{number}"), &egress(kind, name))?;
        let pod = format!("pod{number}");
        cluster.pod(&pod, "n1", metadata)?;
        cluster.address(&pod, &[&format!("10.244.1.{}", number + 10)])?;
    }
    let selected =
        json!({ "ip": VIP, "kind": "pod", "selector": { "matchLabels": { "app": "x" } } });
    cluster.egress("egress-selector", &selected)?;
    cluster.pod("selected", "n2", &json!({ "labels": { "app": "x" } }))?;
    cluster.address("selected", &["10.244.2.10", "fd00:244::10"])?;
    cluster.pod("unmapped", "n2", &json!({}))?;
    cluster.address("unmapped", &["10.244.2.11"])?;

    cluster.eventually("all pods of n1 published", |cluster| {
        cluster.share("n1").is_some_and(|data| data.len() == owners.len())
    });
    for number in 0..owners.len() {
        let key = format!("10.244.1.{}", number + 10);
        assert_eq!(cluster.entry("podip-vip-mappings-n1", &key).as_deref(), Some(VIP), "{number}");
    }
    cluster.eventually("the selected pod published, its other family held", |cluster| {
        let data = cluster.share("n2").unwrap_or_default();
        let expected = [("10.244.2.10", VIP), ("fd00-244--10", "")];
        data == expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    });
    let shard = cluster.get("ConfigMap", "default", "podip-vip-mappings-n2").context("gone")?;
    assert_eq!(
        shard["metadata"]["labels"],
        json!({ "app.kubernetes.io/managed-by": "egress-mapper", "egress.mapper.com/node": "n2" })
    );
    assert_eq!(cluster.entry("vip-routeid-mappings", VIP).as_deref(), Some("64"));
    assert_eq!(cluster.entry("vip-configmap", VIP).as_deref(), Some(""));
    assert!(cluster.entry("vip-candidates", VIP).is_some_and(|nodes| nodes.contains("n1")));
    assert_eq!(
        cluster.entry("egress-networks", "node-addresses").as_deref(),
        Some("192.168.122.11,192.168.122.12")
    );
    cluster.eventually("all pods in the object for people", |cluster| {
        cluster.data("podip-vip-mappings").is_some_and(|data| data.len() == owners.len() + 2)
    });
    cluster.eventually("the Egress says so", |cluster| {
        cluster
            .condition("Egress", "egress-0", "Ready")
            .is_some_and(|is| is[..2] == ["True", "Mapped"])
    });

    // A pod goes: its address goes at once, and a pod that gets it next is not mapped.
    cluster.delete("Pod", "default", "pod7")?;
    cluster.pod("successor", "n1", &json!({}))?;
    cluster.address("successor", &["10.244.1.17"])?;
    cluster.eventually("the address is free", |cluster| {
        cluster.entry("podip-vip-mappings-n1", "10.244.1.17").is_none()
    });
    // A finished pod is not mapped any more.
    let finished = json!({ "status": { "phase": "Succeeded" } });
    cluster.patch_status("Pod", "default", "pod3", &finished)?;
    cluster.eventually("a finished pod is left out", |cluster| {
        cluster.entry("podip-vip-mappings-n1", "10.244.1.13").is_none()
    });
    // A node goes: its object is emptied first.
    cluster.delete("Pod", "default", "selected")?;
    cluster.delete("Node", "", "n2")?;
    cluster.eventually("the object of the node that is gone is empty", |cluster| {
        cluster.data("podip-vip-mappings-n2").is_some_and(|data| data.is_empty())
    });
    assert!(controller.metric("egress_controller_writes_total{object=\"shard\"}")? > 2.0);
    Ok(())
}

#[test]
fn only_what_differs_is_written_whoever_made_the_difference() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let mut controller = started(&server, "one")?;
    cluster.egress("all", &json!({ "ip": VIP, "kind": "namespace", "name": "default" }))?;
    for (pod, node, ip) in [("a", "n1", "10.244.1.2"), ("b", "n2", "10.244.2.2")] {
        cluster.pod(pod, node, &json!({}))?;
        cluster.address(pod, &[ip])?;
    }
    let shown = |count: usize| {
        move |cluster: &ObjectCluster| {
            cluster.data("podip-vip-mappings").is_some_and(|data| data.len() == count)
        }
    };
    cluster.eventually("both shown", shown(2));
    cluster.eventually("two pods counted", |cluster| mapped(cluster, "all") == Some(2));
    let objects = [
        "podip-vip-mappings-n2",
        "vip-routeid-mappings",
        "vip-configmap",
        "vip-candidates",
        "egress-networks",
    ];
    let versions =
        |cluster: &ObjectCluster| objects.map(|name| cluster.version("ConfigMap", "default", name));
    let before = versions(&cluster);
    let bytes = |controller: &Controller| {
        controller.metric("egress_controller_written_bytes_total{object=\"shard\"}")
    };
    let written = bytes(&controller)?;
    cluster.pod("c", "n1", &json!({}))?;
    cluster.address("c", &["10.244.1.3"])?;
    cluster.eventually("three shown", shown(3));
    assert_eq!(versions(&cluster), before);
    let cost = bytes(&controller)? - written;
    // Twice: by its UID, then by its address.
    assert!(cost > 10.0 && cost < 400.0, "{cost} bytes for one pod");

    // Hands.
    let edit = json!({ "data": { "10.244.1.2": OTHER_VIP, "10.9.9.9": VIP, "10.244.1.3": null } });
    cluster.patch("ConfigMap", "default", "podip-vip-mappings-n1", &edit)?;
    cluster.eventually("the share of n1 is put right", |cluster| {
        let data = cluster.share("n1").unwrap_or_default();
        let expected = [("10.244.1.2", VIP), ("10.244.1.3", VIP)];
        data == expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    });
    cluster.delete("ConfigMap", "default", "vip-routeid-mappings")?;
    cluster.eventually("route ids are there again", |cluster| {
        cluster.entry("vip-routeid-mappings", VIP).as_deref() == Some("64")
    });
    cluster.patch("ConfigMap", "default", "podip-vip-mappings", &json!({ "data": null }))?;
    cluster.eventually("what people read is put right", shown(3));
    let immutable = json!({ "immutable": true, "data": { "nonsense": "x" } });
    cluster.patch("ConfigMap", "default", "vip-configmap", &immutable)?;
    cluster.eventually("an immutable object is made anew", |cluster| {
        cluster.data("vip-configmap").is_some_and(|data| data.keys().eq([VIP]))
    });

    // A controller that dies, and what happens meanwhile.
    cluster.eventually("three pods counted", |cluster| mapped(cluster, "all") == Some(3));
    let before = versions(&cluster);
    let status = cluster.version("Egress", "default", "all");
    controller.kill(Signal::SIGKILL)?;
    controller.wait()?;
    cluster.delete("Pod", "default", "c")?;
    cluster.delete("ConfigMap", "default", "podip-vip-mappings-n1")?;
    let _again = started(&server, "two")?;
    cluster.eventually("the share is made from nothing", |cluster| {
        cluster.share("n1").is_some_and(|data| data.keys().eq(["10.244.1.2"]))
    });
    cluster.eventually("two shown", shown(2));
    assert_eq!(versions(&cluster), before);
    cluster.eventually("two pods counted", |cluster| mapped(cluster, "all") == Some(2));
    assert_ne!(cluster.version("Egress", "default", "all"), status);
    Ok(())
}

#[test]
fn a_pod_is_published_by_uid_then_by_the_address_that_its_node_reports() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let _controller = started(&server, "first")?;
    cluster.egress("egress", &egress("pod", "new"))?;
    let pod = cluster.pod("new", "n1", &json!({}))?;
    let uid = uid(&pod)?;
    let shard = |cluster: &ObjectCluster| cluster.data("podip-vip-mappings-n1");
    let expected = Some([(uid.to_owned(), VIP.to_owned())].into());
    cluster.eventually("the shard names the UID", |cluster| shard(cluster) == expected);
    let only = |ip: &str| {
        let named = (ip.to_owned(), VIP.to_owned());
        Some([named, (format!("{uid}.addresses"), ip.to_owned())].into())
    };

    let tell = |node: &str, ip: &str| {
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": "default", "name": format!("egress-node-{node}") },
            "data": { "synced": "true", "holds": "", "pods": format!("{uid} {ip}") },
        }))
    };
    tell("n2", "10.244.2.9")?;
    tell("n1", "10.244.1.9")?;
    cluster.eventually("the shard has the address", |cluster| shard(cluster) == only("10.244.1.9"));
    cluster.address("new", &["10.244.1.10"])?;
    let entry = |key: &str| cluster.entry("podip-vip-mappings-n1", key).is_some();
    cluster.eventually("it has both", |_| entry("10.244.1.9") && entry("10.244.1.10"));
    tell("n1", "10.244.1.10")?;
    cluster.eventually("it has one", |cluster| shard(cluster) == only("10.244.1.10"));
    cluster.delete("Pod", "default", "new")?;
    let gone = (uid.to_owned(), "gone".to_owned());
    let only_gone = Some([gone.clone()].into());
    cluster.eventually("its node is told that it is gone", |cluster| shard(cluster) == only_gone);

    let other = cluster.pod("other", "n1", &json!({}))?;
    let other = self::uid(&other)?;
    let ask = |pods: &str| {
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": "default", "name": "egress-node-n1" },
            "data": { "synced": "true", "holds": "", "pods": pods },
        }))
    };
    ask(&format!("{other} 10.244.1.11"))?;
    let answer = Some([gone, (other.to_owned(), "uncovered".to_owned())].into());
    cluster.eventually("nothing is for the other", |cluster| shard(cluster) == answer);
    ask("")?;
    cluster.eventually("nobody asks", |cluster| shard(cluster) == only_gone);
    Ok(())
}
