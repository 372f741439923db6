//! What Vips and Egresses say of themselves, and how long they stay.

use anyhow::{Context, Result};
use serde_json::json;
use tests::{ApiServer, ObjectCluster};

use crate::{OTHER_VIP, VIP, egress, mapped, started, two_nodes};

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
