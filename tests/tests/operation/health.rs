//! Probes and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Agent, Family, Lab, MappingsDir, eventually, wait_until};

use crate::{SOON, here, mappings_of, send_in_vain};

#[test]
fn readiness_has_a_reason_until_everything_was_read() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let mut mappings = MappingsDir::new()?;
    let agent = Agent::start(lab.node(1), mappings.path(), &[])?;
    let unready = |reason: &str| {
        let mut last = None;
        let told = wait_until(SOON, || {
            last = agent.http("/readyz").ok();
            last.as_ref().is_some_and(|(status, body)| *status == 503 && body.contains(reason))
        });
        assert!(told, "{reason:?} is not in {last:?}");
    };
    unready("waiting for vip-routeid-mappings and egress-networks and podip-vip-mappings");
    assert_eq!(agent.http("/healthz")?, (200, "ok\n".to_owned()));
    mappings.set_vip(here(), 64)?;
    mappings.map(lab.pod(1, 1).ip(Family::V4), here())?;
    unready("waiting for egress-networks;");
    assert_eq!(lab.node(1).sh("nft list tables inet")?, "", "half a state is not acted on");
    mappings.networks(&lab)?;
    eventually(SOON, || {
        agent.http("/readyz").is_ok_and(|answer| answer == (200, "ok\n".to_owned()))
    });
    Ok(())
}

/// The metrics by name with labels, once the text is valid `OpenMetrics` as far as it can be told here.
fn metrics(agent: &Agent) -> Result<BTreeMap<String, f64>> {
    let (status, text) = agent.http("/metrics")?;
    assert_eq!(status, 200);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let (mut families, mut values) = (BTreeSet::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap_or_default();
            assert!(families.insert(name.to_owned()), "{name} comes twice in {text}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            let bare = name.split('{').next().unwrap_or_default();
            assert!(families.iter().any(|family| bare.starts_with(family.as_str())), "{line}");
            assert!(values.insert(name.to_owned(), value.parse()?).is_none(), "{line}");
        }
    }
    Ok(values)
}

#[test]
fn metrics_tell_what_the_kernel_and_the_mappings_have() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    let mut mappings = mappings_of(&lab)?;
    mappings.set("podip-vip-mappings", "junk", "")?;
    let mut agent = Agent::start(node, mappings.path(), &[])?;
    agent.wait_ready()?;
    send_in_vain(lab.pod(1, 2), lab.outside().v6.into())?;
    let expected = [
        ("egress_agent_vips", 3.0),
        ("egress_agent_vips_here", 2.0),
        ("egress_agent_pods{state=\"mapped\"}", 3.0),
        ("egress_agent_pods{state=\"held\"}", 1.0),
        ("egress_agent_rejected_entries", 1.0),
        ("egress_agent_missing_objects", 0.0),
        ("egress_agent_repairs_total", 0.0),
        ("egress_agent_sync_failures_total{part=\"tables\"}", 0.0),
        ("egress_agent_sync_failures_total{part=\"observe\"}", 0.0),
        ("egress_agent_sync_part_duration_seconds_count{part=\"tables\"}", 2.0),
    ];
    for (name, value) in expected {
        let is = || metrics(&agent).map(|all| all.get(name).copied());
        let told = wait_until(SOON, || is().is_ok_and(|seen| seen == Some(value)));
        assert!(told, "{name} is {:?}, not {value}", is()?);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    let synced = metrics(&agent)?["egress_agent_last_sync_timestamp_seconds"];
    assert!((now - 60.0..now + 1.0).contains(&synced), "{synced}");

    // The kernel's own counters.
    let mut compared = 0;
    for table in ["egress", "egress-guard"] {
        let list = node.sh(&format!("nft -j list counters table inet {table}"))?;
        let list: Value = serde_json::from_str(&list)?;
        for counter in list["nftables"].as_array().context("no list")? {
            let counter = &counter["counter"];
            let Some(name) = counter["name"].as_str() else { continue };
            for (metric, what) in [("packets", "packets"), ("bytes", "bytes")] {
                let metric =
                    format!("egress_dropped_{metric}_total{{table=\"{table}\",reason=\"{name}\"}}");
                let seen = *metrics(&agent)?.get(&metric).with_context(|| metric.clone())?;
                assert!(seen >= counter[what].as_f64().context("no count")?, "{metric}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 20);

    node.sh("ip rule del pref 1064")?;
    eventually(SOON, || agent.metric("egress_agent_repairs_total").is_ok_and(|n| n == 1.0));
    assert!(node.sh("ip rule")?.contains("1064:"));
    assert!(agent.log().contains("repaired: add rule 1064"), "{}", agent.log());

    node.sh("ip addr del 192.168.122.222/32 dev eth0")?;
    eventually(SOON, || agent.metric("egress_agent_vips_here").is_ok_and(|n| n == 1.0));
    mappings.remove("podip-vip-mappings", "junk")?;
    eventually(SOON, || agent.metric("egress_agent_rejected_entries").is_ok_and(|n| n == 0.0));
    Ok(())
}

/// The kernel uses the place of the mark for something else while it writes its multicast reports.
#[test]
fn the_nodes_own_multicast_reports_pass() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    let mappings = mappings_of(&lab)?;
    let mut agent = Agent::start(node, mappings.path(), &[])?;
    agent.wait_ready()?;
    let sent = || -> Result<u64> {
        let text = node.enter(|| fs::read_to_string("/proc/thread-self/net/snmp6"))??;
        let line = text.lines().find(|line| line.starts_with("Icmp6OutMLDv2Reports"));
        Ok(line.and_then(|line| line.split_whitespace().nth(1)).context("no counter")?.parse()?)
    };
    let before = sent()?;
    node.sh("ip link add left type veth peer name right")?;
    node.sh("ip link set left up")?;
    node.sh("ip link set right up")?;
    eventually(SOON, || sent().is_ok_and(|now| now >= before + 4));
    let dropped = "egress_dropped_packets_total{table=\"egress-guard\",reason=\"guard\"}";
    assert_eq!(agent.metric(dropped)?, 0.0);
    Ok(())
}
