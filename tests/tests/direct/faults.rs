//! Strangers, crashes and a flapping uplink, while pods of all nodes are talking.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Agent, Capture, Cluster, Family, NewFlows, Traffic, eventually, vip, wait_until};

use crate::scene::{SOON, direct, no_port_of_others, server};

const RATE: u32 = 250;

/// Traffic that never stops, of the first pods of all nodes, in both families.
struct Scene {
    traffic: Vec<Traffic>,
    flows: Vec<NewFlows>,
    capture: Capture,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Result<Self> {
        let cluster = direct()?;
        let lab = &cluster.lab;
        let capture = Capture::start(lab)?;
        let pods = [lab.pod(1, 1), lab.pod(2, 1), lab.pod(3, 1)];
        let (mut traffic, mut flows) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            traffic.push(Traffic::start(&pods, server(lab.outside(), family), RATE)?);
            for pod in pods {
                flows.push(NewFlows::start(pod, server(lab.outside(), family), 50)?);
            }
        }
        Ok(Self { traffic, flows, capture, cluster })
    }

    /// Does it to a node: its kernel is soon what it was before, all traffic goes on, and nothing was
    /// seen but VIPs, with ports of whoever has sent it.
    fn is_repaired(&self, node: usize, what: &str) -> Result<()> {
        let before = self.cluster.kernel(node, false)?;
        self.cluster.lab.node(node).run(&["sh", "-c", what])?;
        let mut now = before.clone();
        let repaired = wait_until(SOON, || {
            self.cluster.kernel(node, false).is_ok_and(|kernel| {
                now = kernel;
                now == before
            })
        });
        ensure!(repaired, "node {node}, `{what}`: before\n{before:#?}\nnow\n{now:#?}");
        self.goes_on().with_context(|| format!("node {node}, `{what}`"))
    }

    fn goes_on(&self) -> Result<()> {
        for traffic in &self.traffic {
            traffic.flows_within(Duration::from_secs(10))?;
        }
        for family in Family::ALL {
            let (vip, outside) = (vip(family, 222), self.cluster.lab.outside().ip(family));
            let sources = self.capture.sources_towards(outside)?;
            let only = sources.keys().all(|source| *source == vip);
            ensure!(only, "LEAK: {sources:?}");
            no_port_of_others(&self.cluster.lab, &self.capture, vip)?;
        }
        Ok(())
    }

    /// No session has broken.
    fn judge(self) -> Result<()> {
        self.goes_on()?;
        drop(self.flows);
        for traffic in self.traffic {
            traffic.stop()?;
        }
        Ok(())
    }
}

#[test]
fn what_strangers_do_to_the_tables_is_put_right_and_nothing_leaks() -> Result<()> {
    let scene = Scene::new()?;
    for node in [1, 2] {
        for what in [
            "nft delete table netdev egress",
            "nft flush table netdev egress",
            "nft flush chain netdev egress others_64",
            "nft flush chain netdev egress vip_65",
            "nft insert rule netdev egress uplink1 accept",
            "nft insert rule netdev egress others_65 drop",
            "nft add chain netdev egress strange",
            "nft 'add table netdev egress { flags dormant; }'",
            "nft delete table inet egress",
            "nft flush table inet egress",
            "nft flush chain inet egress egress4",
            "nft flush chain inet egress translate6",
            "nft delete table inet egress-guard",
            "nft flush chain inet egress-guard direct",
            "nft insert rule inet egress-guard direct_64 accept",
        ] {
            scene.is_repaired(node, what)?;
        }
    }
    scene.judge()
}

#[test]
fn an_uplink_may_go_down_and_come_back() -> Result<()> {
    let scene = Scene::new()?;
    for node in [2, 3] {
        let before = scene.cluster.kernel(node, false)?;
        let host = scene.cluster.lab.node(node);
        host.sh("ip link set eth0 down")?;
        let sent = scene.traffic[0].udp_sent();
        eventually(SOON, || scene.traffic[0].udp_sent() >= sent + 200);
        host.sh("ip link set eth0 up")?;
        // What is not ours goes with the link, too.
        host.sh(&format!("ip addr replace {}/64 dev eth0 nodad", host.v6))?;
        host.sh("ip route replace default via 192.168.122.1")?;
        host.sh("ip route replace default via fd00:122::1")?;
        let same = wait_until(SOON, || {
            scene.cluster.kernel(node, false).is_ok_and(|kernel| kernel.nft == before.nft)
        });
        ensure!(same, "node {node}: {:#?}\n{:#?}", before, scene.cluster.kernel(node, false)?);
        scene.goes_on()?;
    }
    scene.judge()
}

#[test]
fn nothing_is_lost_while_agents_stop_die_and_start_again() -> Result<()> {
    let mut scene = Scene::new()?;
    for how in [Signal::SIGTERM, Signal::SIGKILL] {
        for node in [1, 2] {
            let before = scene.cluster.kernel(node, true)?;
            let agent = scene.cluster.agent(node)?;
            agent.kill(how)?;
            agent.wait()?;
            scene.goes_on()?;
            assert_eq!(scene.cluster.kernel(node, true)?, before, "{how}: the rules stay");
            scene.cluster.start_agent(node)?;
            scene.goes_on()?;
            assert_eq!(scene.cluster.kernel(node, true)?, before, "nothing is rewritten");
        }
    }
    scene.goes_on()?;
    drop(scene.flows);
    for traffic in scene.traffic {
        for report in traffic.stop()? {
            assert_eq!((report.udp.lost, report.udp.refused), (0, 0), "{report}");
        }
    }
    Ok(())
}

#[test]
fn everything_is_shown_and_all_of_it_goes() -> Result<()> {
    let mut cluster = direct()?;
    let dump = Agent::run(cluster.lab.node(2), &["--dump-rules"])?;
    for said in ["table netdev egress: ", "blocks 2,7", "new connections: blocks 2,7"] {
        assert!(dump.contains(said), "{said:?} is not in\n{dump}");
    }
    let json = Agent::run(cluster.lab.node(2), &["--dump-rules", "--output", "json"])?;
    assert!(json.contains("\"own_blocks\": \"2,7\""), "{json}");
    for node in 1..=3 {
        cluster.agent(node)?.stop()?;
        Agent::run(cluster.lab.node(node), &["--cleanup"])?;
        let nft = cluster.kernel(node, false)?.nft;
        assert!(!nft.contains("egress"), "{nft}");
    }
    Ok(())
}
