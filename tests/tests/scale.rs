//! A hundred thousand mapped pods in a directory: everything still works, and at once.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Agent, Host, Lab, eventually, wait_until};

const VIPS: [(&str, &str); 3] =
    [("192.168.122.222", "64"), ("192.168.122.223", "65"), ("fd00:122::222", "66")];
const LOADED: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);

/// A directory in memory; removed when dropped.
struct Many(tempfile::TempDir);

impl Many {
    /// That many pods of each family.
    fn new(v4: u32, v6: u32) -> Result<Self> {
        let many = Self(tempfile::tempdir_in("/dev/shm")?);
        for object in ["vip-routeid-mappings", "egress-networks", "podip-vip-mappings"] {
            fs::create_dir(many.0.path().join(object))?;
        }
        fs::write(many.0.path().join("egress-networks/pod-subnets"), "10.0.0.0/8,fd00:244::/32")?;
        for (vip, id) in VIPS {
            fs::write(many.0.path().join("vip-routeid-mappings").join(key(vip)), id)?;
        }
        for number in 0..v4 {
            many.set(pod4(number), VIPS[number as usize % 2].0)?;
        }
        for number in 0..v6 {
            many.set(pod6(number), VIPS[2].0)?;
        }
        Ok(many)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn set(&self, pod: IpAddr, vip: &str) -> Result<()> {
        let file = self.path().join("podip-vip-mappings").join(key(&pod.to_string()));
        fs::write(file, vip).context("cannot write")
    }

    fn remove(&self, pod: IpAddr) -> Result<()> {
        let file = self.path().join("podip-vip-mappings").join(key(&pod.to_string()));
        fs::remove_file(file).context("cannot remove")
    }
}

fn key(address: &str) -> String {
    address.replace(':', "-")
}

fn pod4(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + number).into()
}

fn pod6(number: u32) -> IpAddr {
    Ipv6Addr::from_bits(
        Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1).to_bits() + u128::from(number),
    )
    .into()
}

/// What the kernel has for some pods, by a dump: asked with so many, `nft get element` takes seconds.
fn mapped(node: &Host, pods: &[IpAddr]) -> Result<Vec<Option<String>>> {
    let dump = dump(node)?;
    let vip_of = |pod: &IpAddr| {
        let pod = Value::from(pod.to_string());
        let vips = dump["vips"].as_array()?.iter();
        let mut vips = vips.filter(|vip| vip["pods"].as_array().is_some_and(|p| p.contains(&pod)));
        Some(vips.next()?["vip"].as_str()?.to_owned())
    };
    Ok(pods.iter().map(vip_of).collect())
}

fn dump(node: &Host) -> Result<Value> {
    Ok(serde_json::from_str(&Agent::run(node, &["--dump-rules", "--output", "json"])?)?)
}

fn start(node: &Host, many: &Many) -> Result<Agent> {
    let agent = Agent::start(node, many.path(), &[])?;
    let ready = || agent.http("/readyz").is_ok_and(|(status, _)| status == 200);
    assert!(wait_until(LOADED, ready), "{}", agent.log());
    Ok(agent)
}

/// How many pods nft lists in all four maps and sets.
fn listed(node: &Host) -> Result<[usize; 4]> {
    let mut counts = [0; 4];
    let places = [
        "map inet egress pod_vip4",
        "set inet egress-guard mapped4",
        "map inet egress pod_vip6",
        "set inet egress-guard mapped6",
    ];
    for (count, place) in counts.iter_mut().zip(places) {
        let json: Value = serde_json::from_str(&node.sh(&format!("nft -j list {place}"))?)?;
        let object = &json["nftables"][1];
        let elements = object["map"]["elem"].as_array().or(object["set"]["elem"].as_array());
        *count = elements.map_or(0, Vec::len);
    }
    Ok(counts)
}

#[test]
fn a_hundred_thousand_pods_of_ipv4_and_twenty_thousand_of_ipv6() -> Result<()> {
    const V4: u32 = 100_000;
    const V6: u32 = 20_000;
    let lab = Lab::builder().nodes(1).pods_per_node(0).build()?;
    let node = lab.node(1);
    let many = Many::new(V4, V6)?;
    let mut agent = start(node, &many)?;
    assert_eq!(listed(node)?, [V4, V4, V6, V6].map(|count| count as usize));
    eventually(SOON, || {
        agent.metric("egress_agent_pods{state=\"mapped\"}").is_ok_and(|n| n == f64::from(V4 + V6))
    });

    let dump: Value =
        serde_json::from_str(&Agent::run(node, &["--dump-rules", "--output", "json"])?)?;
    let vips = dump["vips"].as_array().context("no VIPs")?;
    let pods: Vec<_> = vips.iter().map(|vip| vip["pods"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(pods, [V4 / 2, V4 / 2, V6].map(|count| count as usize));
    let text = Agent::run(node, &["--dump-rules"])?;
    assert!(text.contains("pods mapped: 120000, held: 0"), "{text}");
    assert!(text.lines().count() < 60, "{text}");

    let (new4, new6) = (pod4(V4), pod6(V6));
    for (pod, vip, done) in [
        (new4, VIPS[0].0, format!("map {new4} to {}", VIPS[0].0)),
        (new6, VIPS[2].0, format!("map {new6} to {}", VIPS[2].0)),
        (pod4(0), VIPS[1].0, format!("map {} to {}", pod4(0), VIPS[1].0)),
    ] {
        many.set(pod, vip)?;
        eventually(SOON, || agent.log().contains(&done));
    }
    let all = mapped(node, &[new4, new6, pod4(0), pod4(2)])?;
    assert_eq!(all, [0, 2, 1, 0].map(|vip: usize| Some(VIPS[vip].0.to_owned())));
    many.remove(new4)?;
    eventually(SOON, || agent.log().contains(&format!("unmap {new4}, unguard {new4}")));
    agent.stop()?;

    // Started again it finds everything in place, and what has changed meanwhile.
    many.remove(pod4(1))?;
    let mut agent = start(node, &many)?;
    assert_eq!(mapped(node, &[pod4(1), new4])?, [None, None]);
    assert!(!agent.log().contains("make anew"), "{}", agent.log());
    assert!(agent.log().contains("unmap 10.0.0.2"), "{}", agent.log());

    // Removed file by file, it would be as many orders to unmap.
    fs::rename(many.path().join("podip-vip-mappings"), many.path().join("away"))?;
    eventually(SOON, || agent.metric("egress_agent_missing_objects").is_ok_and(|n| n == 1.0));
    assert_eq!(listed(node)?[0], V4 as usize - 1, "an object that is gone is no order to unmap");
    fs::create_dir(many.path().join("podip-vip-mappings"))?;
    let emptied = || agent.metric("egress_agent_pods{state=\"mapped\"}").is_ok_and(|n| n == 0.0);
    eventually(LOADED, emptied);
    eventually(LOADED, || listed(node).is_ok_and(|counts| counts == [0; 4]));
    agent.stop()
}
