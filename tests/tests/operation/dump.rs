//! What `--dump-rules` shows.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{Agent, Family, Host, Lab, MappingsDir};

use crate::{elsewhere, here, here6, mappings_of, send_in_vain};

pub(crate) fn dump(node: &Host) -> Result<Value> {
    let text = Agent::run(node, &["--dump-rules", "--output", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

pub(crate) fn notes(node: &Host) -> Result<Vec<String>> {
    Ok(serde_json::from_value(dump(node)?["notes"].clone())?)
}

#[test]
fn an_untouched_node_is_told_as_such() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let told = dump(lab.node(1))?;
    assert_eq!(
        (&told["vips"], &told["held"], &told["dropped"]),
        (&json!([]), &json!([]), &json!([]))
    );
    assert_eq!(
        told["tables"],
        json!([{"family": "inet", "name": "egress", "present": false, "chains": 0},
               {"family": "inet", "name": "egress-guard", "present": false, "chains": 0}])
    );
    let notes = notes(lab.node(1))?;
    assert!(notes.len() == 1 && notes[0].contains("neither table exists"), "{notes:?}");
    assert_eq!(lab.node(1).sh("nft list tables inet")?, "", "asking leaves nothing behind");
    Ok(())
}

#[test]
fn the_dump_has_all_of_it_as_text_and_as_json_with_and_without_an_agent() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    let mappings = mappings_of(&lab)?;
    let mut agent = Agent::start(node, mappings.path(), &[])?;
    agent.wait_ready()?;
    send_in_vain(lab.pod(1, 2), lab.outside().v6.into())?;

    let told = dump(node)?;
    let pods = |pod: usize, family| json!([lab.pod(1, pod).ip(family).to_string()]);
    let routes = |vip: IpAddr, id: u32, here: bool| {
        let mut routes =
            vec![format!("unreachable default table {} metric 4278198272", 10_000 + id)];
        if !here {
            let way = format!("default via {vip} dev eth0 table {} onlink", 10_000 + id);
            routes.insert(0, way);
        }
        json!(routes)
    };
    let vip = |vip: IpAddr, id: u32, here: bool, pods: Value| {
        json!({
            "vip": vip.to_string(), "route_id": id, "here": here, "table": 10_000 + id,
            "rules": [format!("{}: from all fwmark {:#x}/0x10ff lookup {}", 1000 + id, 0x1000 + id, 10_000 + id)],
            "routes": routes(vip, id, here), "pods": pods,
        })
    };
    let expected = json!([
        vip(here(), 64, true, pods(1, Family::V4)),
        vip(elsewhere(), 65, false, pods(2, Family::V4)),
        vip(here6(), 66, true, pods(1, Family::V6)),
    ]);
    assert_eq!(told["vips"], expected);
    assert_eq!(told["held"], pods(2, Family::V6));
    assert_eq!(told["notes"], json!([]));
    let held = told["dropped"].as_array().context("no counters")?.iter();
    let held: Vec<_> = held.filter(|counter| counter["name"] == "held").collect();
    assert_eq!(held.len(), 1);
    assert!(held[0]["packets"].as_u64() >= Some(20), "{told}");

    let text = Agent::run(node, &["--dump-rules"])?;
    for vip in told["vips"].as_array().context("no VIPs")? {
        let place = if vip["here"] == true { "here" } else { "elsewhere" };
        let heading = format!(
            "VIP {}: route id {}, {place}, table {}, pods: 1\n",
            vip["vip"].as_str().unwrap_or_default(),
            vip["route_id"],
            vip["table"]
        );
        assert!(text.contains(&heading), "{heading}{text}");
        for list in ["rules", "routes", "pods"] {
            for item in vip[list].as_array().context("no list")? {
                assert!(text.contains(item.as_str().unwrap_or("?")), "{item} is not in {text}");
            }
        }
    }
    let summary = "VIPs: 3, here: 2; pods mapped: 3, held: 1; packets dropped: ";
    assert!(text.contains(summary), "{text}");
    assert!(!text.contains("\n\n\n") && !text.contains("notes"), "{text}");

    agent.stop()?;
    let mut after = dump(node)?;
    // Neighbour discovery goes on.
    after["dropped"] = told["dropped"].clone();
    assert_eq!(after, told);
    Ok(())
}

/// What somebody does to a node, how it is undone if no agent does, and what the dump says of it.
type Damage = (&'static str, &'static str, &'static [&'static str]);

const DAMAGES: [Damage; 15] = [
    ("nft delete table inet egress", "", &["table egress is missing"]),
    ("nft delete table inet egress-guard", "", &["table egress-guard is missing"]),
    ("nft add table inet egress { flags dormant ; }", "", &["table egress is dormant"]),
    (
        "nft insert rule inet egress classify counter accept",
        "",
        &["chain classify of table egress"],
    ),
    ("nft add chain inet egress x { type filter hook input priority 0 ; }", "", &["chain x"]),
    ("ip rule del pref 1065", "", &["192.168.122.223 (route id 65)", "no policy rule"]),
    (
        "ip route del unreachable default table 10064 metric 4278198272",
        "",
        &["192.168.122.222", "backstop"],
    ),
    ("ip route flush table 10065", "", &["192.168.122.223", "no way to its holder"]),
    (
        "nft flush set inet egress-guard mapped4",
        "",
        &["not in the guard table: 10.244.1.11, 10.244.1.12"],
    ),
    ("nft add element inet egress-guard mapped4 { 10.244.1.99 }", "", &["not mapped: 10.244.1.99"]),
    ("ip rule add pref 1100 fwmark 7 lookup 10100 proto 69", "", &["1100", "no VIP here has it"]),
    (
        "ip route add 10.9.0.0/16 dev cni0 table 10065",
        "ip route del 10.9.0.0/16 dev cni0 table 10065",
        &["10.9.0.0/16", "somebody else's"],
    ),
    (
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=1",
        "",
        &["net.ipv4.conf.eth0.rp_filter is strict", "2"],
    ),
    ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", &["ip_forward is 0"]),
    (
        "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0",
        "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1",
        &["tcp_loose is 0"],
    ),
];

#[test]
fn what_is_missing_or_strange_is_noted_and_put_right_by_the_next_agent() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let node = lab.node(1);
    let mut mappings = mappings_of(&lab)?;
    let repair = |mappings: &MappingsDir| -> Result<()> {
        let mut agent = Agent::start(node, mappings.path(), &[])?;
        agent.wait_ready()?;
        agent.stop()
    };
    repair(&mappings)?;
    for (damage, undo, facts) in DAMAGES {
        assert_eq!(notes(node)?, [""; 0], "before {damage}");
        node.sh(damage)?;
        let notes = notes(node)?;
        assert!(
            notes.iter().any(|note| facts.iter().all(|fact| note.contains(fact))),
            "{damage}: {notes:?}"
        );
        assert!(notes.len() <= 2, "{damage}: {notes:?}");
        let text = Agent::run(node, &["--dump-rules"])?;
        assert!(notes.iter().all(|note| text.contains(&format!("  ! {note}\n"))), "{text}");
        if undo.is_empty() {
            repair(&mappings)?;
        } else {
            node.sh(undo)?;
        }
    }
    mappings.remove_vip(elsewhere())?;
    repair(&mappings)?;
    let notes = notes(node)?;
    let pod = lab.pod(1, 2).v4;
    assert!(
        notes.len() == 1
            && notes[0]
                .contains(&format!("no route id here, so external traffic is dropped for {pod}")),
        "{notes:?}"
    );
    Ok(())
}

#[test]
fn the_dump_of_a_full_node_stays_readable() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(0).build()?;
    let mut mappings = MappingsDir::of(&lab)?;
    let vips: Vec<IpAddr> = (1..=252).map(|n| IpAddr::from([192, 168, 122, n])).collect();
    let vips: Vec<IpAddr> =
        vips.into_iter().filter(|vip| *vip != lab.node(1).ip(Family::V4)).collect();
    for (vip, id) in vips.iter().zip(1..) {
        mappings.set_vip(*vip, id)?;
    }
    let pods = (0..20_u8).flat_map(|a| (1..=100).map(move |b| IpAddr::from([10, 244, a, b])));
    mappings.map_only(pods.zip(vips.iter().cycle()).map(|(pod, vip)| (pod, *vip)))?;
    let mut agent = Agent::start(lab.node(1), mappings.path(), &[])?;
    agent.wait_ready()?;
    let text = Agent::run(lab.node(1), &["--dump-rules"])?;
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    assert!(text.lines().count() <= 251 * 7 + 25, "{text}");
    assert!(text.contains("VIPs: 251, here: 0; pods mapped: 2000, held: 0"), "{text}");
    let told = dump(lab.node(1))?;
    assert_eq!(told["vips"].as_array().map(Vec::len), Some(251));
    assert_eq!(told["notes"], json!([]));
    Ok(())
}
