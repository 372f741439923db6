//! The built controller against a real API server: from resources to what nodes read, and back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{ApiServer, Controller, ObjectCluster};

const VIP: &str = "192.168.122.222";
const OTHER_VIP: &str = "192.168.122.223";

/// Two nodes, a Vip with route id 64.
fn two_nodes(server: &ApiServer) -> Result<ObjectCluster> {
    let cluster = ObjectCluster::prepare(server)?;
    cluster.node("n1", "192.168.122.11", "10.244.1.0/24")?;
    cluster.node("n2", "192.168.122.12", "10.244.2.0/24")?;
    cluster.vip("example-vip", &json!({ "ip": VIP, "routeid": 64 }))?;
    Ok(cluster)
}

fn started(server: &ApiServer, name: &str) -> Result<Controller> {
    let mut controller = Controller::start(server, "default", name)?;
    controller.wait_ready()?;
    controller.wait_leads()?;
    Ok(controller)
}

fn egress(kind: &str, name: &str) -> Value {
    json!({ "ip": VIP, "kind": kind, "namespace": "default", "name": name })
}

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

fn uid(object: &Value) -> Result<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str).context("no uid")
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

fn mapped(cluster: &ObjectCluster, egress: &str) -> Option<i64> {
    cluster.get("Egress", "default", egress)?.pointer("/status/mapped")?.as_i64()
}

fn reports(cluster: &ObjectCluster, node: &str, holds: &str) -> Result<()> {
    cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("egress-node-{node}"), "namespace": "default",
                "labels": { "egress.mapper.com/report-of": node } },
            "data": { "holds": holds, "synced": "true", "message": "", "version": "0.1.0" },
        }))
        .map(drop)
}

fn events(cluster: &ObjectCluster, about: &str) -> Result<Vec<String>> {
    let all = cluster.list("Event", "default")?;
    let of = all.iter().filter(|event| event["regarding"]["name"] == about);
    let mut reasons: Vec<String> =
        of.filter_map(|event| Some(event["reason"].as_str()?.to_owned())).collect();
    reasons.sort();
    Ok(reasons)
}

#[test]
fn status_says_what_is_and_is_not_written_for_nothing() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let mut controller = started(&server, "one")?;
    let foreign = json!({ "status": { "conditions": [{
        "type": "Audited", "status": "True", "reason": "ByHand", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }] } });
    cluster.egress("pod1", &egress("pod", "pod1"))?;
    cluster.eventually("no pods yet", |cluster| {
        cluster.condition("Egress", "pod1", "Ready").is_some_and(|is| is[1] == "NoMatchingPods")
    });
    // Merged by hand, which replaces the list: ours comes back, the other stays.
    cluster.patch_status("Egress", "default", "pod1", &foreign)?;
    cluster.pod("pod1", "n1", &json!({}))?;
    cluster.address("pod1", &["10.244.1.2"])?;
    reports(&cluster, "n1", &format!("{VIP} 2026-11-23T10:00:00Z"))?;
    cluster.eventually("mapped", |cluster| {
        cluster.condition("Egress", "pod1", "Ready").is_some_and(|is| is[..2] == ["True", "Mapped"])
    });
    assert!(cluster.condition("Egress", "pod1", "Audited").is_some_and(|is| is[1] == "ByHand"));
    let holder = |cluster: &ObjectCluster| {
        let vip = cluster.get("Vip", "default", "example-vip").unwrap_or_default();
        Some((vip["status"]["holder"].as_str()?.to_owned(), vip["status"]["pods"].as_i64()?))
    };
    cluster.eventually("held by n1", |cluster| holder(cluster) == Some(("n1".to_owned(), 1)));
    for condition in ["Accepted", "Held", "InUse"] {
        let is = cluster.condition("Vip", "example-vip", condition);
        assert!(is.as_ref().is_some_and(|is| is[0] == "True"), "{condition}: {is:?}");
    }
    let vip = cluster.get("Vip", "default", "example-vip").context("gone")?;
    assert_eq!(vip["status"]["observedGeneration"], vip["metadata"]["generation"]);
    assert_eq!(vip["status"]["routeid"], 64);

    // The VIP moves.
    reports(&cluster, "n2", &format!("{VIP} 2026-11-23T10:00:05Z"))?;
    cluster.eventually("held by n2", |cluster| holder(cluster) == Some(("n2".to_owned(), 1)));
    cluster.eventually("told", |cluster| {
        events(cluster, "example-vip")
            .is_ok_and(|events| events.contains(&"HolderMoved".to_owned()))
    });

    // A spec that changes is a new generation, and a VIP that is not there is named.
    let mut spec = egress("pod", "pod1");
    spec["ip"] = OTHER_VIP.into();
    cluster.egress("pod1", &spec)?;
    cluster.eventually("no such VIP", |cluster| {
        let Some([status, reason, message]) = cluster.condition("Egress", "pod1", "Ready") else {
            return false;
        };
        status == "False" && reason == "VipNotFound" && message.contains(OTHER_VIP)
    });
    assert_eq!(cluster.entry("podip-vip-mappings-n1", "10.244.1.2").as_deref(), Some(""));
    let object = cluster.get("Egress", "default", "pod1").context("gone")?;
    assert_eq!(object["status"]["observedGeneration"], object["metadata"]["generation"]);
    cluster.eventually("told once each", |cluster| {
        events(cluster, "pod1").is_ok_and(|all| all == ["Mapped", "NoMatchingPods", "VipNotFound"])
    });

    // Others' business, and a new controller, change nothing.
    cluster.eventually("the Vip is not in use", |cluster| {
        cluster.condition("Vip", "example-vip", "InUse").is_some_and(|is| is[0] == "False")
    });
    let versions = |cluster: &ObjectCluster| {
        [("Egress", "pod1"), ("Vip", "example-vip")]
            .map(|(kind, name)| cluster.version(kind, "default", name))
    };
    let before = versions(&cluster);
    let told = events(&cluster, "pod1")?.len() + events(&cluster, "example-vip")?.len();
    controller.stop()?;
    let _second = started(&server, "two")?;
    cluster.egress("pod2", &egress("pod", "pod2"))?;
    cluster.pod("pod2", "n1", &json!({}))?;
    cluster.address("pod2", &["10.244.1.3"])?;
    cluster.eventually("another Egress mapped", |cluster| mapped(cluster, "pod2") == Some(1));
    assert_eq!(versions(&cluster)[0], before[0]);
    assert_eq!(events(&cluster, "pod1")?.len() + events(&cluster, "example-vip")?.len(), told);
    Ok(())
}

#[test]
fn a_vip_in_use_stays_until_no_egress_names_it() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let _controller = started(&server, "one")?;
    cluster.egress("pod1", &egress("pod", "pod1"))?;
    cluster.pod("pod1", "n1", &json!({}))?;
    cluster.address("pod1", &["10.244.1.2"])?;
    let finalizers = |cluster: &ObjectCluster| {
        let vip = cluster.get("Vip", "default", "example-vip")?;
        Some(vip["metadata"]["finalizers"].as_array().cloned().unwrap_or_default())
    };
    cluster.patch(
        "Vip",
        "default",
        "example-vip",
        &json!({ "metadata": { "finalizers": ["a.test/mine"] } }),
    )?;
    cluster.eventually("ours is there beside the other", |cluster| {
        finalizers(cluster).is_some_and(|all| all.len() == 2)
    });
    cluster.delete("Vip", "default", "example-vip")?;
    cluster.eventually("told why it stays", |cluster| {
        events(cluster, "example-vip").is_ok_and(|all| all.contains(&"DeletionWaits".to_owned()))
    });
    let [status, _, message] =
        cluster.condition("Vip", "example-vip", "InUse").context("no condition")?;
    assert!(status == "True" && message.contains("default/pod1"), "{message}");
    // It works on.
    cluster.pod("pod1b", "n2", &json!({ "labels": { "app": "x" } }))?;
    cluster.address("pod1b", &["10.244.2.9"])?;
    let selected =
        json!({ "ip": VIP, "kind": "pod", "selector": { "matchLabels": { "app": "x" } } });
    cluster.egress("more", &selected)?;
    cluster.eventually("still accepted", |cluster| {
        cluster.entry("podip-vip-mappings-n2", "10.244.2.9").as_deref() == Some(VIP)
    });
    cluster.delete("Egress", "default", "pod1")?;
    cluster.delete("Egress", "default", "more")?;
    cluster.eventually("only the other finalizer is left", |cluster| {
        finalizers(cluster).is_some_and(|all| all == ["a.test/mine"])
    });
    cluster.patch(
        "Vip",
        "default",
        "example-vip",
        &json!({ "metadata": { "finalizers": null } }),
    )?;
    cluster.eventually("gone", |cluster| cluster.get("Vip", "default", "example-vip").is_none());
    cluster.eventually("and with it its route id and its pods", |cluster| {
        cluster.data("vip-routeid-mappings").is_some_and(|data| data.is_empty())
            && cluster.data("podip-vip-mappings-n1").is_some_and(|data| data.is_empty())
    });
    Ok(())
}

#[test]
fn one_of_two_replicas_writes_and_the_other_takes_over() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    cluster.egress("all", &json!({ "ip": VIP, "kind": "namespace", "name": "default" }))?;
    let mut first = started(&server, "first")?;
    let mut second = Controller::start(&server, "default", "second")?;
    second.wait_ready()?;
    assert!(!second.leads());
    let holder = |cluster: &ObjectCluster| -> Option<String> {
        let lease = cluster.get("Lease", "default", "egress-mapper")?;
        Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
    };
    assert_eq!(holder(&cluster).as_deref(), Some("first"));
    let new_pod = |name: &str, ip: &str| -> Result<()> {
        cluster.pod(name, "n1", &json!({}))?;
        cluster.address(name, &[ip])
    };
    let published = |ip: &'static str| {
        move |cluster: &ObjectCluster| cluster.entry("podip-vip-mappings-n1", ip).is_some()
    };
    new_pod("a", "10.244.1.2")?;
    cluster.eventually("the first writes", published("10.244.1.2"));

    // On request: at once.
    let stopped = Instant::now();
    first.stop()?;
    new_pod("b", "10.244.1.3")?;
    cluster.eventually("the second has taken over", published("10.244.1.3"));
    assert!(stopped.elapsed() < Duration::from_secs(3), "{:?}", stopped.elapsed());
    assert_eq!(holder(&cluster).as_deref(), Some("second"));

    // Frozen: after the lease's duration; and when it wakes up, it does not write any more.
    let mut third = Controller::start(&server, "default", "third")?;
    third.wait_ready()?;
    second.kill(Signal::SIGSTOP)?;
    let frozen = Instant::now();
    new_pod("c", "10.244.1.4")?;
    cluster.eventually("the third has taken over", published("10.244.1.4"));
    assert!(frozen.elapsed() < Duration::from_secs(8), "{:?}", frozen.elapsed());
    cluster.delete("Pod", "default", "a")?;
    cluster.eventually("the third writes", |cluster| {
        cluster.entry("podip-vip-mappings-n1", "10.244.1.2").is_none()
    });
    let writes = |controller: &Controller| -> Result<f64> {
        let all = controller.metrics()?.into_iter();
        Ok(all.filter(|(name, _)| name.contains("_writes_total")).map(|(_, count)| count).sum())
    };
    second.kill(Signal::SIGCONT)?;
    let before = writes(&second)?;
    cluster.eventually("the second knows that it does not lead", |_| {
        second.log().contains("no longer leads") || !second.leads()
    });
    new_pod("d", "10.244.1.5")?;
    cluster.eventually("the third goes on", published("10.244.1.5"));
    assert!(writes(&second)? < before + 0.5, "it has written");
    assert_eq!(cluster.share("n1").map(|data| data.len()), Some(3));

    // Killed.
    third.kill(Signal::SIGKILL)?;
    third.wait()?;
    new_pod("e", "10.244.1.6")?;
    cluster.eventually("the second has taken over again", published("10.244.1.6"));
    second.stop()?;
    Ok(())
}

#[test]
fn an_api_server_that_is_away_changes_nothing() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    cluster.egress("all", &json!({ "ip": VIP, "kind": "namespace", "name": "default" }))?;
    let mut controller = started(&server, "one")?;
    for (pod, node, ip) in [("a", "n1", "10.244.1.2"), ("b", "n2", "10.244.2.2")] {
        cluster.pod(pod, node, &json!({}))?;
        cluster.address(pod, &[ip])?;
    }
    cluster.eventually("published", |cluster| {
        cluster.data("podip-vip-mappings").is_some_and(|data| data.len() == 2)
    });
    let objects = [
        "podip-vip-mappings",
        "podip-vip-mappings-n1",
        "podip-vip-mappings-n2",
        "vip-routeid-mappings",
        "vip-configmap",
        "egress-networks",
    ];
    let versions =
        |cluster: &ObjectCluster| objects.map(|name| cluster.version("ConfigMap", "default", name));
    let before = versions(&cluster);
    for restart in [false, true] {
        server.kill()?;
        if restart {
            controller.kill(Signal::SIGKILL)?;
            controller.wait()?;
            controller = Controller::start(&server, "default", "two")?;
        } else {
            // Longer than its lease: it has to give up its lead.
            cluster.eventually("no longer leads", |_| !controller.leads());
        }
        server.restart()?;
        controller.wait_ready()?;
        controller.wait_leads()?;
        let name = format!("new-{restart}");
        let ip = if restart { "10.244.1.9" } else { "10.244.1.8" };
        cluster.pod(&name, "n1", &json!({}))?;
        cluster.address(&name, &[ip])?;
        cluster.eventually("it works again", |cluster| {
            cluster.entry("podip-vip-mappings-n1", ip).as_deref() == Some(VIP)
        });
        assert_eq!(versions(&cluster)[2..], before[2..]);
    }
    // Nothing was removed and put back: a new pod is told by its UID and by its address, or at once.
    let shards = controller.metric("egress_controller_writes_total{object=\"shard\"}")?;
    assert!((1.0..=2.0).contains(&shards), "{shards} writes after a restart for one new pod");
    Ok(())
}

#[test]
fn daemon_sets_are_made_and_kept_in_line() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = two_nodes(&server)?;
    let mut controller = started(&server, "one")?;
    let spec = |image: &str| {
        json!({
            "KubeEgressImage": image, "KeepalivedVIPImage": "localhost/kube-keepalived-vip:1",
            "PodSubnet": "10.244.0.0/16", "ServiceSubnet": "10.96.0.0/12",
            "InterfaceName": "eth0", "UpdateInterval": "5", "NeedMountDev": false,
        })
    };
    cluster.ours("EgressMapper", "example-egressmapper", &spec("localhost/kube-egress:1"))?;
    let container = |cluster: &ObjectCluster, name: &str| {
        let set = cluster.get("DaemonSet", "default", name)?;
        Some(set["spec"]["template"]["spec"]["containers"][0].clone())
    };
    cluster.eventually("both are made", |cluster| {
        ["kube-egress", "kube-keepalived-vip"].iter().all(|name| container(cluster, name).is_some())
    });
    let made = container(&cluster, "kube-egress").context("gone")?;
    assert_eq!(made["args"], json!(["--interface=eth0", "--update-interval=5s"]));
    cluster.eventually("networks are those of the EgressMapper", |cluster| {
        cluster.entry("egress-networks", "pod-subnets").as_deref() == Some("10.244.0.0/16")
            && cluster.entry("egress-networks", "service-subnets").as_deref()
                == Some("10.96.0.0/12")
    });

    // Another image, a hand's edit, a hand's deletion.
    cluster.ours("EgressMapper", "example-egressmapper", &spec("localhost/kube-egress:2"))?;
    cluster.eventually("the new image", |cluster| {
        container(cluster, "kube-egress")
            .is_some_and(|made| made["image"] == "localhost/kube-egress:2")
    });
    let edit = json!({ "spec": { "template": { "spec": {
        "containers": [{ "name": "kube-egress", "image": "localhost/evil", "args": ["--x"] }],
        "hostNetwork": false,
    } } } });
    cluster.patch("DaemonSet", "default", "kube-egress", &edit)?;
    cluster.eventually("put right", |cluster| {
        let set = cluster.get("DaemonSet", "default", "kube-egress").unwrap_or_default();
        let pod = &set["spec"]["template"]["spec"];
        pod["hostNetwork"] == true
            && pod["containers"][0]["image"] == "localhost/kube-egress:2"
            && pod["containers"][0]["args"] == json!(["--interface=eth0", "--update-interval=5s"])
    });
    cluster.delete("DaemonSet", "default", "kube-keepalived-vip")?;
    cluster.eventually("made again", |cluster| container(cluster, "kube-keepalived-vip").is_some());

    // A new controller finds nothing to do.
    cluster.eventually("what is said of them has settled", |cluster| {
        cluster
            .condition("EgressMapper", "example-egressmapper", "Ready")
            .is_some_and(|is| is[1] == "Progressing")
    });
    let versions = |cluster: &ObjectCluster| {
        [
            ("DaemonSet", "kube-egress"),
            ("DaemonSet", "kube-keepalived-vip"),
            ("EgressMapper", "example-egressmapper"),
        ]
        .map(|(kind, name)| cluster.version(kind, "default", name))
    };
    // Status comes at most once a second.
    let mut seen = (versions(&cluster), Instant::now());
    cluster.eventually("nothing is written any more", |cluster| {
        let now = versions(cluster);
        if seen.0 != now {
            seen = (now, Instant::now());
        }
        seen.1.elapsed() > Duration::from_secs(2)
    });
    let before = versions(&cluster);
    controller.stop()?;
    let second = started(&server, "two")?;
    cluster.eventually("compared", |_| {
        second
            .metric("egress_controller_writes_total{object=\"daemonset\"}")
            .is_ok_and(|count| count > 1.5)
    });
    assert_eq!(versions(&cluster), before);

    // An image that cannot work is named, and what runs is let be.
    cluster.ours("EgressMapper", "example-egressmapper", &spec("ssheehy/kube-egress:0.3.1"))?;
    cluster.eventually("named", |cluster| {
        cluster
            .condition("EgressMapper", "example-egressmapper", "Ready")
            .is_some_and(|is| is[1] == "UnusableImage" && is[2].contains("ssheehy/kube-egress"))
    });
    assert_eq!(versions(&cluster)[..2], before[..2]);
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
    cluster.eventually("the API knows better", |cluster| shard(cluster) == only("10.244.1.10"));
    cluster.delete("Pod", "default", "new")?;
    cluster.eventually("nothing is left", |cluster| shard(cluster) == Some([].into()));

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
    let answer = Some([(other.to_owned(), "uncovered".to_owned())].into());
    cluster.eventually("nothing is for the other", |cluster| shard(cluster) == answer);
    ask("")?;
    cluster.eventually("nobody asks", |cluster| shard(cluster) == Some([].into()));
    Ok(())
}
