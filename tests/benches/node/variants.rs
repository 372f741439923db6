//! What is measured side by side: each variant in a laboratory that stands the whole time, so that
//! they can take turns.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use tests::{Agent, Host, Lab, Load, LoadServer, MappingsDir, Masquerade, wait_until};

use crate::mapped::{self, VIP};
use crate::plain::{self, BackEnd};

const REACHED_WITHIN: Duration = Duration::from_secs(20);
/// Where the server can be reached, too: so many addresses that one block of a VIP has ports for all
/// connections of a run.
const DESTINATIONS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 26);
/// With many VIPs, so many besides the one that is measured.
pub(crate) const OTHER_VIPS: u8 = 199;

/// Which pod sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pod {
    /// A mapped one, on another node than the VIP.
    Mapped,
    /// A mapped one on the VIP's node.
    OnHolder,
    /// One that is not mapped.
    Unmapped,
}

/// What decides where a pod's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The cluster's own rules: one hop, the node's address.
    Masquerade,
    /// The same on nodes with one policy rule, which no packet matches: any program that routes by
    /// policy has the kernel take this longer way.
    PolicyRule,
    /// One rule for all pods on each of two nodes.
    TwoHops,
    /// The agent's rules.
    Ours { pods: u32, other_vips: u8, pod: Pod },
    /// The agent's rules, on the direct path, with so many blocks for each node.
    Direct { blocks: u8, pods: u32, pod: Pod },
    /// The rules of kube-egress.
    KubeEgress { back_end: BackEnd, pods: u32, pod: Pod },
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = match self {
            Self::Masquerade => return f.write_str("masquerade, one hop"),
            Self::PolicyRule => return f.write_str("masquerade, one policy rule"),
            Self::TwoHops => return f.write_str("two plain hops"),
            Self::Ours { pods, other_vips, pod } => {
                write!(f, "ours, {pods} mapped")?;
                if *other_vips > 0 {
                    write!(f, ", {} VIPs", u16::from(*other_vips) + 1)?;
                }
                pod
            }
            Self::Direct { blocks, pods, pod } => {
                let plural = if *blocks == 1 { "" } else { "s" };
                write!(f, "direct, {blocks} block{plural}, {pods} mapped")?;
                pod
            }
            Self::KubeEgress { back_end, pods, pod } => {
                write!(f, "kube-egress, {pods} mapped")?;
                if *back_end == BackEnd::Legacy {
                    f.write_str(", legacy")?;
                }
                pod
            }
        };
        f.write_str(match pod {
            Pod::Mapped => "",
            Pod::OnHolder => ", pod on the holder",
            Pod::Unmapped => ", pod not mapped",
        })
    }
}

/// A laboratory with one rule set, and the variants that are measured in it.
pub(crate) struct Stage {
    lab: Lab,
    server: LoadServer,
    pub(crate) variants: Vec<Variant>,
}

impl Stage {
    /// Where the load of a variant comes from and goes to.
    pub(crate) fn load(&self, variant: Variant) -> Load<'_> {
        let (client, source) = match variant {
            Variant::Masquerade | Variant::PolicyRule => (self.lab.pod(1, 1), self.lab.node(1).v4),
            Variant::TwoHops => (self.lab.pod(1, 1), VIP),
            Variant::Ours { pod, .. }
            | Variant::Direct { pod, .. }
            | Variant::KubeEgress { pod, .. } => match pod {
                Pod::Mapped => (self.lab.pod(1, 1), VIP),
                Pod::OnHolder => (self.lab.pod(2, 1), VIP),
                Pod::Unmapped => (self.lab.pod(1, 2), self.lab.node(1).v4),
            },
        };
        Load { client, server: &self.server, source: IpAddr::from(source) }
    }

    /// A node, counted from 1.
    pub(crate) fn node(&self, number: usize) -> &Host {
        self.lab.node(number)
    }

    /// The host on the LAN.
    pub(crate) fn outside(&self) -> &Host {
        self.lab.outside()
    }

    fn build(masquerade: Masquerade, variants: Vec<Variant>) -> Result<Self> {
        let lab = Lab::builder().nodes(2).masquerade(masquerade).build()?;
        for pod in lab.pods() {
            pod.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        let mut server = LoadServer::start(lab.outside())?;
        server.also_at(DESTINATIONS)?;
        let (to, via) = (DESTINATIONS.to_string(), lab.outside().v4.to_string());
        for node in lab.nodes() {
            node.run(&["ip", "route", "add", &to, "via", &via])?;
        }
        Ok(Self { lab, server, variants })
    }

    /// The mapped ones of these pods.
    fn mapped(&self, senders: &[Pod]) -> Vec<Ipv4Addr> {
        let lab = &self.lab;
        let host = |pod: &Pod| match pod {
            Pod::Mapped => Some(lab.pod(1, 1)),
            Pod::OnHolder => Some(lab.pod(2, 1)),
            Pod::Unmapped => None,
        };
        senders.iter().filter_map(host).map(|host| host.v4).collect()
    }

    /// The rules are the work of agents, which have ended by the time of the measurement (rules
    /// stay): what they need while they run is measured by itself.
    fn ruled_by_agents(self, mappings: &MappingsDir, arguments: &[&str]) -> Result<Self> {
        let start = |node: &Host| Agent::start_logging("info", node, mappings.path(), arguments);
        let mut agents: Vec<Agent> = self.lab.nodes().iter().map(start).collect::<Result<_>>()?;
        agents.iter_mut().try_for_each(Agent::wait_ready)?;
        self.lab.hold_vip(2, VIP.into())?;
        self.check()?;
        agents.iter_mut().try_for_each(|agent| agent.stop())?;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        for variant in &self.variants {
            let load = self.load(*variant);
            let mut outcome = Ok(0.0);
            let reached = wait_until(REACHED_WITHIN, || {
                outcome = load.udp_round_trips(Duration::from_millis(1));
                outcome.is_ok()
            });
            outcome.with_context(|| format!("{variant} does not work"))?;
            ensure!(reached, "{variant} does not work");
        }
        Ok(())
    }
}

/// Builds all of them. Says on the way which.
pub(crate) fn build_all(quick: bool) -> Result<Vec<Stage>> {
    let (ours, many, kube_egress): (&[u32], _, &[u32]) = if quick {
        (&[1, 1000], 10_000, &[1, 1000])
    } else {
        (&[1, 1000, 10_000], 100_000, &[1, 100, 1000, 5000])
    };
    let most = kube_egress.last().copied().unwrap_or(1);

    let mut stages = vec![
        Stage::build(Masquerade::IptablesNft, vec![Variant::Masquerade])?,
        Stage::build(Masquerade::IptablesNft, vec![Variant::PolicyRule])?,
        Stage::build(Masquerade::IptablesNft, vec![Variant::TwoHops])?,
    ];
    plain::policy_rule(&stages[1].lab)?;
    plain::two_hops(&stages[2].lab)?;
    for &pods in ours {
        stages.push(with_agents(pods, 0, &[Pod::Mapped])?);
    }
    stages.push(with_agents(many, 0, &[Pod::Mapped, Pod::OnHolder, Pod::Unmapped])?);
    stages.push(with_agents(many, OTHER_VIPS, &[Pod::Mapped, Pod::Unmapped])?);
    stages.push(direct(1, 1, &[Pod::Mapped])?);
    stages.push(direct(8, many, &[Pod::Mapped, Pod::OnHolder])?);
    for &pods in kube_egress {
        let senders: &[_] =
            if pods == most { &[Pod::Mapped, Pod::Unmapped] } else { &[Pod::Mapped] };
        stages.push(with_kube_egress(BackEnd::Nft, pods, senders)?);
    }
    for pods in [1, most] {
        stages.push(with_kube_egress(BackEnd::Legacy, pods, &[Pod::Mapped])?);
    }
    stages.iter().try_for_each(Stage::check)?;
    Ok(stages)
}

fn with_kube_egress(back_end: BackEnd, pods: u32, senders: &[Pod]) -> Result<Stage> {
    let masquerade = match back_end {
        BackEnd::Nft => Masquerade::IptablesNft,
        BackEnd::Legacy => Masquerade::IptablesLegacy,
    };
    let variants = senders.iter().map(|&pod| Variant::KubeEgress { back_end, pods, pod });
    let stage = Stage::build(masquerade, variants.collect())?;
    plain::kube_egress(&stage.lab, back_end, pods, &[stage.lab.pod(1, 1).v4])?;
    Ok(stage)
}

/// All VIPs by the node that holds them.
pub(crate) fn with_agents(pods: u32, other_vips: u8, senders: &[Pod]) -> Result<Stage> {
    let variants = senders.iter().map(|&pod| Variant::Ours { pods, other_vips, pod });
    let stage = Stage::build(Masquerade::IptablesNft, variants.collect())?;
    let mappings = mapped::mappings(&stage.lab, pods, other_vips, &stage.mapped(senders))?;
    stage.ruled_by_agents(&mappings, &[])
}

/// One VIP on the direct path, with so many blocks for each node.
pub(crate) fn direct(blocks: u8, pods: u32, senders: &[Pod]) -> Result<Stage> {
    let variants = senders.iter().map(|&pod| Variant::Direct { blocks, pods, pod });
    let stage = Stage::build(Masquerade::IptablesNft, variants.collect())?;
    let lab = &stage.lab;
    let mut mappings = mapped::mappings(lab, pods, 0, &stage.mapped(senders))?;
    for (node, first) in [(1, 1), (2, 1 + blocks)] {
        let numbers: Vec<_> = (first..first + blocks).map(|block| block.to_string()).collect();
        let value = format!("{} via {}", numbers.join(","), lab.node(node).v4);
        mappings.set(&format!("vip-blocks-{VIP}"), &format!("n{node}"), &value)?;
    }
    stage.ruled_by_agents(&mappings, &["--assume-direct"])
}
