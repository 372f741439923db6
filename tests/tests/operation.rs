//! What an operator has to go by: the dump, the clean-up, probes, metrics and logs.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{
    Agent, Capture, Family, Host, Lab, MappingsDir, TcpServer, UdpProbe, UdpServer, eventually,
    wait_until, whoami,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);

fn here() -> IpAddr {
    [192, 168, 122, 222].into()
}

fn elsewhere() -> IpAddr {
    [192, 168, 122, 223].into()
}

fn here6() -> IpAddr {
    [0xfd00, 0x122, 0, 0, 0, 0, 0, 0x222].into()
}

/// Node 1 holds 64 and 66, nobody holds 65; pod 1 has them, pod 2 has 65, and is held with IPv6.
fn mappings_of(lab: &Lab) -> Result<MappingsDir> {
    let mut mappings = MappingsDir::of(lab)?;
    for (vip, id) in [(here(), 64), (elsewhere(), 65), (here6(), 66)] {
        mappings.set_vip(vip, id)?;
    }
    let [first, second] = [lab.pod(1, 1), lab.pod(1, 2)];
    mappings.map(first.ip(Family::V4), here())?;
    mappings.map(first.ip(Family::V6), here6())?;
    mappings.map(second.ip(Family::V4), elsewhere())?;
    mappings.hold(second.ip(Family::V6))?;
    lab.hold_vip(1, here())?;
    lab.hold_vip(1, here6())?;
    Ok(mappings)
}

fn dump(node: &Host) -> Result<Value> {
    let text = Agent::run(node, &["--dump-rules", "--output", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

fn notes(node: &Host) -> Result<Vec<String>> {
    Ok(serde_json::from_value(dump(node)?["notes"].clone())?)
}

/// Sends some packets that nobody answers, and waits until the kernel took them.
fn send_in_vain(pod: &Host, server: IpAddr) -> Result<()> {
    let probe = UdpProbe::start(pod, SocketAddr::new(server, PORT), 200)?;
    eventually(SOON, || probe.sent() >= 20);
    assert_eq!(probe.stop()?.received, 0);
    Ok(())
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

/// All that a node has of nftables, rules and routes, as other programs show it.
fn everything(node: &Host) -> Result<String> {
    let shown = [
        "nft -s list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
    ];
    let text: String = shown.iter().map(|line| node.sh(line)).collect::<Result<_>>()?;
    // Times pass, and neighbours come.
    let lines = text.lines().filter(|line| !line.contains("expires") && !line.contains("fe80"));
    Ok(lines.map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

#[test]
fn clean_up_removes_what_is_ours_and_nothing_else() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    let server = SocketAddr::new(lab.outside().ip(Family::V4), PORT);
    let _tcp = TcpServer::start(lab.outside(), PORT)?;
    for line in [
        "nft add table inet egress-others",
        "nft add table ip egress",
        "nft add chain ip egress c { type filter hook postrouting priority 0 ; }",
        "ip rule add pref 1070 fwmark 0x40/0x10ff lookup 20000 proto 70",
        "ip rule add pref 1071 from 10.99.0.0/16 lookup main",
        "ip route add 10.98.0.0/16 dev cni0 table 10070 proto 70",
        "ip route add unreachable 10.97.0.0/16 proto 69",
        "ip route add unreachable default metric 4278198272 table 20001 proto 69",
    ] {
        node.sh(line)?;
    }
    let mappings = mappings_of(&lab)?;
    let before = everything(node)?;
    // Nothing to remove yet: no agent has ever run.
    Agent::run(node, &["--cleanup"])?;
    assert_eq!(everything(node)?, before);

    for arguments in [
        &[][..],
        &[
            "--nft-table",
            "other",
            "--mark-mask",
            "0x1ff00000",
            "--rule-base",
            "500",
            "--table-base",
            "30000",
            "--route-protocol",
            "201",
        ],
    ] {
        let mut agent = Agent::start(node, mappings.path(), arguments)?;
        agent.wait_ready()?;
        assert_eq!(whoami(lab.pod(1, 1), server, SOON)?, here());
        agent.stop()?;
        assert_ne!(everything(node)?, before);
        let marked = if arguments.is_empty() { "64/4351" } else { "67108864/535822336" };
        let list = format!("conntrack -L -m {marked}");
        assert!(node.sh(&list)?.contains("dport=7000"), "a decision is bound to the connection");

        for _again in 0..2 {
            Agent::run(node, &[&["--cleanup"], arguments].concat())?;
            assert_eq!(everything(node)?, before);
            assert_eq!(node.sh(&list)?, "");
        }
        assert_eq!(whoami(lab.pod(1, 1), server, SOON)?, lab.node(1).ip(Family::V4));
    }
    Ok(())
}

#[test]
fn other_numbers_work_as_well() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
    let server = SocketAddr::new(lab.outside().ip(Family::V4), PORT);
    let _udp = UdpServer::start(lab.outside(), PORT)?;
    let _tcp = TcpServer::start(lab.outside(), PORT)?;
    let mut mappings = MappingsDir::of(&lab)?;
    mappings.set_vip(here(), 64)?;
    let pods = [lab.pod(1, 1), lab.pod(2, 1)];
    for pod in pods {
        mappings.map(pod.ip(Family::V4), here())?;
    }
    lab.hold_vip(1, here())?;
    let arguments = [
        "--nft-table",
        "my.egress",
        "--mark-mask",
        "0x1ff00000",
        "--rule-base",
        "500",
        "--table-base",
        "30000",
        "--route-protocol",
        "201",
    ];
    let mut agents = Vec::new();
    for node in lab.nodes() {
        let mut agent = Agent::start(node, mappings.path(), &arguments)?;
        agent.wait_ready()?;
        agents.push(agent);
    }
    let capture = Capture::start(&lab)?;
    for pod in pods {
        assert_eq!(whoami(pod, server, SOON)?, here(), "{}", pod.name);
        let probe = UdpProbe::start(pod, server, 200)?;
        eventually(SOON, || probe.received() >= 5);
    }
    capture.assert_only_source(here(), server.ip(), 10);
    let node = lab.node(2);
    assert_eq!(
        node.sh("nft list tables inet")?,
        "table inet my.egress-guard\ntable inet my.egress\n"
    );
    let rules = node.sh("ip rule")?;
    assert!(
        rules.contains("564:\tfrom all fwmark 0x14000000/0x1ff00000 lookup 30064 proto 201"),
        "{rules}"
    );
    let routes = node.sh("ip route show table 30064 proto 201")?;
    assert_eq!(routes.lines().count(), 2, "{routes}");
    let told = Agent::run(node, &[&["--dump-rules"], &arguments[..]].concat())?;
    assert!(
        told.contains("route id 64, elsewhere, table 30064, pods: 2") && !told.contains("notes"),
        "{told}"
    );
    Ok(())
}

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

/// Starts an agent that logs as an operator has it, lets `change` happen, and gives its log.
fn log_of(
    node: &Host,
    mappings: &Path,
    format: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let child = node.spawn(
        Command::new(Agent::program()?)
            .arg("--mappings-dir")
            .arg(mappings)
            .args(["--log-format", format, "--node-name", "node-one"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped()),
    )?;
    let table = || {
        node.sh("nft list map inet egress pod_vip4").is_ok_and(|text| text.contains("10.244.1.12"))
    };
    let ready = wait_until(SOON, table);
    let outcome = change();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let output = child.wait_with_output()?;
    let log = String::from_utf8(output.stderr)?;
    outcome?;
    assert!(ready && output.status.success(), "{log}");
    Ok(log)
}

#[test]
fn logs_have_a_line_for_every_change_with_what_and_why() -> Result<()> {
    for format in ["text", "json"] {
        let lab = Lab::builder().nodes(1).build()?;
        let node = lab.node(1);
        let mut mappings = mappings_of(&lab)?;
        let pod = lab.pod(1, 2).ip(Family::V4);
        let path = mappings.path().to_owned();
        let log = log_of(node, &path, format, || {
            mappings.map(pod, here())?;
            let moved = format!("{pod} : {}", here());
            let map = || node.sh("nft list map inet egress pod_vip4");
            eventually(SOON, || map().is_ok_and(|text| text.contains(&moved)));
            node.sh("nft flush chain inet egress classify")?;
            let chain = || node.sh("nft list chain inet egress classify");
            eventually(SOON, || chain().is_ok_and(|text| text.contains("answers of pods")));
            Ok(())
        })?;
        let lines: Vec<(String, String)> = log
            .lines()
            .map(|line| {
                if format == "json" {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert_eq!(line["span"]["node"].as_str(), Some("node-one"), "{line}");
                    let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
                    (text("message"), text("why"))
                } else {
                    assert!(line.contains("node=\"node-one\""), "{line}");
                    let (what, why) = line.rsplit_once(" why=").unwrap_or((line, ""));
                    (what.to_owned(), why.to_owned())
                }
            })
            .collect();
        for (what, why) in [
            ("started".to_owned(), ""),
            (
                "add rule 1064: from all fwmark 0x1040/0x10ff lookup 10064".to_owned(),
                "agent started",
            ),
            (format!("change pods: map {pod} to {}", here()), "mappings changed"),
            (
                "repaired: change tables; main: fill chain classify".to_owned(),
                "changed by somebody else",
            ),
            ("stopped; the rules stay".to_owned(), ""),
        ] {
            let found = lines.iter().filter(|(w, y)| w.contains(&what) && y == why).count();
            assert_eq!(found, 1, "{what} ({why}) in {log}");
        }
    }
    Ok(())
}
