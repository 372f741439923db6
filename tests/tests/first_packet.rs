//! Addresses that a node learns by itself: what they are worth, and what nonsense does.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::{
    Agent, Capture, CniResults, Family, Lab, MappingsDir, UdpProbe, UdpServer, eventually, seen_as,
    vip,
};

const PORT: u16 = 7000;
/// From where a pod sends that was not heard before.
const FRESH: u16 = 7001;
const SOON: Duration = Duration::from_secs(10);
const LEAVES_WITHIN: Duration = Duration::from_secs(1);
const PODS: &str = "podip-vip-mappings";
const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";
const OTHER: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22";

/// One node that holds a VIP, and its agent, which is ready.
struct Bed {
    agent: Agent,
    mappings: MappingsDir,
    results: CniResults,
    server: UdpServer,
    lab: Lab,
}

impl Bed {
    fn new() -> Result<Self> {
        Self::on(Lab::builder().nodes(1).pods_per_node(3).build()?, &[], CniResults::new()?)
    }

    /// With further arguments, and with results that are there before.
    fn on(lab: Lab, arguments: &[&str], results: CniResults) -> Result<Self> {
        let server = UdpServer::start(lab.outside(), PORT)?;
        let mut mappings = MappingsDir::of(&lab)?;
        mappings.set_vip(vip(Family::V4, 222), 64)?;
        mappings.hold(pod(&lab, 2))?;
        lab.hold_vip(1, vip(Family::V4, 222))?;
        let agent = Self::agent(&lab, &mappings, &results, arguments)?;
        Ok(Self { agent, mappings, results, server, lab })
    }

    fn agent(
        lab: &Lab,
        mappings: &MappingsDir,
        results: &CniResults,
        arguments: &[&str],
    ) -> Result<Agent> {
        let directory = results.path().to_string_lossy().into_owned();
        let arguments = [&["--cni-results-dir", &directory], arguments].concat();
        let mut agent = Agent::start(lab.node(1), mappings.path(), &arguments)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// What a pod leaves with; nothing if it does not.
    fn leaves_with(&self, number: usize) -> Option<IpAddr> {
        let probe = UdpProbe::start(self.lab.pod(1, number), self.outside(), 200).ok()?;
        let leaves = tests::wait_until(LEAVES_WITHIN, || probe.received() > 0);
        probe.seen_as().filter(|_| leaves)
    }

    fn maps(&self, pod: IpAddr) -> bool {
        let element = format!("{{ {pod} }}");
        let get = ["nft", "get", "element", "inet", "egress", "pod_vip4", &element];
        self.lab
            .node(1)
            .run(&get)
            .is_ok_and(|text| text.contains(&format!("{pod} : {}", vip(Family::V4, 222))))
    }

    fn outside(&self) -> SocketAddr {
        SocketAddr::new(self.lab.outside().ip(Family::V4), PORT)
    }

    fn holds_unknown(&self) -> bool {
        let held = self.agent.metric("egress_agent_unknown_pods_held");
        held.is_ok_and(|held| held > 0.5)
    }

    fn ignored(&self, reason: &str) -> Result<f64> {
        self.agent.metric(&format!("egress_agent_cni_results_ignored_total{{reason=\"{reason}\"}}"))
    }
}

fn pod(lab: &Lab, number: usize) -> IpAddr {
    lab.pod(1, number).ip(Family::V4)
}

#[test]
fn a_pod_leaves_with_its_vip_once_the_node_knows_its_address() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, ip) = (vip(Family::V4, 222), pod(&bed.lab, 1));
    bed.mappings.set(PODS, UID, &vip.to_string())?;
    let expected = || bed.agent.metric("egress_agent_pods{state=\"expected\"}");
    eventually(SOON, || expected().is_ok_and(|pods| pods > 0.5));
    assert!(!bed.maps(ip), "nobody knows its address");

    let capture = Capture::start(&bed.lab)?;
    bed.results.assign(UID, &[ip])?;
    eventually(SOON, || bed.maps(ip));
    let outside = SocketAddr::new(bed.lab.outside().ip(Family::V4), PORT);
    assert_eq!(seen_as(bed.lab.pod(1, 1), outside)?, [vip]);
    capture.assert_only_source(vip, outside.ip(), 1);

    // The object names it at last: nothing changes, whatever becomes of the result.
    bed.mappings.map(ip, vip)?;
    bed.mappings.remove(PODS, UID)?;
    bed.results.give_back(UID)?;
    bed.mappings.set(PODS, OTHER, "")?;
    bed.results.assign(OTHER, &[pod(&bed.lab, 3)])?;
    eventually(SOON, || bed.agent.log().contains(&pod(&bed.lab, 3).to_string()));
    assert!(bed.maps(ip));
    bed.agent.stop()?;
    drop(bed.server);
    Ok(())
}

#[test]
fn an_address_that_is_used_again_is_not_inherited() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, ip) = (vip(Family::V4, 222), pod(&bed.lab, 1));
    bed.mappings.map(ip, vip)?;
    eventually(SOON, || bed.maps(ip));
    bed.mappings.set(PODS, OTHER, "")?;
    bed.results.assign(OTHER, &[ip])?;
    eventually(SOON, || !bed.maps(ip));
    let capture = Capture::start(&bed.lab)?;
    let outside = SocketAddr::new(bed.lab.outside().ip(Family::V4), PORT);
    assert!(seen_as(bed.lab.pod(1, 1), outside).is_err(), "it is held");
    capture.assert_silent(outside.ip());
    bed.agent.stop()
}

#[test]
fn while_a_pod_is_expected_unknown_ones_are_held_and_no_others() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, node) = (vip(Family::V4, 222), bed.lab.node(1).ip(Family::V4));
    let outside = bed.outside();
    bed.results.assign(OTHER, &[pod(&bed.lab, 3)])?;
    eventually(SOON, || bed.agent.log().contains(&format!("know {}", pod(&bed.lab, 3))));
    let (new, known) = (bed.lab.pod(1, 1), bed.lab.pod(1, 3));
    assert_eq!(seen_as(new, outside)?, [node], "nobody is expected");
    let running = UdpProbe::start(new, outside, 50)?;
    eventually(SOON, || running.received() > 0);

    bed.mappings.set(PODS, UID, &vip.to_string())?;
    eventually(SOON, || bed.holds_unknown());
    let capture = Capture::start(&bed.lab)?;
    let from_new = UdpProbe::start_from_port(new, FRESH, outside, 100)?;
    assert_eq!(seen_as(known, outside)?, [node]);
    let before = running.received();
    eventually(SOON, || running.received() > before + 10 && from_new.sent() > 20);
    let fresh = |flow: &tests::Flow| flow.source_port == FRESH;
    assert!(capture.sources_where(fresh)?.is_empty(), "{}", capture.text());
    let dump = Agent::run(bed.lab.node(1), &["--dump-rules"])?;
    assert!(dump.contains("new connections of unknown pods are dropped for "), "{dump}");
    let dropped = "egress_dropped_packets_total{table=\"egress\",reason=\"unsure\"}";
    assert!(bed.agent.metric(dropped)? > 10.5);

    bed.results.assign(UID, &[pod(&bed.lab, 1)])?;
    eventually(SOON, || from_new.seen_as() == Some(vip));
    eventually(SOON, || !bed.holds_unknown());
    assert_eq!(capture.sources_where(fresh)?.into_keys().collect::<Vec<_>>(), [vip]);
    bed.agent.stop()
}

#[test]
fn unknown_pods_are_not_held_for_longer_when_the_agent_dies() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.mappings.set(PODS, UID, "")?;
    bed.results.assign(OTHER, &[pod(&bed.lab, 3)])?;
    eventually(SOON, || bed.holds_unknown());
    bed.agent.kill(Signal::SIGKILL)?;
    bed.agent.wait()?;
    for set in ["unsure4", "unsure6"] {
        let text = bed.lab.node(1).run(&["nft", "list", "set", "inet", "egress", set])?;
        let expires = text.split("expires ").nth(1).unwrap_or_default();
        let seconds = expires.split('s').next().unwrap_or_default().parse::<u32>();
        assert!(seconds.is_ok_and(|seconds| seconds < 30), "{text}");
    }
    Ok(())
}

#[test]
fn an_address_is_only_that_pods_which_the_mapping_is_for() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, node) = (vip(Family::V4, 222), bed.lab.node(1).ip(Family::V4));
    let (first, third) = (pod(&bed.lab, 1), pod(&bed.lab, 3));
    bed.results.assign(UID, &[first])?;
    bed.mappings.map(first, vip)?;
    bed.mappings.set(PODS, &format!("{UID}.addresses"), &first.to_string())?;
    eventually(SOON, || bed.maps(first));
    assert_eq!(bed.leaves_with(1), Some(vip));

    // Its sandbox is made anew, and another pod gets the address; no object says any of it.
    bed.results.assign(UID, &[third])?;
    eventually(SOON, || bed.maps(third));
    let capture = Capture::start(&bed.lab)?;
    bed.results.assign(OTHER, &[first])?;
    eventually(SOON, || !bed.maps(first));
    assert_eq!(bed.leaves_with(1), Some(node));
    capture.assert_only_source(node, bed.outside().ip(), 1);
    assert_eq!(bed.leaves_with(3), Some(vip));

    // The agent starts again: what it knew was in no memory of its own.
    bed.agent.kill(Signal::SIGKILL)?;
    bed.agent.wait()?;
    bed.agent = Bed::agent(&bed.lab, &bed.mappings, &bed.results, &[])?;
    assert!(!bed.maps(first) && bed.maps(third));
    bed.agent.stop()
}

#[test]
fn a_pod_that_is_gone_is_held_until_its_node_is_done_with_it() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, node) = (vip(Family::V4, 222), bed.lab.node(1).ip(Family::V4));
    let (first, third) = (pod(&bed.lab, 1), pod(&bed.lab, 3));
    for (uid, ip) in [(UID, first), (OTHER, third)] {
        bed.results.assign(uid, &[ip])?;
        bed.mappings.map(ip, vip)?;
        bed.mappings.set(PODS, &format!("{uid}.addresses"), &ip.to_string())?;
    }
    eventually(SOON, || bed.maps(first) && bed.maps(third));
    let outside = bed.outside();
    let probe = UdpProbe::start_from_port(bed.lab.pod(1, 1), FRESH, outside, 500)?;
    eventually(SOON, || probe.seen_as() == Some(vip));

    // As the controller says it: it takes a mapping away in the same breath.
    let capture = Capture::start(&bed.lab)?;
    let held =
        || bed.agent.metric("egress_dropped_packets_total{table=\"egress\",reason=\"held\"}");
    let before = held()?;
    bed.mappings.set(PODS, UID, "gone")?;
    eventually(SOON, || !bed.maps(first));
    bed.mappings.unmap(first)?;
    bed.mappings.remove(PODS, &format!("{UID}.addresses"))?;
    eventually(SOON, || held().is_ok_and(|held| held > before + 100.5));
    capture.assert_only_source(vip, outside.ip(), 0);

    // One that nothing is for any more leaves with the node's address at once.
    bed.mappings.unmap(third)?;
    bed.mappings.remove(PODS, &format!("{OTHER}.addresses"))?;
    eventually(SOON, || bed.leaves_with(3) == Some(node));

    bed.agent.kill(Signal::SIGKILL)?;
    bed.agent.wait()?;
    bed.agent = Bed::agent(&bed.lab, &bed.mappings, &bed.results, &[])?;
    assert_eq!(bed.leaves_with(1), None, "the next agent holds it, too");
    bed.results.give_back(UID)?;
    eventually(SOON, || bed.leaves_with(1) == Some(node));
    bed.agent.stop()
}

#[test]
fn strictly_no_pod_leaves_of_which_nothing_was_said() -> Result<()> {
    let (strict, results) = (["--strict-pods"], CniResults::new()?);
    let lab = Lab::builder().nodes(1).pods_per_node(4).build()?;
    let [running, new, newer] = [1, 3, 4].map(|number| pod(&lab, number));
    let uid = |number: u8| format!("{}{number:02x}", &UID[..34]);
    results.assign(&uid(1), &[running])?;
    let mut bed = Bed::on(lab, &strict, results)?;
    let (vip, node) = (vip(Family::V4, 222), bed.lab.node(1).ip(Family::V4));
    assert_eq!(bed.leaves_with(1), Some(node), "it was there before");
    bed.results.assign(&uid(3), &[new])?;
    let capture = Capture::start(&bed.lab)?;
    assert_eq!(bed.leaves_with(3), None);
    capture.assert_silent(bed.outside().ip());
    bed.mappings.set(PODS, &uid(3), "uncovered")?;
    eventually(SOON, || bed.leaves_with(3) == Some(node));

    bed.agent.kill(Signal::SIGKILL)?;
    bed.agent.wait()?;
    bed.results.assign(&uid(4), &[newer])?;
    assert_eq!((bed.leaves_with(1), bed.leaves_with(4)), (Some(node), None));
    bed.agent = Bed::agent(&bed.lab, &bed.mappings, &bed.results, &strict)?;
    assert_eq!((bed.leaves_with(1), bed.leaves_with(4)), (Some(node), None));
    bed.mappings.set(PODS, &uid(4), &vip.to_string())?;
    eventually(SOON, || bed.leaves_with(4) == Some(vip));
    let dump = Agent::run(bed.lab.node(1), &["--dump-rules"])?;
    assert!(dump.contains("\nnew connections of unknown pods are dropped:"), "{dump}");
    bed.agent.stop()
}

#[test]
fn nonsense_among_the_results_is_counted_and_harms_nothing() -> Result<()> {
    let mut bed = Bed::new()?;
    let (vip, ip) = (vip(Family::V4, 222), pod(&bed.lab, 1));
    bed.mappings.set(PODS, UID, &vip.to_string())?;
    bed.results.write("half", "{\"kind\":\"cniCacheV1\",")?;
    bed.results.write("foreign", "{\"kind\":\"other\"}")?;
    bed.results.write("huge", &" ".repeat(2 << 20))?;
    bed.results.assign(UID, &[ip])?;
    eventually(SOON, || bed.maps(ip));
    for reason in ["broken", "foreign", "too_large"] {
        eventually(SOON, || bed.ignored(reason).is_ok_and(|count| count > 0.5));
    }
    bed.results.give_back(UID)?;
    eventually(SOON, || !bed.maps(ip));
    bed.agent.stop()
}

#[test]
fn without_results_pods_are_mapped_by_address_and_that_is_said_once() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let mut mappings = MappingsDir::of(&lab)?;
    mappings.set_vip(vip(Family::V4, 222), 64)?;
    mappings.map(pod(&lab, 1), vip(Family::V4, 222))?;
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("results").to_string_lossy().into_owned();
    let mut agent = Agent::start(lab.node(1), mappings.path(), &["--cni-results-dir", &directory])?;
    agent.wait_ready()?;
    let map = ["nft", "list", "map", "inet", "egress", "pod_vip4"];
    assert!(lab.node(1).run(&map)?.contains(&pod(&lab, 1).to_string()));
    std::fs::create_dir(&directory)?;
    let learns = format!("addresses of new pods are learnt from {directory}");
    eventually(SOON, || agent.log().contains(&learns));
    let missing = format!("cannot watch {directory}");
    assert_eq!(agent.log().matches(&missing).count(), 1, "{}", agent.log());
    agent.stop()
}
