//! A laboratory with agents: one directory of mappings that every node's agent reads.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::host::Host;
use crate::lab::{Family, Lab};
use crate::mappings_dir::MappingsDir;
use crate::tcp::TcpServer;
use crate::udp::{UdpProbe, UdpServer};
use crate::wait::wait_until;

/// How soon what was written to the mappings has to be in the kernel, on a crowded machine.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A laboratory whose nodes may run agents.
#[derive(Debug)]
pub struct Cluster {
    agents: BTreeMap<usize, Agent>,
    /// What answers on `outside` and `far`, in this order.
    pub servers: Vec<(UdpServer, TcpServer)>,
    /// What the agents read.
    pub mappings: MappingsDir,
    /// What further arguments agents are started with.
    pub arguments: Vec<&'static str>,
    /// Agents find the uplink of each VIP by themselves, instead of being told `eth0`.
    pub find_uplinks: bool,
    /// The machines.
    pub lab: Lab,
}

/// What a node's kernel holds, as text, without what traffic changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelText {
    /// All nft tables, in the order of their names, as are chains and sets in each; with handles
    /// when they were asked for.
    pub nft: String,
    /// Policy rules of both families.
    pub rules: String,
    /// Routes of both families in all tables but the kernel's own.
    pub routes: String,
}

impl Cluster {
    /// No agent runs yet, nothing is mapped; `outside` and `far` answer on `port`, UDP and TCP.
    pub fn new(lab: Lab, port: u16) -> Result<Self> {
        let servers = [lab.outside(), lab.far()]
            .into_iter()
            .map(|host| Ok((UdpServer::start(host, port)?, TcpServer::start(host, port)?)))
            .collect::<Result<_>>()?;
        let (agents, arguments) = (BTreeMap::new(), Vec::new());
        let mappings = MappingsDir::of(&lab)?;
        Ok(Self { agents, servers, mappings, arguments, find_uplinks: false, lab })
    }

    /// Starts the agent of a node and waits until it is ready.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        let agent = self.launch(node)?;
        self.agents.entry(node).insert_entry(agent).get_mut().wait_ready()
    }

    /// Starts the agents of all nodes at once and waits until they are ready.
    pub fn start_agents(&mut self) -> Result<()> {
        for node in 1..=self.lab.nodes().len() {
            let agent = self.launch(node)?;
            self.agents.insert(node, agent);
        }
        self.agents.values_mut().try_for_each(Agent::wait_ready)
    }

    fn launch(&self, node: usize) -> Result<Agent> {
        let start = if self.find_uplinks { Agent::start_finding_uplinks } else { Agent::start };
        start(self.lab.node(node), self.mappings.path(), &self.arguments)
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When none was started there.
    pub fn agent(&mut self, node: usize) -> Result<&mut Agent> {
        self.agents.get_mut(&node).with_context(|| format!("no agent was started on node {node}"))
    }

    /// Waits until each node with an agent maps the pod to that VIP; `None`: not at all.
    pub fn await_mapping(&self, pod: IpAddr, vip: Option<IpAddr>) -> Result<()> {
        let map = match Family::of(pod) {
            Family::V4 => "pod_vip4",
            Family::V6 => "pod_vip6",
        };
        for node in self.agents.keys() {
            let element = format!("{{ {pod} }}");
            let get = ["nft", "get", "element", "inet", "egress", map, &element];
            let holds = || match (self.lab.node(*node).run(&get), vip) {
                (Ok(text), Some(vip)) => text.contains(&format!("{pod} : {vip}")),
                (answer, None) => answer.is_err(),
                (Err(_), Some(_)) => false,
            };
            ensure!(
                wait_until(SETTLED_WITHIN, holds),
                "node {node} does not map {pod} to {vip:?} within {SETTLED_WITHIN:?}"
            );
        }
        Ok(())
    }

    /// What a node's kernel holds now.
    pub fn kernel(&self, node: usize, handles: bool) -> Result<KernelText> {
        kernel_text(self.lab.node(node), handles)
    }
}

/// What a node's kernel holds now.
pub fn kernel_text(node: &Host, handles: bool) -> Result<KernelText> {
    let sorted = |texts: [String; 2]| {
        // The order among routes of other tables means nothing.
        let mut lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    Ok(KernelText {
        nft: by_name(&without_passing(&node.sh(if handles {
            "nft -a -s list ruleset"
        } else {
            "nft -s list ruleset"
        })?)),
        rules: sorted([node.sh("ip -N rule")?, node.sh("ip -N -6 rule")?]),
        routes: sorted([
            node.sh("ip -N -4 route show table all")?,
            node.sh("ip -N -6 route show table all")?,
        ])
        .lines()
        // Of the kernel's own making: they follow addresses.
        .filter(|line| !line.contains("table 255") && !line.contains("expires"))
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n"),
    })
}

/// Without the elements that go by themselves: pods that were unmapped a moment ago, and whom
/// connections of a moment ago were for.
fn without_passing(ruleset: &str) -> String {
    let mut passing = false;
    let mut kept = String::new();
    let begins =
        |line: &str| ["\tset leaving", "\tset bursts"].iter().any(|set| line.contains(set));
    for line in ruleset.split_inclusive('\n') {
        passing = (passing || begins(line)) && !line.starts_with("\t}");
        let of_elements =
            ["elements = {", " expires ", " limit rate "].iter().any(|word| line.contains(word));
        if !(passing && of_elements) {
            kept.push_str(line);
        }
    }
    kept
}

/// What was made anew is listed last: the order of tables, and of chains in a table, means nothing.
fn by_name(ruleset: &str) -> String {
    let mut tables: Vec<String> = ruleset
        .split("\n}\n")
        .map(|table| {
            let (name, content) = table.split_once('\n').unwrap_or((table, ""));
            let mut blocks: Vec<&str> =
                content.split("\n\t}").map(|block| block.trim_matches('\n')).collect();
            blocks.sort_unstable();
            format!("{name}\n{}", blocks.join("\n"))
        })
        .collect();
    tables.sort_unstable();
    tables.join("\n")
}

/// An address of the LAN that nobody has of his own: `192.168.122.222` and `fd00:122::de` of 222.
pub fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 168, 122, number]),
        Family::V6 => IpAddr::from([0xfd00, 0x122, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// Sends UDP until three packets are answered; says as whom the server saw them.
pub fn seen_as(client: &Host, server: SocketAddr) -> Result<Vec<IpAddr>> {
    let probe = UdpProbe::start(client, server, 500)?;
    let answered = wait_until(ANSWERED_WITHIN, || probe.received() >= 3);
    ensure!(answered, "{server} does not answer {} by UDP", client.name);
    Ok(probe.stop()?.sources.into_keys().collect())
}
