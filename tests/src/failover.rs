//! Gateway nodes with agents, launchers and real keepalived; what may befall them, and what becomes of traffic
//! meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shared::VipPath;

use crate::capture::{Capture, Flow};
use crate::cluster::{Cluster, vip};
use crate::host::Host;
use crate::lab::{Family, Lab};
use crate::launcher::Launcher;
use crate::traffic::{PodReport, Traffic};
use crate::wait::wait_until;

const PORT: u16 = 7000;
const UDP: u8 = 17;
/// A VIP that has come to a node which heard nobody before counts as held after a minute only.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// What befalls the node that holds the VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its LAN cable is pulled.
    Unplugged,
    /// All its processes are gone at once, and its link.
    PoweredOff,
    /// keepalived is killed, parent and child.
    KeepalivedKilled,
    /// keepalived is frozen, and goes on some seconds later.
    KeepalivedFrozen,
    /// The agent is killed and stays away.
    AgentKilled,
    /// The agent is frozen.
    AgentFrozen,
    /// The launcher is killed; keepalived is not.
    LauncherKilled,
    /// The launcher is asked to stop.
    Stopped,
    /// The node is no candidate any more.
    Drained,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unplugged,
        Self::PoweredOff,
        Self::KeepalivedKilled,
        Self::KeepalivedFrozen,
        Self::AgentKilled,
        Self::AgentFrozen,
        Self::LauncherKilled,
        Self::Stopped,
        Self::Drained,
    ];

    /// Whether pods of that node are cut off with it.
    pub fn cuts_off(self) -> bool {
        matches!(self, Self::Unplugged | Self::PoweredOff)
    }

    /// Whether the VIPs are to move to another node.
    pub fn moves(self) -> bool {
        self != Self::LauncherKilled
    }
}

/// Three nodes with a mapped pod each, and a VIP of each family.
#[derive(Debug)]
pub struct Gateways {
    launchers: BTreeMap<usize, Launcher>,
    arguments: Vec<String>,
    path: VipPath,
    /// Nodes, agents and mappings.
    pub cluster: Cluster,
}

/// What became of traffic.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By pod.
    pub pods: Vec<PodReport>,
    /// TCP sessions that ended, and why.
    pub broken: Vec<String>,
    /// Packets with any source but the VIP.
    pub leaked: u64,
    /// UDP packets that pods sent and that the host outside did not get.
    pub unseen: u64,
}

/// Traffic of some pods that is being watched.
#[derive(Debug)]
pub struct Watch {
    vip: IpAddr,
    outside: IpAddr,
    traffic: Vec<Traffic>,
    capture: Capture,
}

impl Gateways {
    /// Agents and launchers run, with these arguments for the latter; node 1 holds both VIPs.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_on(VipPath::ViaHolder, arguments)
    }

    /// As [`Gateways::start`], with both VIPs on that path, and proven if it is the direct one.
    pub fn start_on(path: VipPath, arguments: &[&str]) -> Result<Self> {
        let mut gateways = Self::prepare(arguments)?;
        gateways.path = path;
        if path == VipPath::Direct {
            gateways.give_blocks()?;
        }
        gateways.cluster.start_agents()?;
        for node in 1..=3 {
            gateways.launch(node)?;
        }
        gateways.await_holder(1)?;
        gateways.await_settled()?;
        if path == VipPath::Direct {
            gateways.await_proven()?;
        }
        Ok(gateways)
    }

    fn give_blocks(&mut self) -> Result<()> {
        let Cluster { lab, mappings, .. } = &mut self.cluster;
        for vip in Self::vips() {
            for (number, blocks) in [(1, "1,2"), (2, "3,4"), (3, "5,6")] {
                mappings.set_blocks(vip, lab.node(number), blocks)?;
            }
        }
        Ok(())
    }

    /// Waits until every node that can take the direct path does.
    pub fn await_proven(&mut self) -> Result<()> {
        for node in 1..=3 {
            for vip in Self::vips() {
                let agent = self.cluster.agent(node)?;
                let metric = format!("egress_agent_direct_proven{{vip=\"{vip}\"}}");
                let proven = || agent.metric(&metric).is_ok_and(|proven| proven > 0.5);
                let reached = wait_until(SETTLED_WITHIN, proven);
                ensure!(reached, "node {node} does not prove {vip}:\n{}", agent.log());
            }
        }
        Ok(())
    }

    /// The path that the VIPs are on.
    pub const fn path(&self) -> VipPath {
        self.path
    }

    /// As [`Gateways::start`], but nothing runs.
    pub fn prepare(arguments: &[&str]) -> Result<Self> {
        let mut cluster = Cluster::new(Lab::builder().pods_per_node(1).build()?, PORT)?;
        let Cluster { lab, mappings, .. } = &mut cluster;
        for (family, route_id) in [(Family::V4, 64), (Family::V6, 65)] {
            for node in 1..=3 {
                mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
            }
            mappings.set_vip(vip(family, 222), route_id)?;
        }
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let path = VipPath::ViaHolder;
        let mut gateways = Self { launchers: BTreeMap::new(), arguments, path, cluster };
        gateways.prefer(&[1, 2, 3])?;
        gateways.name(&[1, 2, 3])?;
        Ok(gateways)
    }

    /// Says that these nodes may hold VIPs: adverts go to them, if not to a group.
    pub fn name(&mut self, nodes: &[usize]) -> Result<()> {
        let Cluster { lab, mappings, .. } = &mut self.cluster;
        let addresses = nodes.iter().flat_map(|node| Family::ALL.map(|of| lab.node(*node).ip(of)));
        let list: Vec<String> = addresses.map(|address| address.to_string()).collect();
        mappings.set("egress-networks", "gateway-addresses", &list.join(","))
    }

    /// The VIPs.
    pub fn vips() -> [IpAddr; 2] {
        Family::ALL.map(|family| vip(family, 222))
    }

    /// Makes these nodes the candidates of both VIPs, best first.
    pub fn prefer(&mut self, nodes: &[usize]) -> Result<()> {
        let names: Vec<String> = nodes.iter().map(|node| format!("n{node}")).collect();
        for vip in Self::vips() {
            let key = vip.to_string().replace(':', "-");
            self.cluster.mappings.set("vip-candidates", &key, &names.join(","))?;
        }
        Ok(())
    }

    /// Starts the launcher of a node.
    pub fn launch(&mut self, node: usize) -> Result<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let host = self.cluster.lab.node(node);
        let launcher = Launcher::start(host, &self.cluster.mappings, &arguments)?;
        self.launchers.insert(node, launcher);
        Ok(())
    }

    /// The launcher of a node.
    pub fn launcher(&mut self, node: usize) -> Result<&mut Launcher> {
        self.launchers.get_mut(&node).context("no launcher was started there")
    }

    /// The nodes that hold the VIPs, once each is on one.
    pub fn holders(&self) -> Result<[usize; 2]> {
        let on = || Self::vips().map(|vip| self.cluster.lab.holders(vip));
        let mut holders = on();
        let found = wait_until(SETTLED_WITHIN, || {
            holders = on();
            holders.iter().all(|nodes| nodes.len() == 1)
        });
        ensure!(found, "the VIPs are on {holders:?}");
        let [first, second] = holders.map(|nodes| nodes.first().copied());
        Ok([first.context("no holder")?, second.context("no holder")?])
    }

    /// The node that holds both VIPs. Each goes its own way when a node is lost: they are brought together here.
    pub fn holder(&mut self) -> Result<usize> {
        let [first, second] = self.holders()?;
        if first != second {
            self.prefer(&[first])?;
            self.await_holder(first)?;
            self.prefer(&[1, 2, 3])?;
        }
        Ok(first)
    }

    /// Waits until that node alone holds both VIPs.
    pub fn await_holder(&self, node: usize) -> Result<()> {
        let on = || Self::vips().map(|vip| self.cluster.lab.holders(vip));
        let found = wait_until(SETTLED_WITHIN, || on() == [[node], [node]]);
        ensure!(found, "the VIPs are on {:?}, not on {node}", on());
        Ok(())
    }

    /// Waits until every launcher finds its agent ready, and until holding counts at the holder: what comes back
    /// takes nothing from it.
    pub fn await_settled(&self) -> Result<()> {
        for (node, launcher) in &self.launchers {
            let ready = || launcher.metric("agent_ready").is_ok_and(|ready| ready > 0.5);
            ensure!(
                wait_until(SETTLED_WITHIN, ready),
                "no agent of node {node}:\n{}",
                launcher.log()
            );
        }
        let best = || self.launchers.values().any(Launcher::holds_for_good);
        ensure!(wait_until(SETTLED_WITHIN, best), "no launcher holds for good");
        Ok(())
    }

    /// Waits until the host outside knows these nodes as the places of the VIPs.
    pub fn await_neighbours(&self, nodes: [usize; 2]) -> Result<()> {
        let lab = &self.cluster.lab;
        let known = |(vip, node): (&IpAddr, &usize)| {
            let mac = Lab::lan_mac(lab.node(*node)).map(|byte| format!("{byte:02x}")).join(":");
            let text = lab.outside().sh(&format!("ip neigh show {vip}"));
            text.is_ok_and(|text| text.contains(&mac))
        };
        let all = wait_until(SETTLED_WITHIN, || Self::vips().iter().zip(&nodes).all(known));
        ensure!(all, "neighbours: {}", lab.outside().sh("ip neigh")?);
        Ok(())
    }

    /// Lets it happen to a node.
    pub fn strike(&mut self, fault: Fault, node: usize) -> Result<()> {
        match fault {
            Fault::Unplugged => self.cluster.lab.unplug(node),
            Fault::PoweredOff => {
                self.cluster.lab.unplug(node)?;
                self.cluster.agent(node)?.kill(Signal::SIGKILL)?;
                self.launcher(node)?.kill_all()
            }
            Fault::KeepalivedKilled => self.launcher(node)?.signal_keepalived(Signal::SIGKILL),
            Fault::KeepalivedFrozen => self.launcher(node)?.signal_keepalived(Signal::SIGSTOP),
            Fault::AgentKilled => self.cluster.agent(node)?.kill(Signal::SIGKILL),
            Fault::AgentFrozen => self.cluster.agent(node)?.kill(Signal::SIGSTOP),
            Fault::LauncherKilled => self.launcher(node)?.kill_alone(),
            Fault::Stopped => self.launcher(node)?.stop(),
            Fault::Drained => {
                let others: Vec<usize> = (1..=3).filter(|other| *other != node).collect();
                self.prefer(&others)
            }
        }
    }

    /// Undoes it.
    pub fn mend(&mut self, fault: Fault, node: usize) -> Result<()> {
        match fault {
            Fault::Unplugged => self.cluster.lab.plug_in(node),
            Fault::PoweredOff => {
                self.cluster.lab.plug_in(node)?;
                self.cluster.start_agent(node)?;
                self.launcher(node)?.start_again()
            }
            Fault::KeepalivedKilled => Ok(()),
            Fault::KeepalivedFrozen => {
                // It may have been ended by its launcher, and the next one not be there yet.
                drop(self.launcher(node)?.signal_keepalived(Signal::SIGCONT));
                Ok(())
            }
            Fault::AgentKilled => self.cluster.start_agent(node),
            Fault::AgentFrozen => self.cluster.agent(node)?.kill(Signal::SIGCONT),
            Fault::LauncherKilled | Fault::Stopped => self.launcher(node)?.start_again(),
            Fault::Drained => self.prefer(&[1, 2, 3]),
        }
    }

    /// Starts traffic of the pods of these nodes to the host outside, in one family; with downloads on
    /// the direct path, on the other one they may stall.
    pub fn watch(&self, family: Family, nodes: &[usize], per_second: u32) -> Result<Watch> {
        let lab = &self.cluster.lab;
        let outside = lab.outside().ip(family);
        let start = |node: &usize| {
            let pod: &Host = lab.pod(*node, 1);
            let server = SocketAddr::new(outside, PORT);
            match self.path {
                VipPath::ViaHolder => Traffic::start(&[pod], server, per_second),
                VipPath::Direct => Traffic::start_with_downloads(&[pod], server, per_second),
            }
        };
        Ok(Watch {
            vip: vip(family, 222),
            outside,
            capture: Capture::start(lab)?,
            traffic: nodes.iter().map(start).collect::<Result<_>>()?,
        })
    }
}

impl Watch {
    /// Waits until all of it has made progress from now on; how long that took.
    pub fn goes_on(&self, within: Duration) -> Result<Duration> {
        let start = Instant::now();
        for traffic in &self.traffic {
            traffic.flows_within(within.saturating_sub(start.elapsed()))?;
        }
        Ok(start.elapsed())
    }

    /// Stops it and tells what became of it.
    pub fn finish(self) -> Result<Outcome> {
        let (mut pods, mut broken) = (Vec::new(), Vec::new());
        for traffic in self.traffic {
            match traffic.stop() {
                Ok(reports) => pods.extend(reports),
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
        let sources = self.capture.sources_towards(self.outside)?;
        ensure!(sources.contains_key(&self.vip), "the VIP was not seen: {sources:?}");
        let is_probe = |flow: &Flow| flow.destination == self.outside && flow.protocol == UDP;
        let seen: u64 = self.capture.sources_where(is_probe)?.values().sum();
        let sent: u64 = pods.iter().map(|pod| pod.udp.sent).sum();
        let leaked =
            sources.iter().filter(|(source, _)| **source != self.vip).map(|(_, n)| n).sum();
        Ok(Outcome { pods, broken, leaked, unseen: sent.saturating_sub(seen) })
    }
}

impl Outcome {
    /// The longest outage of any pod.
    pub fn outage(&self) -> Duration {
        self.pods.iter().map(|pod| pod.udp.longest_outage).max().unwrap_or_default()
    }

    /// The most packets that a pod has lost.
    pub fn lost(&self) -> u64 {
        self.pods.iter().map(|pod| pod.udp.lost).max().unwrap_or_default()
    }

    /// Checks that no session broke and nothing leaked.
    pub fn is_clean(&self) -> Result<()> {
        ensure!(self.broken.is_empty(), "sessions broke: {:?}", self.broken);
        ensure!(self.leaked == 0, "{} packets leaked", self.leaked);
        Ok(())
    }
}
