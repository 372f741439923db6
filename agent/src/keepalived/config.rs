//! Pure: from the `ConfigMaps` to what keepalived is to do here, and which VIPs are left out and why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use shared::config_map::network_keys::GATEWAY_ADDRESSES;
use shared::config_map::{
    CANDIDATES, NETWORKS, ROUTE_IDS, VIPS, addr_of_key, decode_candidates, decode_networks,
    decode_route_ids,
};
use shared::mappings::{Change, Content, Violation};
use shared::{ClusterNetworks, Mappings, RouteId, Vip};

use super::priority::Place;
use crate::node_facts::{NoUplink, NodeFacts};

/// What is known of the objects: the latest content of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects(BTreeMap<String, BTreeMap<String, String>>);

/// What does not come from the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name, as the candidates have it.
    pub node: String,
    /// The interface of every VIP; without, the one in the VIP's network.
    pub interface: Option<String>,
    /// Between two adverts of a master.
    pub advert_interval: Duration,
    /// keepalived may raise its own scheduling priority.
    pub may_raise_priority: bool,
    pub adverts: Adverts,
}

/// To whom adverts are sent. All nodes must do the same: else each holds all VIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adverts {
    /// To VRRP's group.
    Multicast,
    /// To each of these, but for those that are this node.
    To(Vec<IpAddr>),
    /// To each node that may hold VIPs: [`NETWORKS`] names them.
    ToGateways,
}

/// A VIP that this node may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub route_id: RouteId,
    pub interface: String,
    pub place: Place,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub instances: BTreeMap<Vip, Instance>,
    /// The nodes that adverts are sent to, one by one; none: to a multicast group.
    pub peers: Option<BTreeSet<IpAddr>>,
    /// What is left out or read otherwise than it was meant, ascending.
    pub faults: Vec<String>,
}

/// Why a VIP is not offered by this node.
#[derive(Debug, thiserror::Error)]
enum LeftOut {
    #[error("VIP {0} has no route id; give it one in {ROUTE_IDS}")]
    NoRouteId(Vip),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("a VIP cannot be held here: {0}")]
    NoUplink(NoUplink),
    #[error(
        "no VIP can be held here: adverts are to be sent to each gateway by itself, and \
         {NETWORKS} does not name this node among {GATEWAY_ADDRESSES}"
    )]
    NoGateways,
}

impl Objects {
    /// Takes a change in. What is missing keeps its last content.
    pub fn apply(&mut self, change: Change) {
        let Change { object, content } = change;
        match content {
            Content::Whole(data) => drop(self.0.insert(object, data)),
            Content::Keys(keys) => {
                let data = self.0.entry(object).or_default();
                for (key, value) in keys {
                    match value {
                        Some(value) => data.insert(key, value),
                        None => data.remove(&key),
                    };
                }
            }
            Content::Missing => {}
        }
    }

    /// One instance for each VIP of `vip-configmap` (without that object, for each with a route
    /// id) that this node can hold. A VIP that was `before` keeps its interface while there is
    /// none: keepalived sees it come back sooner than anybody else.
    pub fn wanted(
        &self,
        facts: &NodeFacts,
        settings: &Settings,
        before: &BTreeMap<Vip, Instance>,
    ) -> Wanted {
        let empty = BTreeMap::new();
        let data = |object: &str| self.0.get(object).unwrap_or(&empty);
        let ids = decode_route_ids(ROUTE_IDS, data(ROUTE_IDS));
        let candidates = decode_candidates(CANDIDATES, data(CANDIDATES));
        let rejected = ids.rejected.iter().chain(&candidates.rejected);
        let mut faults: Vec<String> = rejected.map(ToString::to_string).collect();

        let declared: BTreeSet<Vip> = ids.entries.keys().copied().collect();
        let (mappings, violations) = Mappings::new(ids.entries, [], ClusterNetworks::default());
        faults.extend(violations.into_iter().map(|violation| LeftOut::from(violation).to_string()));
        let asked_for: Vec<Vip> = match self.0.get(VIPS) {
            Some(vips) => vips.keys().filter_map(|key| vip_of_key(key, &mut faults)).collect(),
            None => mappings.vips().keys().copied().collect(),
        };

        let peers = match &settings.adverts {
            Adverts::Multicast => None,
            Adverts::To(peers) => Some(peers.iter().copied().collect()),
            Adverts::ToGateways => Some(self.gateways(&mut faults)),
        };
        if settings.adverts == Adverts::ToGateways && !is_among(facts, peers.as_ref()) {
            // Alone it would take itself for the only one, and hold every VIP beside others.
            faults.push(LeftOut::NoGateways.to_string());
            return Wanted { instances: BTreeMap::new(), peers, faults };
        }
        let mut instances = BTreeMap::new();
        for vip in asked_for {
            let nodes = candidates.entries.get(&vip).map_or(&[][..], Vec::as_slice);
            let Some(route_id) = mappings.vips().get(&vip).copied() else {
                // It has one, and was named as breaking a rule.
                if !declared.contains(&vip) {
                    faults.push(LeftOut::NoRouteId(vip).to_string());
                }
                continue;
            };
            let interface = match facts.uplink_for(vip, settings.interface.as_deref()) {
                Ok(device) => Some(device.name),
                Err(why) => {
                    faults.push(LeftOut::NoUplink(why).to_string());
                    before.get(&vip).map(|instance| instance.interface.clone())
                }
            };
            let place = Place::of(vip, &settings.node, nodes);
            instances
                .extend(interface.map(|interface| (vip, Instance { route_id, interface, place })));
        }
        faults.sort();
        faults.dedup();
        Wanted { instances, peers, faults }
    }

    /// The addresses of the nodes that may hold VIPs.
    fn gateways(&self, faults: &mut Vec<String>) -> BTreeSet<IpAddr> {
        let Some(data) = self.0.get(NETWORKS) else { return BTreeSet::new() };
        let mine = |(key, _): &(&String, &String)| *key == GATEWAY_ADDRESSES;
        let data = data.iter().filter(mine).map(|(key, value)| (key.clone(), value.clone()));
        let decoded = decode_networks(NETWORKS, &data.collect());
        faults.extend(decoded.rejected.iter().map(ToString::to_string));
        decoded.entries.gateway_addresses().clone()
    }
}

/// Whether one of these addresses is this node's.
fn is_among(facts: &NodeFacts, addresses: Option<&BTreeSet<IpAddr>>) -> bool {
    let is_own = |addr: &IpAddr| facts.addresses.iter().any(|address| address.addr == *addr);
    addresses.is_some_and(|addresses| addresses.iter().any(is_own))
}

fn vip_of_key(key: &str, faults: &mut Vec<String>) -> Option<Vip> {
    let addr = addr_of_key(key).map_err(|why| why.to_string());
    let vip = addr.and_then(|addr| Vip::try_from(addr).map_err(|invalid| invalid.to_string()));
    vip.map_err(|why| faults.push(format!("{VIPS}, key {key:?}: {why}"))).ok()
}
