//! What may become of packets while a plan leads from one world to another: whatever either of them
//! has, and never an address or a port of somebody else's.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use shared::block::HOLDERS_PORTS;
use shared::{Block, PodIp, Vip};

use super::kernel::{Fate, Kernel};
use super::packet::Connection;
use super::world::{World, every_pod};
use super::{LOCAL, UPLINK};
use crate::routing::Decision;

/// What may become of packets between two worlds.
pub(super) struct Tolerance<'a> {
    pub(super) old: Option<&'a World>,
    pub(super) new: &'a World,
    /// What the maps said before the plan: strangers may have changed it.
    pub(super) start: BTreeMap<PodIp, Option<Vip>>,
    /// The agent has not restarted since the old world.
    pub(super) remembers: bool,
    /// No step fails, so that what comes for a connection here is never passed on to another node.
    pub(super) answers: bool,
}

impl<'a> Tolerance<'a> {
    /// `start` is the kernel before the plan.
    pub(super) fn between(old: &'a World, new: &'a World, start: &Kernel) -> Self {
        let remembers = start.places.is_some();
        Self { old: Some(old), new, start: start.pods.vips.clone(), remembers, answers: true }
    }

    fn worlds(&self) -> impl Iterator<Item = &World> {
        self.old.into_iter().chain([self.new])
    }

    fn knows(&self, vip: Vip) -> bool {
        self.worlds().any(|world| world.mappings.vips().contains_key(&vip))
    }

    /// A port that is nobody else's.
    fn may_have(&self, vip: Vip, port: u16) -> bool {
        let is_holders = |world: &World| world.mappings.vips().contains_key(&vip);
        self.worlds().any(|world| match world.direct(vip) {
            Some(direct) => match Block::of_port(port) {
                Some(block) => direct.own.contains(&block),
                None => HOLDERS_PORTS.contains(&port),
            },
            None => is_holders(world),
        })
    }

    fn first(&self, pod: PodIp, fate: Fate) -> bool {
        match fate {
            Fate::Dropped => true,
            Fate::ToHolder(vip) => self.knows(vip),
            Fate::LeavesWith(vip, port) => {
                let maps = self.worlds().map(|world| world.mappings.pods()).chain([&self.start]);
                maps.into_iter().any(|pods| pods.get(&pod) == Some(&Some(vip)))
                    && self.may_have(vip, port)
            }
            Fate::NodeAddress => {
                self.old.is_none()
                    || self.worlds().any(|world| !world.mappings.pods().contains_key(&pod))
            }
            Fate::PodAddress => false,
        }
    }

    fn bound(&self, connection: Connection, fate: Fate) -> bool {
        match fate {
            Fate::Dropped => true,
            Fate::ToHolder(vip) => self.knows(vip),
            Fate::LeavesWith(vip, port) => {
                connection.source == Some(vip.addr()) && self.may_have(vip, port)
            }
            Fate::NodeAddress | Fate::PodAddress => false,
        }
    }

    pub(super) fn check(&self, kernel: &Kernel, after: &str) -> Result<(), TestCaseError> {
        for pod in every_pod() {
            for iif in [LOCAL, UPLINK] {
                let fate = kernel.first_packet(pod, iif);
                prop_assert!(self.first(pod, fate), "{pod} over {iif}: {fate:?} after {after}");
            }
        }
        // By a connection's mark alone nobody can tell whose it is: when its VIP is gone, it is held
        // as one that comes from a pod subnet.
        let subnets: Vec<_> =
            self.worlds().map(|world| world.mappings.networks().pod_subnets()).collect();
        let covered = |pod: PodIp| {
            subnets.iter().all(|nets| nets.iter().any(|net| net.contains(&pod.addr())))
        };
        let bound = |connection: &&Connection| {
            connection.mark & kernel.marks.mask() != 0 && covered(connection.pod)
        };
        for connection in kernel.connections.iter().filter(bound) {
            let fate = kernel.next_packet(*connection);
            prop_assert!(self.bound(*connection, fate), "{connection:?}: {fate:?} after {after}");
            if let (Fate::LeavesWith(vip, port), Some((_, Decision::Direct)), true) =
                (fate, kernel.marks.id_of(connection.mark), self.answers)
            {
                let to = kernel.passed_on(vip, port);
                prop_assert_eq!(to, None, "answers to {:?} after {}", connection, after);
            }
        }
        Ok(())
    }
}
