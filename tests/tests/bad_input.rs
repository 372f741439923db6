//! Mappings that make no sense: each fault is named with its remedy, the rest goes on, nothing leaks.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::Result;
use tests::{
    Agent, Capture, Family, Host, Lab, MappingsDir, TcpServer, UdpProbe, UdpServer, eventually,
    wait_until, whoami,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);
const IDS: &str = "vip-routeid-mappings";
const PODS: &str = "podip-vip-mappings";
const NETWORKS: &str = "egress-networks";

fn vip() -> IpAddr {
    [192, 168, 122, 222].into()
}

fn server(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.outside().ip(Family::V4), PORT)
}

/// One node that holds the VIP, route id 64, with pod 1 mapped to it.
fn small() -> Result<(Lab, MappingsDir)> {
    let lab = Lab::builder().nodes(1).build()?;
    let mut mappings = MappingsDir::of(&lab)?;
    mappings.set_vip(vip(), 64)?;
    mappings.map(lab.pod(1, 1).ip(Family::V4), vip())?;
    lab.hold_vip(1, vip())?;
    Ok((lab, mappings))
}

/// Warnings with all of these words.
fn warnings(agent: &Agent, words: &[&str]) -> usize {
    let warned =
        |line: &&str| line.contains(" WARN ") && words.iter().all(|word| line.contains(word));
    agent.log().lines().filter(warned).count()
}

fn relieved(agent: &Agent, words: &[&str]) -> bool {
    let told =
        |line: &str| line.contains("no longer: ") && words.iter().all(|word| line.contains(word));
    agent.log().lines().any(told)
}

#[track_caller]
fn assert_warned_once(agent: &Agent, words: &[&str]) {
    let told = wait_until(SOON, || warnings(agent, words) > 0);
    assert!(told && warnings(agent, words) == 1, "{words:?}: {}", agent.log());
}

/// A pod's packets come to nothing, and none of them gets out.
fn assert_held(capture: &Capture, lab: &Lab, pod: &Host) -> Result<()> {
    capture.clear();
    let probe = UdpProbe::start(pod, server(lab), 200)?;
    eventually(SOON, || probe.sent() >= 20);
    assert_eq!(probe.stop()?.received, 0);
    // A TCP session from before may still say its last words.
    let udp = capture
        .sources_where(|flow| flow.protocol == 17 && flow.destination == server(lab).ip())?;
    assert!(udp.is_empty(), "{udp:?}");
    Ok(())
}

/// Object, key, value, and what the log says of it besides.
type Fault = (&'static str, &'static str, &'static str, &'static str);

const FAULTS: [Fault; 22] = [
    (IDS, "192.168.122.230", "0", "use a whole number from 1 to 252"),
    (IDS, "192.168.122.231", "253", "use a whole number from 1 to 252"),
    (IDS, "192.168.122.232", "abc", "use a whole number from 1 to 252"),
    (IDS, "192.168.122.233", "", "use a whole number from 1 to 252"),
    (
        IDS,
        "192.168.122.234",
        "99999999999999999999999999999999",
        "use a whole number from 1 to 252",
    ),
    (IDS, "192.168.122.235", "64", "belongs to VIP 192.168.122.222; give it a free one"),
    (IDS, "192.168.122.11", "70", "is the address of a node; choose"),
    (IDS, "10.244.1.77", "71", "lies in pod subnet 10.244.0.0/16; choose"),
    (IDS, "10.96.0.77", "74", "lies in service subnet 10.96.0.0/12; choose"),
    (IDS, "0.0.0.0", "72", "the key is not a VIP"),
    (IDS, "127.0.0.1", "72", "the key is not a VIP"),
    (IDS, "not-an-address", "73", "the key is not a VIP"),
    (PODS, "10.244.1.12", "nonsense", "the pod is held because the value is not a VIP"),
    (PODS, "10.244.1.50", "fd00:122::222", "the other address family; map it to"),
    (PODS, "10.244.1.51", "192.168.122.222 192.168.122.223", "held because the value is not a VIP"),
    (PODS, "192.168.122.11", "192.168.122.222", "is the address of a node; map only"),
    (PODS, "192.168.122.222", "192.168.122.222", "is itself a VIP; remove"),
    (PODS, "no-pod", "192.168.122.222", "the key is not a pod IP"),
    ("podip-vip-mappings-b", "10.244.1.11", "192.168.122.240", "counts; remove one"),
    (NETWORKS, "excluded", "10.0.0.0/33", "it is not a network; write"),
    (NETWORKS, "service-subnet", "10.0.0.0/8", "the key is unknown; use"),
    (NETWORKS, "node-addresses", "192.168.122.11,banana", "not a node's address"),
];

#[test]
fn every_fault_is_named_once_and_the_rest_goes_on_until_it_is_put_right() -> Result<()> {
    let (lab, mut mappings) = small()?;
    let (good, bad) = (lab.pod(1, 1), lab.pod(1, 2));
    let _servers = (UdpServer::start(lab.outside(), PORT)?, TcpServer::start(lab.outside(), PORT)?);
    for (object, key, value, _) in FAULTS {
        mappings.set(object, key, value)?;
    }
    // The objects of nodes go before the older one of the whole cluster.
    mappings.set("podip-vip-mappings-b", "10.244.1.11", &vip().to_string())?;
    mappings.set(PODS, "10.244.1.11", "192.168.122.240")?;
    mappings.set(PODS, "10.244.1.60", "192.168.122.241")?;
    let mut agent = Agent::start(lab.node(1), mappings.path(), &[])?;
    agent.wait_ready()?;
    let rejected = f64::from(u32::try_from(FAULTS.len())?);
    eventually(SOON, || agent.metric("egress_agent_rejected_entries").is_ok_and(|n| n == rejected));
    for (object, key, _, reason) in FAULTS {
        let object = if object == "podip-vip-mappings-b" { PODS } else { object };
        assert_warned_once(&agent, &[&format!("{object}, key \"{key}\""), reason]);
    }
    assert_warned_once(&agent, &["192.168.122.241 has no route id", "10.244.1.60", "give the VIP"]);

    let capture = Capture::start(&lab)?;
    assert_eq!(whoami(good, server(&lab), SOON)?, vip());
    capture.assert_only_source(vip(), server(&lab).ip(), 3);
    assert_held(&capture, &lab, bad)?;

    // What changes beside them does not bring them up again.
    mappings.set(PODS, "10.244.1.61", &vip().to_string())?;
    eventually(SOON, || agent.log().contains("map 10.244.1.61 to"));
    for (object, key, _, _) in FAULTS {
        match (object, key) {
            (PODS, "10.244.1.12") => mappings.set(object, key, &vip().to_string())?,
            (NETWORKS, "node-addresses") => mappings.set(object, key, "192.168.122.11")?,
            ("podip-vip-mappings-b", _) => mappings.remove(PODS, key)?,
            _ => mappings.remove(object, key)?,
        }
    }
    mappings.set(IDS, "192.168.122.241", "99")?;
    eventually(SOON, || agent.metric("egress_agent_rejected_entries").is_ok_and(|n| n == 0.0));
    for (object, key, _, reason) in FAULTS {
        let object = if object == "podip-vip-mappings-b" { PODS } else { object };
        let words = [&format!("{object}, key \"{key}\"")[..], reason];
        eventually(SOON, || relieved(&agent, &words));
        assert_eq!(warnings(&agent, &words), 1, "{words:?}: {}", agent.log());
    }
    assert!(relieved(&agent, &["192.168.122.241 has no route id"]), "{}", agent.log());
    capture.clear();
    assert_eq!(whoami(bad, server(&lab), SOON)?, vip());
    assert_eq!(whoami(good, server(&lab), SOON)?, vip());
    capture.assert_only_source(vip(), server(&lab).ip(), 6);
    agent.stop()
}

/// What was good stays in the kernel when it turns bad: never the node's address.
#[test]
fn a_good_entry_that_turns_bad_holds_its_pods() -> Result<()> {
    let (lab, mut mappings) = small()?;
    let pod = lab.pod(1, 1);
    let key = pod.v4.to_string();
    let _servers = (UdpServer::start(lab.outside(), PORT)?, TcpServer::start(lab.outside(), PORT)?);
    let mut agent = Agent::start(lab.node(1), mappings.path(), &[])?;
    agent.wait_ready()?;
    let capture = Capture::start(&lab)?;
    for (object, key, bad, good) in [
        (PODS, key.as_str(), "banana", "192.168.122.222"),
        (PODS, key.as_str(), "fd00:122::222", "192.168.122.222"),
        (PODS, key.as_str(), "192.168.122.250", "192.168.122.222"),
        (IDS, "192.168.122.222", "four", "64"),
        (IDS, "192.168.122.222", "0", "64"),
    ] {
        assert_eq!(whoami(pod, server(&lab), SOON)?, vip());
        mappings.set(object, key, bad)?;
        eventually(SOON, || whoami(pod, server(&lab), Duration::from_millis(200)).is_err());
        assert_held(&capture, &lab, pod)?;
        mappings.set(object, key, good)?;
        let back = || whoami(pod, server(&lab), Duration::from_millis(500)).is_ok();
        eventually(SOON, back);
        capture.assert_only_source(vip(), server(&lab).ip(), 1);
    }
    Ok(())
}

#[test]
fn objects_that_go_away_count_on_and_are_told() -> Result<()> {
    let (lab, mut mappings) = small()?;
    let (pod, node) = (lab.pod(1, 1), lab.node(1));
    let _server = TcpServer::start(lab.outside(), PORT)?;
    let mut agent = Agent::start(node, mappings.path(), &[])?;
    agent.wait_ready()?;
    let missing = |count: f64| {
        eventually(SOON, || agent.metric("egress_agent_missing_objects").is_ok_and(|n| n == count));
    };
    for object in [NETWORKS, IDS, PODS] {
        let (folder, away) = (mappings.path().join(object), mappings.path().join(".away"));
        fs::rename(&folder, &away)?;
        missing(1.0);
        assert_warned_once(
            &agent,
            &[object, "is missing: its last content counts", "an empty one"],
        );
        assert_eq!(whoami(pod, server(&lab), SOON)?, vip());

        fs::write(&folder, "a file")?;
        assert_eq!(whoami(pod, server(&lab), SOON)?, vip());
        fs::remove_file(&folder)?;
        fs::rename(&away, &folder)?;
        missing(0.0);
        assert!(relieved(&agent, &[object, "is missing"]), "{}", agent.log());
        assert_eq!(whoami(pod, server(&lab), SOON)?, vip());
    }

    // The whole directory.
    let (root, away) = (mappings.path().to_owned(), mappings.path().with_extension("away"));
    fs::rename(&root, &away)?;
    missing(3.0);
    assert_eq!(whoami(pod, server(&lab), SOON)?, vip());
    fs::rename(&away, &root)?;
    missing(0.0);
    mappings.map(lab.pod(1, 2).ip(Family::V4), vip())?;
    eventually(SOON, || whoami(lab.pod(1, 2), server(&lab), SOON).is_ok_and(|seen| seen == vip()));
    assert_eq!(agent.http("/readyz")?.0, 200);

    // An empty object is an order.
    mappings.remove_object(PODS)?;
    fs::create_dir(root.join(PODS))?;
    eventually(SOON, || {
        whoami(pod, server(&lab), SOON).is_ok_and(|seen| seen == node.ip(Family::V4))
    });
    agent.stop()
}

#[test]
fn junk_of_all_kinds_is_passed_over_or_named() -> Result<()> {
    let (lab, mappings) = small()?;
    let _servers = (UdpServer::start(lab.outside(), PORT)?, TcpServer::start(lab.outside(), PORT)?);
    let root = mappings.path();
    let pods = root.join(PODS);
    fs::write(root.join("README"), "a file beside the objects")?;
    fs::create_dir(root.join("unknown-object"))?;
    fs::write(root.join("unknown-object/key"), [0xff, 0x00])?;
    fs::write(root.join("vip-candidates"), "a file where an object may be")?;
    fs::create_dir(pods.join("10.244.1.70"))?;
    fs::write(pods.join(".hidden"), "nonsense")?;
    symlink("/nonexistent", pods.join("10.244.1.71"))?;
    symlink("10.244.1.72", pods.join("10.244.1.72"))?;
    nix::unistd::mkfifo(&pods.join("10.244.1.73"), nix::sys::stat::Mode::S_IRWXU)?;
    fs::write(pods.join("10.244.1.74"), vec![b'1'; 3_000_000])?;
    fs::write(pods.join("10.244.1.12"), [0xc3, 0x28, 0x00])?;
    fs::write(pods.join("x".repeat(255)), "192.168.122.222")?;
    fs::write(pods.join("10.244.1.75"), "")?;
    fs::write(pods.join("10.244.1.76"), " 192.168.122.222\r\n")?;
    let mut agent = Agent::start(lab.node(1), root, &[])?;
    agent.wait_ready()?;
    for (key, reason) in [
        ("10.244.1.73", "not a regular file"),
        ("10.244.1.74", "larger than"),
        ("10.244.1.12", "not UTF-8"),
    ] {
        assert_warned_once(&agent, &[PODS, key, reason]);
    }
    assert_warned_once(&agent, &[PODS, "xxxx", "the key is not a pod IP"]);
    assert!(agent.log().lines().all(|line| line.len() < 1000), "{}", agent.log());
    let capture = Capture::start(&lab)?;
    assert_eq!(whoami(lab.pod(1, 1), server(&lab), SOON)?, vip());
    capture.assert_only_source(vip(), server(&lab).ip(), 3);
    let text = Agent::run(lab.node(1), &["--dump-rules", "--output", "json"])?;
    let told: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(told["vips"][0]["pods"], serde_json::json!(["10.244.1.11", "10.244.1.76"]));
    assert_held(&capture, &lab, lab.pod(1, 2))?;

    fs::write(pods.join("10.244.1.12"), vip().to_string())?;
    eventually(SOON, || {
        whoami(lab.pod(1, 2), server(&lab), Duration::from_millis(500))
            .is_ok_and(|seen| seen == vip())
    });
    assert_eq!(agent.http("/healthz")?.0, 200);
    agent.stop()
}
