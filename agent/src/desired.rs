//! What a node's kernel should hold, for what is mapped and what the node is like.
//!
//! Pure: no I/O, no clock, cannot fail. What a VIP cannot have on this node becomes a [`Note`].

#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use shared::{Block, Mappings, PodIp, RouteId, Vip};

use crate::direct::{Hindrance, Proven, direct_vips};
use crate::node_facts::{NoUplink, NodeFacts};
use crate::port_use::Destination;
use crate::routing::{Device, Family, Ownership, PolicyRule, Route};
use crate::ruleset::{Input, Ruleset, capacity};
use crate::unsure::{TRUSTING, Vouched};

/// Destinations that are never outside, whatever the cluster: this host, its links, multicast,
/// broadcast and reserved addresses.
const ALWAYS_INTERNAL: [&str; 6] =
    ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::1/128", "fe80::/10", "ff00::/8"];

/// What an operator chose for the agent of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which numbers of the kernel's are ours.
    pub ownership: Ownership,
    /// The uplink of every VIP; `None` takes the interface with the route to the VIP's subnet.
    pub interface: Option<String>,
    /// The name of this node, by which its blocks of VIPs are told from others'.
    pub node: String,
    /// The blocks with which the direct path may be taken.
    pub proven: Proven,
    /// Where new connections find hardly a port of this node's blocks.
    pub full: BTreeSet<Destination>,
    /// Where pods reach the API server, if that is known.
    pub api_server: Option<IpAddr>,
}

/// Where a VIP is, as seen from this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Whose connections are bound under this route id.
    pub vip: Vip,
    /// The VIP is an address of this node.
    pub here: bool,
    /// The blocks of its ports that connections on the direct path may have.
    pub blocks: BTreeSet<Block>,
    /// Nodes have blocks of it: who holds it translates with the ports that are left.
    pub shared: bool,
}

/// Something an operator should know about a VIP on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The VIP in question.
    pub vip: Vip,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with a VIP on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This node cannot send to its holder.
    NoUplink(NoUplink),
    /// This node cannot take the direct path.
    NotDirect(Hindrance),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, reason } = self;
        match reason {
            Reason::NoUplink(why) => {
                write!(f, "VIP {vip}: {why}; its pods here are held while it is elsewhere")
            }
            Reason::NotDirect(why) => write!(f, "VIP {vip}: {why}; its pods go via its holder"),
        }
    }
}

/// The whole of what the kernel should hold.
#[derive(Clone, Debug)]
pub struct Desired<'a> {
    /// One for every VIP, and those that spare packets most of them.
    pub rules: BTreeSet<PolicyRule>,
    /// For every VIP the backstop, and the way to the holder where there is one.
    pub routes: BTreeSet<Route>,
    /// Ways to holders that the kernel accepts only once the VIP has left this node; kept where
    /// they are.
    pub later: BTreeSet<Route>,
    /// Both tables, but for what changes with pods.
    pub ruleset: &'a Ruleset,
    /// What the maps of pods hold.
    pub pods: &'a BTreeMap<PodIp, Option<Vip>>,
    /// Which other addresses of pods on this node are known, and what becomes of the rest.
    pub vouched: &'a Vouched,
    /// Interfaces on which a packet's source may have its route elsewhere.
    pub loose: BTreeSet<String>,
    /// Which decision connections may be bound to.
    pub places: BTreeMap<RouteId, Place>,
}

/// A VIP that this node can send to, and over which interface.
fn uplinks(
    mappings: &Mappings,
    facts: &NodeFacts,
    settings: &Settings,
) -> (BTreeMap<Vip, Device>, Vec<Note>) {
    let mut uplinks = BTreeMap::new();
    let mut notes = Vec::new();
    for vip in mappings.vips().keys() {
        match facts.uplink_for(*vip, settings.interface.as_deref()) {
            Ok(device) => {
                uplinks.insert(*vip, device);
            }
            Err(why) => notes.push(Note { vip: *vip, reason: Reason::NoUplink(why) }),
        }
    }
    (uplinks, notes)
}

/// What the tables' rules depend on, and what of it is worth saying.
pub fn ruleset_input(
    mappings: &Mappings,
    facts: &NodeFacts,
    settings: &Settings,
) -> (Input, Vec<Note>) {
    let (uplinks, mut notes) = uplinks(mappings, facts, settings);
    let networks = mappings.networks();
    let direct = direct_vips(mappings, facts, settings, &uplinks);
    notes.extend(direct.iter().filter_map(|(vip, direct)| {
        // Proofs come and go; a missing uplink was named already.
        let why = direct
            .hindrance
            .filter(|why| matches!(why, Hindrance::NoMarkBit | Hindrance::NotThisNode(_)))?;
        Some(Note { vip: *vip, reason: Reason::NotDirect(why) })
    }));
    let input = Input {
        direct,
        mask: settings.ownership.marks(),
        capacity: capacity(mappings.pods().len()),
        vips: mappings.vips().clone(),
        reachable: uplinks.keys().copied().collect(),
        uplinks: uplinks.into_values().map(|device| device.name).collect(),
        api_server: settings.api_server,
        overlays: facts.overlays(networks.pod_subnets()),
        pods: disjoint(networks.pod_subnets().iter().copied()),
        internal: disjoint(
            networks
                .pod_subnets()
                .iter()
                .chain(networks.service_subnets())
                .chain(networks.excluded())
                .copied()
                .chain(networks.node_addresses().iter().copied().map(IpNet::from))
                .chain(always_internal()),
        ),
    };
    (input, notes)
}

/// The state for `mappings` on a node like `facts`. `ruleset` is rendered from [`ruleset_input`]
/// of the same arguments: that is kept apart because it is dear and seldom changes. Unknown pods
/// pass, unless the caller says otherwise in [`Desired::vouched`].
pub fn desired<'a>(
    mappings: &'a Mappings,
    facts: &NodeFacts,
    settings: &Settings,
    ruleset: &'a Ruleset,
) -> Desired<'a> {
    let Settings { ownership, .. } = settings;
    let (uplinks, _) = uplinks(mappings, facts, settings);
    let direct = direct_vips(mappings, facts, settings, &uplinks);
    let mut desired = Desired {
        rules: BTreeSet::new(),
        routes: BTreeSet::new(),
        later: BTreeSet::new(),
        ruleset,
        pods: mappings.pods(),
        vouched: &TRUSTING,
        loose: BTreeSet::new(),
        places: BTreeMap::new(),
    };
    for (&vip, &id) in mappings.vips() {
        let family = Family::of(vip.addr());
        let here = facts.holds(vip);
        desired.rules.insert(ownership.rule(family, id));
        desired.routes.insert(ownership.unreachable(family, id));
        let of_vip = direct.get(&vip);
        let blocks = of_vip.map(|of| of.own.clone()).unwrap_or_default();
        desired.places.insert(id, Place { vip, here, blocks, shared: of_vip.is_some() });
        if let Some(device) = uplinks.get(&vip) {
            let route = ownership.route_to_holder(vip, id, device.clone());
            if here { &mut desired.later } else { &mut desired.routes }.insert(route);
            if family == Family::V4 {
                desired.loose.insert(device.name.clone());
            }
        }
    }
    for family in Family::ALL {
        let of_family = mappings.vips().iter().filter(|(vip, _)| Family::of(vip.addr()) == family);
        desired.rules.extend(ownership.shortcuts(family, of_family.map(|(_, id)| *id)));
    }
    if !desired.loose.is_empty() {
        desired.loose.extend(facts.overlays(mappings.networks().pod_subnets()));
    }
    desired
}

fn always_internal() -> impl Iterator<Item = IpNet> {
    ALWAYS_INTERNAL.iter().filter_map(|net| net.parse().ok())
}

/// The same addresses in networks that do not overlap: nft refuses sets whose intervals do.
fn disjoint(networks: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&networks.collect())
}
