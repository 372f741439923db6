//! The `DaemonSets` of agents and keepalived.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tests::{ApiServer, ObjectCluster};

use crate::{started, two_nodes};

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
