//! The kernel of this node: the only place that speaks netlink or runs `nft`.
//!
//! Nothing here decides what ought to be there. Much of it blocks, so all of it belongs on a
//! thread of its own, and to the network namespace that the thread was in when it was opened.

pub mod addresses;
pub mod conntrack;
pub mod elements;
mod forgetting;
mod kept;
pub mod links;
pub mod neighbour_queue;
mod neighbours;
mod nfnetlink;
pub mod nft;
pub mod notifications;
mod packets;
pub mod port_counting;
pub mod proving;
pub mod route_socket;
pub mod routing;
mod seen;
pub mod sysctl;
pub mod tables;
pub mod vrrp;

#[cfg(test)]
mod scratch_netns;

use std::collections::{BTreeMap, BTreeSet};

use self::addresses::RemoveError;
use self::conntrack::{Conntrack, ConntrackError};
use self::elements::{Elements, ElementsError};
use self::forgetting::{Forgetting, Which};
use self::kept::Kept;
use self::links::{FactsError, read_node_facts};
use self::neighbours::NeighbourError;
pub use self::nfnetlink::NfnetlinkError;
use self::nft::{Nft, NftError};
use self::notifications::{Interest, NotificationError, Notifications, OwnPorts};
use self::port_counting::PortCounter;
use self::route_socket::{RequestError, RouteSocket};
use self::routing::{Routing, RoutingError};
use self::sysctl::{ReversePath, SysctlError};
use self::tables::{Tables, TablesError};
use shared::{Block, PodIp, Vip};

use crate::kernel_state::SeenTable;
use crate::node_facts::NodeFacts;
use crate::plan::{Step, TablesChange};
use crate::pod_tables::PodTables;
use crate::report::Switches;
use crate::routing::{Family, MarkMask, ObservedRouting, Ownership};
use crate::ruleset::TableNames;

/// What could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot open a route socket")]
    RouteSocket(#[source] RequestError),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Neighbour(#[from] NeighbourError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Elements(#[from] ElementsError),
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error(transparent)]
    Address(#[from] RemoveError),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Notifications(#[from] NotificationError),
}

/// Everything of the kernel that the agent reads or changes.
pub struct Kernel {
    route_socket: RouteSocket,
    routing: Routing,
    nft: Nft,
    tables: Tables,
    elements: Elements,
    conntrack: Conntrack,
    forgetting: Forgetting,
    names: TableNames,
    ownership: Ownership,
    own_ports: OwnPorts,
    kept: Kept,
}

/// The tables as they were seen, and the kernel's count of transactions by then.
pub struct SeenTables {
    pub main: Option<SeenTable>,
    pub guard: Option<SeenTable>,
    pub ingress: Option<SeenTable>,
    pub generation: u32,
}

impl Kernel {
    /// Needs a tokio runtime, `CAP_NET_ADMIN`, and `nft_program` once tables change.
    pub fn open(
        ownership: Ownership,
        names: TableNames,
        nft_program: &str,
    ) -> Result<Self, KernelError> {
        let route_socket = RouteSocket::open().map_err(KernelError::RouteSocket)?;
        Ok(Self {
            routing: Routing::new(route_socket.clone(), ownership),
            route_socket,
            nft: Nft::new(nft_program, names.clone()),
            tables: Tables::open(names.clone())?,
            elements: Elements::open(names.clone())?,
            conntrack: Conntrack::open()?,
            forgetting: Forgetting::start(Conntrack::open()?, ownership.marks())
                .map_err(KernelError::Thread)?,
            names,
            ownership,
            own_ports: OwnPorts::default(),
            kept: Kept::default(),
        })
    }

    /// What our tables are called.
    pub const fn tables(&self) -> &TableNames {
        &self.names
    }

    /// Hears what others change from now on.
    pub fn subscribe(&self) -> Result<Notifications, KernelError> {
        let own_ports = self.own_ports.clone();
        own_ports.add_route(self.route_socket.port());
        own_ports.add_netfilter(self.elements.port_id());
        Ok(Notifications::subscribe(Interest {
            owned: self.ownership,
            tables: BTreeSet::from([self.names.main.clone(), self.names.guard.clone()]),
            own_ports,
        })?)
    }

    /// Counts ports in use on the direct path from now on, beside all else.
    pub fn count_ports(&self) -> Result<PortCounter, KernelError> {
        let counter = PortCounter::start(Conntrack::open()?, self.ownership.marks());
        counter.map_err(KernelError::Thread)
    }

    /// Devices, addresses and networks of the node.
    pub async fn node_facts(&self) -> Result<NodeFacts, KernelError> {
        Ok(read_node_facts(&self.route_socket).await?)
    }

    /// Policy rules and routes in our ranges.
    pub async fn observe_routing(&self) -> Result<ObservedRouting, KernelError> {
        Ok(self.routing.observe().await?)
    }

    /// The tables, but for their pods.
    pub fn look_at_tables(&mut self) -> Result<SeenTables, KernelError> {
        let state = self.tables.look()?;
        Ok(SeenTables {
            main: state.main.map(seen::table),
            guard: state.guard.map(seen::table),
            ingress: state.ingress.map(seen::table),
            generation: state.generation,
        })
    }

    /// The kernel's count of nftables transactions, by anybody.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(self.tables.generation()?)
    }

    /// The pods in both tables.
    pub fn dump_pods(&mut self) -> Result<PodTables, KernelError> {
        Ok(self.elements.dump()?)
    }

    /// Which of the interfaces drop packets whose source has its route elsewhere. Interfaces that
    /// are gone are not among them.
    pub fn strict<'a>(&self, interfaces: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        interfaces
            .filter(|name| matches!(sysctl::reverse_path(name), Ok(ReversePath::Strict)))
            .cloned()
            .collect()
    }

    /// What decides whether traffic can flow at all.
    pub fn switches(&self) -> Result<Switches, KernelError> {
        Ok(Switches {
            forwards_v4: sysctl::forwards(Family::V4)?,
            forwards_v6: sysctl::forwards(Family::V6)?,
            tcp_loose: sysctl::picks_up_tcp()?,
        })
    }

    /// Takes one step of a plan.
    pub async fn perform(&mut self, step: &Step, marks: MarkMask) -> Result<(), KernelError> {
        match step {
            Step::Loosen(interface) => drop(sysctl::loosen(interface)?),
            Step::AddRoute(route) => self.routing.add_route(route).await?,
            Step::AddRule(rule) => self.routing.add_rule(rule).await?,
            Step::ChangeTables(change) => self.change_tables(change).await?,
            Step::ChangeIngress(change) => {
                let before = self.tables.generation()?;
                self.nft.change_ingress(change).await?;
                self.changed_since(before)?;
            }
            Step::ChangePods(changes) => self.elements.apply(changes)?,
            Step::ForgetPods(pods) => self.forget(Which::Sessionless, pods),
            Step::ForgetHolder { vip, device } => {
                neighbours::forget(&self.route_socket, vip.addr(), device).await?;
            }
            Step::ForgetUndecided { pods, sessions: false } => self.forget(Which::Undecided, pods),
            Step::ForgetUndecided { pods, sessions: true } => {
                self.forget(Which::UndecidedSessions, pods);
            }
            Step::Rebind { wrong, blocks, places: _ } => {
                self.forget_marks(wrong, marks)?;
                self.forget_blocks(blocks, marks)?;
            }
            Step::Keep(vips) => self.keep(vips, marks).await?,
            Step::DeleteRule(rule) => self.routing.del_rule(rule).await?,
            Step::DeleteRoute(route) => self.routing.del_route(route).await?,
            Step::DeleteStray(stray) => self.routing.del_stray(stray).await?,
        }
        Ok(())
    }

    /// Has what comes for connections of these VIPs that were made here stay here.
    async fn keep(
        &mut self,
        vips: &BTreeMap<u32, Vip>,
        marks: MarkMask,
    ) -> Result<(), KernelError> {
        let kept = Kept::look(vips, &mut self.conntrack, marks)?;
        let before = self.tables.generation()?;
        self.nft.keep(&kept.elements()).await?;
        self.kept = kept;
        self.changed_since(before)
    }

    /// Lets go of those that have ended meanwhile.
    pub async fn keep_no_more(&mut self, marks: MarkMask) -> Result<(), KernelError> {
        if !self.kept.may_end() {
            return Ok(());
        }
        let vips = self.kept.vips();
        if self.kept.is_as(&Kept::look(&vips, &mut self.conntrack, marks)?) {
            return Ok(());
        }
        self.keep(&vips, marks).await
    }

    /// Takes a VIP off the device with that index.
    pub async fn remove_vip(&self, vip: Vip, device: u32) -> Result<(), KernelError> {
        Ok(addresses::remove_vip(&self.route_socket, vip, device).await?)
    }

    fn forget(&self, which: Which, pods: &BTreeSet<PodIp>) {
        self.forgetting.order(which, pods.iter().map(|pod| pod.addr()).collect());
    }

    async fn change_tables(&mut self, change: &TablesChange) -> Result<(), KernelError> {
        let before = self.tables.generation()?;
        self.nft.change(change).await?;
        self.changed_since(before)
    }

    /// nft's socket is not ours. But when its transaction was the only one meanwhile, what is told
    /// of that one is no news.
    fn changed_since(&mut self, before: u32) -> Result<(), KernelError> {
        let after = self.tables.generation()?;
        if after == before.wrapping_add(1) {
            self.own_ports.add_generation(after);
        }
        Ok(())
    }

    /// One pass over all connections costs as much as the kernel's own flush of one mark.
    fn forget_marks(&mut self, wrong: &BTreeSet<u32>, marks: MarkMask) -> Result<(), KernelError> {
        const FEW: usize = 4;
        if wrong.len() <= FEW {
            for mark in wrong {
                self.conntrack.flush_mark(*mark, marks.mask())?;
            }
        } else {
            self.conntrack.delete_where(|entry| wrong.contains(&(entry.mark & marks.mask())))?;
        }
        Ok(())
    }

    /// Forgets connections with one of these marks whose port is not of the blocks of the mark.
    fn forget_blocks(
        &mut self,
        blocks: &BTreeMap<u32, BTreeSet<Block>>,
        marks: MarkMask,
    ) -> Result<(), KernelError> {
        if blocks.is_empty() {
            return Ok(());
        }
        self.conntrack.delete_where(|entry| {
            let of_mark = blocks.get(&(entry.mark & marks.mask()));
            let block = Block::of_port(entry.translated_port);
            of_mark.is_some_and(|of_mark| block.is_none_or(|block| !of_mark.contains(&block)))
        })?;
        Ok(())
    }

    /// Removes everything of ours, in the order in which nothing of a pod's is lost on its way:
    /// the tables, the connections they decided, rules, routes. What fails does not keep the rest
    /// from being removed.
    pub async fn clean_up(&mut self) -> Vec<KernelError> {
        let mut errors = Vec::new();
        let mut note = |result: Result<(), KernelError>| errors.extend(result.err());
        note(self.nft.remove_tables().await.map_err(Into::into));
        let marks = self.ownership.marks();
        let ours = |mark: u32| marks.id_of(mark).is_some();
        note(self.conntrack.delete_where(|entry| ours(entry.mark)).map(drop).map_err(Into::into));
        match self.routing.observe().await {
            Err(error) => note(Err(error.into())),
            Ok(ObservedRouting { rules, routes, strays, foreign: _ }) => {
                for rule in &rules {
                    note(self.routing.del_rule(rule).await.map_err(Into::into));
                }
                for route in &routes {
                    note(self.routing.del_route(route).await.map_err(Into::into));
                }
                for stray in &strays {
                    note(self.routing.del_stray(stray).await.map_err(Into::into));
                }
            }
        }
        errors
    }
}
