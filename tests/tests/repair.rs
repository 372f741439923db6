//! Somebody changes what is ours, while traffic runs: it is put right, and nothing leaks meanwhile.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{
    Capture, Cluster, Family, Host, KernelText, Lab, NewFlows, Traffic, eventually, vip, wait_until,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);
/// How often agents here look at everything without a notice: not in time to hide one that was missed.
const LOOK_EACH: [&str; 2] = ["--update-interval", "60"];
/// How soon what began without tables has to be forgotten once they are back, on a crowded machine.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(3);

/// How many devices come and go.
const PODS: u32 = 20;
/// What follows from a VIP that comes is told of in several notices: the address, its route, rules.
const LOOKS_FOR_AN_ADDRESS: f64 = 8.0;

/// Things of others, next to ours: they have to stay.
const FOREIGN: &str = "table inet stranger {
  set theirs { type ipv4_addr; elements = { 10.244.1.11 } }
  chain theirs { type filter hook forward priority 7; counter accept; }
}
";

/// A cluster whose node 1 holds both VIPs, with traffic that never stops.
struct Scene {
    traffic: Vec<Traffic>,
    flows: Vec<NewFlows>,
    capture: Capture,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::new(Lab::builder().pods_per_node(1).build()?, PORT)?;
        for (family, route_id) in [(Family::V4, 64), (Family::V6, 65)] {
            let Cluster { lab, mappings, .. } = &mut cluster;
            mappings.set_vip(vip(family, 222), route_id)?;
            for node in 1..=2 {
                mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
            }
            // A holder knows the way to itself only if it was there before.
            lab.hold_vip(1, vip(family, 222))?;
        }
        cluster.arguments.extend(LOOK_EACH);
        cluster.start_agents()?;
        for node in cluster.lab.nodes() {
            node.run_with_input(&["nft", "-f", "-"], FOREIGN)?;
            for ip in ["ip -4", "ip -6"] {
                node.sh(&format!("{ip} rule add pref 30000 fwmark 0x80000/0x80000 lookup 20000"))?;
                node.sh(&format!("{ip} route add unreachable default table 20000"))?;
            }
        }
        let capture = Capture::start(&cluster.lab)?;
        let pods = [cluster.lab.pod(1, 1), cluster.lab.pod(2, 1)];
        let (mut traffic, mut flows) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            let server = SocketAddr::new(cluster.lab.outside().ip(family), PORT);
            traffic.push(Traffic::start(&pods, server, 250)?);
            for pod in pods {
                flows.push(NewFlows::start(pod, server, 100)?);
            }
        }
        Ok(Self { traffic, flows, capture, cluster })
    }

    fn node(&self, number: usize) -> &Host {
        self.cluster.lab.node(number)
    }

    /// Does it to a node; its kernel is what it was before soon, the agent says that it
    /// has repaired something, and all traffic goes on. No packet has left with another address.
    fn is_repaired(&mut self, node: usize, what: &str) -> Result<()> {
        self.is_repaired_after(node, what, |node| node.run(&["sh", "-c", what]).map(drop))
    }

    fn is_repaired_after(
        &mut self,
        node: usize,
        what: &str,
        change: impl FnOnce(&Host) -> Result<()>,
    ) -> Result<()> {
        let repairs = "egress_agent_repairs_total";
        let counted = self.cluster.agent(node)?.metric(repairs)?;
        let before = self.cluster.kernel(node, false)?;
        change(self.node(node))?;
        let took = self.until_like(node, &before, what)?;
        let agent = self.cluster.agent(node)?;
        eventually(SOON, || agent.metric(repairs).is_ok_and(|now| now > counted));
        self.goes_on(what)?;
        println!("node {node}, `{what}`: repaired after {} ms", took.as_millis());
        Ok(())
    }

    fn until_like(&self, node: usize, before: &KernelText, what: &str) -> Result<Duration> {
        let start = Instant::now();
        let mut now = before.clone();
        let same = wait_until(SOON, || {
            self.cluster.kernel(node, false).is_ok_and(|kernel| {
                now = kernel;
                now == *before
            })
        });
        ensure!(same, "node {node}, `{what}`: before\n{before:#?}\nnow\n{now:#?}");
        Ok(start.elapsed())
    }

    fn goes_on(&self, what: &str) -> Result<()> {
        for traffic in &self.traffic {
            traffic.flows_within(Duration::from_secs(10)).with_context(|| what.to_owned())?;
        }
        for family in Family::ALL {
            let sources = self.capture.sources_towards(self.cluster.lab.outside().ip(family))?;
            let wrong: Vec<_> =
                sources.keys().filter(|source| **source != vip(family, 222)).collect();
            ensure!(wrong.is_empty(), "`{what}`: LEAK from {wrong:?}: {sources:?}");
        }
        Ok(())
    }

    /// No session has broken, nothing but VIPs was seen, and a lot of it.
    fn judge(self) -> Result<()> {
        let Self { traffic, flows, capture, cluster } = self;
        drop(flows);
        for (traffic, family) in traffic.into_iter().zip(Family::ALL) {
            let sent = traffic.udp_sent();
            for report in traffic.stop()? {
                println!("{family:?} {report}");
            }
            let outside = cluster.lab.outside().ip(family);
            capture.assert_only_source(vip(family, 222), outside, sent / 2);
        }
        Ok(())
    }
}

#[test]
fn tables_that_are_deleted_or_emptied_come_back_and_nothing_leaks() -> Result<()> {
    let mut scene = Scene::new()?;
    for node in [1, 2] {
        for what in [
            "nft delete table inet egress",
            "nft delete table inet egress-guard",
            "nft flush table inet egress",
            "nft flush table inet egress-guard",
            "nft flush chain inet egress classify",
            "nft flush chain inet egress new4",
            "nft flush chain inet egress translate",
            "nft flush chain inet egress-guard guard",
            "nft flush chain inet egress-guard decided",
            "nft flush map inet egress pod_vip4",
            "nft flush map inet egress pod_vip6",
            "nft flush set inet egress-guard mapped4",
            "nft 'add table inet egress { flags dormant; }'",
            "nft 'add table inet egress-guard { flags dormant; }'",
        ] {
            scene.is_repaired(node, what)?;
        }
    }
    scene.judge()
}

#[test]
fn what_strangers_add_to_our_tables_goes_and_nothing_leaks() -> Result<()> {
    let mut scene = Scene::new()?;
    for node in [1, 2] {
        for what in [
            "nft insert rule inet egress classify accept",
            "nft insert rule inet egress translate accept",
            "nft insert rule inet egress vip_in accept",
            "nft insert rule inet egress-guard guard accept",
            "nft add rule inet egress egress4 counter",
            "nft add chain inet egress strange",
            "nft add set inet egress strange '{ type ipv4_addr; }'",
            "nft 'add element inet egress pod_vip4 { 10.244.9.9 : 192.168.122.222 }'",
            "nft 'add element inet egress pod_vip6 { fd00:244:9::9 : fd00:122::de }'",
            "nft 'add element inet egress-guard mapped4 { 10.244.9.9 }'",
            "nft 'delete element inet egress pod_vip4 { 10.244.1.11 }'",
            "nft 'delete element inet egress pod_vip6 { fd00:244:2::11 }'",
            "nft 'delete element inet egress-guard mapped6 { fd00:244:2::11 }'",
        ] {
            scene.is_repaired(node, what)?;
        }
        // A pod with another VIP: in one transaction, so that the map is never without it.
        scene.is_repaired_after(node, "another VIP for a pod", |node| {
            let change = "delete element inet egress pod_vip4 { 10.244.2.11 }
add element inet egress pod_vip4 { 10.244.2.11 : 192.168.122.99 }
";
            node.run_with_input(&["nft", "-f", "-"], change).map(drop)
        })?;
    }
    scene.judge()
}

#[test]
fn policy_routing_and_settings_are_put_right_and_nothing_leaks() -> Result<()> {
    let mut scene = Scene::new()?;
    for node in [1, 2] {
        for what in [
            "ip rule del pref 1064",
            "ip -6 rule del pref 1065",
            "ip route del unreachable default metric 4278198272 table 10064",
            "ip -6 route del unreachable default metric 4278198272 table 10065",
        ] {
            scene.is_repaired(node, what)?;
        }
    }
    // The kernel takes no route to itself, so on the holder they come when the VIP leaves.
    for what in [
        "ip route del default via 192.168.122.222 dev eth0 table 10064",
        "ip -6 route del default via fd00:122::de dev eth0 table 10065",
        "ip route flush table 10064",
        "ip -6 route flush table 10065",
        "ip route flush table 10064; ip rule del pref 1064",
    ] {
        scene.is_repaired(2, what)?;
    }
    // Strict filters at the holder stop what other nodes send.
    for interface in ["eth0", "flannel.1"] {
        let key = format!("net/ipv4/conf/{interface}/rp_filter");
        let strict = Instant::now();
        scene.node(1).set_sysctl(&key, "1")?;
        eventually(SOON, || scene.node(1).sysctl(&key).is_ok_and(|value| value == "2"));
        println!("rp_filter of {interface}: repaired after {} ms", strict.elapsed().as_millis());
        scene.goes_on("strict rp_filter")?;
    }
    scene.judge()
}

#[test]
fn a_way_that_a_stranger_puts_into_our_table_leads_no_packet_astray() -> Result<()> {
    let scene = Scene::new()?;
    for what in [
        "ip route add default via 192.168.122.1 dev eth0 metric 5 table 10064",
        "ip -6 route add default via fd00:122::1 dev eth0 metric 5 table 10065",
        "ip route add 192.168.122.64/32 via 192.168.122.64 dev eth0 table 10064",
    ] {
        let before = scene.cluster.kernel(2, false)?;
        let sent = scene.traffic[0].udp_sent();
        scene.node(2).sh(what)?;
        eventually(SOON, || scene.traffic[0].udp_sent() >= sent + 200);
        // Nothing leaks, whether the agent removes it or not.
        let removed =
            wait_until(SOON, || scene.cluster.kernel(2, false).is_ok_and(|now| now == before));
        println!("`{what}`: {}", if removed { "removed" } else { "stays" });
        if !removed {
            scene.node(2).sh(&what.replace(" add ", " del "))?;
        }
        scene.goes_on(what)?;
    }
    scene.judge()
}

#[test]
fn the_uplink_may_go_down_and_connection_tracking_may_be_emptied() -> Result<()> {
    let scene = Scene::new()?;
    for node in [1, 2] {
        let before = scene.cluster.kernel(node, true)?;
        for _ in 0..3 {
            scene.node(node).run(&["sh", "-c", "conntrack -F 2>/dev/null"])?;
            scene.goes_on("conntrack -F")?;
        }
        assert_eq!(
            scene.cluster.kernel(node, true)?,
            before,
            "the rules have nothing to do with it"
        );
    }
    // Of a node that is not the holder. What is not ours goes with the link too; put it back.
    let node = scene.node(2);
    let before = scene.cluster.kernel(2, false)?;
    node.sh("ip link set eth0 down")?;
    let sent = scene.traffic[0].udp_sent();
    eventually(SOON, || scene.traffic[0].udp_sent() >= sent + 200);
    node.sh("ip link set eth0 up")?;
    node.sh("ip addr replace fd00:122::12/64 dev eth0 nodad")?;
    node.sh("ip route replace default via 192.168.122.1")?;
    node.sh("ip route replace default via fd00:122::1")?;
    let took = scene.until_like(2, &before, "eth0 down and up")?;
    println!("eth0 down and up: repaired after {} ms", took.as_millis());
    scene.goes_on("eth0 down and up")?;
    scene.judge()
}

/// With each pod that starts or ends a device comes or goes, and a look at the whole node would keep
/// the pod's own mapping waiting.
#[test]
fn devices_that_come_and_go_are_not_looked_at_until_they_are_used() -> Result<()> {
    let mut cluster = Cluster::new(Lab::builder().pods_per_node(1).build()?, PORT)?;
    let Cluster { lab, mappings, .. } = &mut cluster;
    mappings.set_vip(vip(Family::V4, 222), 64)?;
    mappings.map(lab.pod(2, 1).ip(Family::V4), vip(Family::V4, 222))?;
    cluster.arguments.extend(LOOK_EACH);
    cluster.start_agents()?;
    let (node, agent) = (cluster.lab.node(2).clone(), &*cluster.agent(2)?);
    let looks = || agent.metric("egress_agent_sync_part_duration_seconds_count{part=\"observe\"}");
    let has_vip = || agent.metric("egress_agent_vips_here").map(|count| count > 0.0);

    // What came of the start itself is over when one more address has been heard of.
    let start = looks()?;
    node.sh("ip addr add 198.51.100.1/24 dev lo")?;
    eventually(SOON, || looks().is_ok_and(|now| now > start));
    let before = looks()?;
    for number in 0..PODS {
        node.sh(&format!("ip link add pod{number} type veth peer name peer{number}"))?;
        node.sh(&format!("ip link set pod{number} up"))?;
        node.sh(&format!("ip link del pod{number}"))?;
    }
    node.sh("ip link add late type bridge")?;
    node.sh("ip link set late up")?;
    // Told after all of these: once it is here, they have been heard.
    node.sh("ip addr add 192.168.122.222/32 dev late")?;
    eventually(SOON, || has_vip().is_ok_and(|has| has));
    let looked = looks()? - before;
    assert!((1.0..=LOOKS_FOR_AN_ADDRESS).contains(&looked), "{looked} looks");

    let before = looks()?;
    node.sh("ip link set late down")?;
    eventually(SOON, || looks().is_ok_and(|now| now > before));
    node.sh("ip link del late")?;
    eventually(SOON, || has_vip().is_ok_and(|has| !has));
    Ok(())
}

/// `nft flush ruleset` takes both tables, and with them everybody's: nothing of ours is left to stop
/// a packet until the agent has heard of it. How long, and how many packets, is measured.
#[test]
fn a_flush_of_everything_is_over_soon() -> Result<()> {
    for what in [
        "nft flush ruleset",
        "nft delete table inet egress; nft delete table inet egress-guard",
        "nft delete table inet egress-guard; nft delete table inet egress",
    ] {
        for node in [1, 2] {
            let scene = Scene::new()?;
            let ours = |scene: &Scene| -> Result<String> {
                let node = scene.node(node);
                let main = node.sh("nft -s list table inet egress")?;
                Ok(main + &node.sh("nft -s list table inet egress-guard")?)
            };
            let before = ours(&scene)?;
            scene.capture.clear();
            let gone = Instant::now();
            scene.node(node).run(&["sh", "-c", what])?;
            eventually(SOON, || ours(&scene).is_ok_and(|now| now == before));
            let back = gone.elapsed();
            for family in Family::ALL {
                let outside = scene.cluster.lab.outside().ip(family);
                let leaks: Vec<_> = scene
                    .capture
                    .flows()?
                    .into_iter()
                    .filter(|(flow, _)| {
                        flow.destination == outside && flow.source != vip(family, 222)
                    })
                    .filter(|(flow, _)| ![133, 134, 135, 136, 137].contains(&flow.source_port))
                    .collect();
                let packets: u64 = leaks.iter().map(|(_, seen)| seen.packets).sum();
                let last = leaks.iter().map(|(_, seen)| seen.last).max();
                let during = last.map_or(Duration::ZERO, |last| last - gone);
                println!(
                    "node {node}, `{what}`: both tables back after {} ms; {family:?}: {packets} \
                     packets slipped in {} ms",
                    back.as_millis(),
                    during.as_millis()
                );
            }
            // From now on nothing: neither old connections nor those that began meanwhile.
            let forgotten = wait_until(FORGOTTEN_WITHIN, || {
                scene.capture.clear();
                let sent = scene.traffic[0].udp_sent();
                eventually(SOON, || scene.traffic[0].udp_sent() >= sent + 50);
                Family::ALL.iter().all(|family| {
                    let outside = scene.cluster.lab.outside().ip(*family);
                    let sources = scene.capture.sources_towards(outside);
                    sources.is_ok_and(|seen| seen.keys().all(|ip| *ip == vip(*family, 222)))
                })
            });
            assert!(forgotten, "{}", scene.capture.text());
            scene.capture.clear();
            let sent = scene.traffic[0].udp_sent();
            eventually(SOON, || scene.traffic[0].udp_sent() >= sent + 300);
            for family in Family::ALL {
                let outside = scene.cluster.lab.outside().ip(family);
                scene.capture.assert_only_source(vip(family, 222), outside, 200);
            }
        }
    }
    Ok(())
}
