//! Pure: which node has which blocks of a VIP's ports on the direct path.
//!
//! # Guarantees
//! No two nodes ever may use one port, whoever crashes, restarts or hears late. A node *may use* a
//! block when it is open in what its agent has read last, or while connections have its ports. All that
//! is decided here follows from what is published and what nodes report; nothing that safety needs is
//! remembered, so a controller that starts anew, or a second one, decides as safely. Timers begin
//! anew, which only makes things slower.
//!
//! # Why that is so
//! A report lists every block that its node may use ([`BlockUse::blocks`]), also the one that an agent
//! writes first after it was started anew. A block that it has left out because nothing has it any more
//! comes back into it only when it is given anew. Four rules:
//! 1. An open block becomes draining only when its owner's report lists it. So *draining* says, for
//!    good and for everybody: the owner has read that the block is its own.
//! 2. A draining block never opens again.
//! 3. A block is free when it is draining and its owner's report does not list it any more. What an
//!    agent has read only gets newer, and from rule 1 to here the block was open without a break until
//!    it became draining: an agent that has read the first and does not list it has read the second,
//!    opens nothing there any more, and has no connection left. An agent that has heard of neither
//!    does not list the block either, but then rule 1 has kept it open.
//! 4. A block that the report of any node lists that exists is given to nobody. One that is nobody's
//!    becomes draining for who lists it: that is how an object is made anew that a hand has deleted or
//!    garbled.
//!
//! Blocks are given, drained and freed by one write to one object, which the API server takes only if
//! nobody else has written it since it was read (see [`publish`](crate::publish)). Objects and reports
//! are `ConfigMaps` of one namespace and come by one watch in the order in which they were written: who
//! has seen a block become draining, or be given, has also seen the report that it was done for.
//!
//! # Assumptions
//! At most one agent at a time writes a node's report. A node whose Node object is gone for
//! [`QUARANTINE`] does not come back with an agent that has heard nothing meanwhile.

mod node;
mod round;
mod since;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use shared::Vip;
use shared::config_map::{BlockUse, VipBlocks};
use tokio::time::Instant;

use self::round::{Common, Round};
use self::since::Since;
use crate::model::PathVerdict;

/// How long a Node object has to be gone before another node gets its blocks although nobody has said
/// that they are unused. By then the API server does not go on with a watch from before (it keeps five
/// minutes of history), so an agent that is heard of again reads everything anew; pods of a node that
/// is gone are deleted within a minute; and connections of a machine that is off are over for those who
/// have not given up on it.
pub const QUARANTINE: Duration = Duration::from_mins(5);
/// How long a node without pods of a VIP keeps its blocks, for the pods that come next; and for how long
/// a node has to need fewer blocks than it has before it gives some back.
pub const PATIENCE: Duration = Duration::from_mins(10);
/// As [`PATIENCE`], while another node with pods has no block at all.
const PATIENCE_IN_NEED: Duration = Duration::from_secs(30);
/// How long a node stays named after it lost its last block, and how long an object stays when it is
/// empty: agents keep the last content of an object that vanishes, and a node that is not named is not
/// told of changes, so each has to have read that it has none.
pub const KEEP_EMPTY: Duration = Duration::from_mins(15);
/// After how long without one of these passes timers begin anew: what has happened meanwhile was not
/// seen.
const BLINK: Duration = Duration::from_mins(3);
/// How many blocks a node can have.
const MOST: usize = 24;

/// What decides.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub now: Instant,
    /// The VIPs that are to be on the direct path, each with the nodes that have pods of it.
    pub direct: BTreeMap<Vip, BTreeSet<&'a str>>,
    /// What is published.
    pub published: BTreeMap<Vip, &'a VipBlocks>,
    /// The nodes that exist, each with its addresses in the nodes' network.
    pub nodes: BTreeMap<&'a str, &'a [IpAddr]>,
    /// What nodes make of their blocks; those that say nothing, or nothing that is understood, are
    /// not here.
    pub reports: BTreeMap<&'a str, &'a BTreeMap<Vip, BlockUse>>,
}

/// What an object is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Blocks(VipBlocks),
    /// It was empty for long enough.
    Deleted,
}

/// What follows.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What is to be published; other objects are let be.
    pub wanted: BTreeMap<Vip, Wanted>,
    /// What is said of the path of each of these.
    pub verdicts: BTreeMap<Vip, PathVerdict>,
    /// When to plan again although nothing has changed.
    pub next: Option<Instant>,
}

/// What plans; remembers since when things are as they are.
#[derive(Debug, Default)]
pub struct Allocator {
    planned: Option<Instant>,
    /// Nodes that do not exist.
    gone: Since,
    vips: BTreeMap<Vip, Timers>,
}

/// Since when things are so with the nodes of one VIP.
#[derive(Debug, Default)]
struct Timers {
    /// They have no pods of it.
    unused: Since,
    /// They need fewer blocks than they have.
    idle: Since,
    /// They have no blocks any more.
    bare: Since,
    /// They do not use the blocks they have.
    unproven: Since,
    /// They had no ports left towards a destination; when that was seen last.
    exhausted: BTreeMap<String, Instant>,
    /// The object is empty (under an empty name).
    empty: Since,
}

impl Allocator {
    /// What is to be published and said.
    pub fn plan(&mut self, situation: &Situation<'_>) -> Plan {
        let now = situation.now;
        if self.planned.is_none_or(|at| at + BLINK < now) {
            *self = Self::default();
        }
        let fresh = self.planned.replace(now).is_none();
        let vips: BTreeSet<Vip> =
            situation.direct.keys().chain(situation.published.keys()).copied().collect();
        self.vips.retain(|vip, _| vips.contains(vip));
        let mut plan = Plan::default();
        let mut common = Common::new(situation, fresh);
        common.released = self.released(situation, &mut plan.next);
        for vip in vips {
            let timers = self.vips.entry(vip).or_default();
            let mut round = Round::new(vip, &common, timers);
            if let Some(wanted) = round.decide() {
                plan.wanted.insert(vip, wanted);
            }
            plan.verdicts.insert(vip, round.verdict());
            plan.next = [plan.next, round.next].into_iter().flatten().min();
        }
        plan
    }

    /// The nodes that are gone for long: what they had is theirs no more.
    fn released<'a>(
        &mut self,
        situation: &Situation<'a>,
        next: &mut Option<Instant>,
    ) -> BTreeSet<&'a str> {
        let named = situation.published.values().flat_map(|blocks| blocks.keys());
        let gone: BTreeSet<&str> =
            named.map(String::as_str).filter(|node| !situation.nodes.contains_key(node)).collect();
        self.gone.keep_only(|node| gone.contains(node));
        let lasts = |node: &&str| self.gone.lasts(node, true, QUARANTINE, situation.now, next);
        gone.into_iter().filter(lasts).collect()
    }
}
