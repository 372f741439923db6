//! Several controllers, and an API server that is away.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{ApiServer, Controller, ObjectCluster};

use crate::{VIP, started, two_nodes};

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
