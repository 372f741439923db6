//! Pure: from the `ConfigMaps` to keepalived's configuration, and which VIPs are left out of it and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use shared::config_map::{
    CANDIDATES, ROUTE_IDS, VIPS, addr_of_key, decode_candidates, decode_route_ids,
};
use shared::mappings::{Change, Content, Violation};
use shared::{ClusterNetworks, Mappings, RouteId, Vip};
use xxhash_rust::xxh3::xxh3_64;

use crate::node_facts::{NoUplink, NodeFacts};

/// Not the text of the VIPs: what holds for all of them.
///
/// `dynamic_interfaces`: an interface may come later. `reload_check_config`: a reload of a bad
/// file would end keepalived and leave its VIPs where they are. `vrrp_higher_prio_send_advert`:
/// a node that slept takes its VIPs back with an announcement. One announcement at once, one a
/// second later, and one each ten seconds for neighbours that missed them.
const GLOBAL: &str = "global_defs {
    vrrp_version 3
    enable_script_security
    dynamic_interfaces
    reload_check_config
    vrrp_higher_prio_send_advert true
    vrrp_garp_master_delay 1
    vrrp_garp_master_repeat 1
    vrrp_garp_lower_prio_repeat 1
    vrrp_garp_lower_prio_delay 1
    vrrp_garp_master_refresh 10
}
";

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
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// keepalived's configuration; none without any VIP, then it has nothing to do.
    pub text: Option<String>,
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
    NoUplink(#[from] NoUplink),
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
    /// id) that this node may hold.
    pub fn render(&self, facts: &NodeFacts, settings: &Settings) -> Rendered {
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

        let mut text = GLOBAL.to_owned();
        let mut any = false;
        for vip in asked_for {
            let Some(priority) = priority(vip, candidates.entries.get(&vip), &settings.node) else {
                continue;
            };
            match instance(vip, priority, &mappings, facts, settings) {
                Ok(instance) => {
                    any = true;
                    text.push_str(&instance);
                }
                // It has one, and was named as breaking a rule.
                Err(LeftOut::NoRouteId(vip)) if declared.contains(&vip) => {}
                Err(left_out) => faults.push(left_out.to_string()),
            }
        }
        faults.sort();
        faults.dedup();
        Rendered { text: any.then_some(text), faults }
    }
}

fn vip_of_key(key: &str, faults: &mut Vec<String>) -> Option<Vip> {
    let addr = addr_of_key(key).map_err(|why| why.to_string());
    let vip = addr.and_then(|addr| Vip::try_from(addr).map_err(|invalid| invalid.to_string()));
    vip.map_err(|why| faults.push(format!("{VIPS}, key {key:?}: {why}"))).ok()
}

/// How much this node is to hold the VIP, from 1 to 200; none if others are to.
///
/// Far apart: the higher one of two is faster to take a VIP over, and clearly so. Without
/// candidates a number that is always the same spreads the VIPs over the nodes.
fn priority(vip: Vip, candidates: Option<&Vec<String>>, node: &str) -> Option<u8> {
    let Some(nodes) = candidates.filter(|nodes| !nodes.is_empty()) else {
        let number = xxh3_64(format!("{node} {vip}").as_bytes()) % 200 + 1;
        return u8::try_from(number).ok();
    };
    let place = nodes.iter().position(|candidate| candidate == node)?;
    Some(match place {
        0 => 200,
        1 => 150,
        _ => u8::try_from(12_usize.saturating_sub(place) * 10).unwrap_or(1).max(1),
    })
}

fn instance(
    vip: Vip,
    priority: u8,
    mappings: &Mappings,
    facts: &NodeFacts,
    settings: &Settings,
) -> Result<String, LeftOut> {
    let route_id: RouteId = *mappings.vips().get(&vip).ok_or(LeftOut::NoRouteId(vip))?;
    let interface = facts.uplink_for(vip, settings.interface.as_deref())?.name;
    let length = if vip.is_ipv4() { 32 } else { 128 };
    let advert = settings.advert_interval.as_secs_f64();
    let mut text = String::new();
    // Writing to a text does not fail.
    let _ = write!(
        text,
        "
vrrp_instance {vip} {{
    state BACKUP
    nopreempt
    interface {interface}
    virtual_router_id {route_id}
    priority {priority}
    advert_int {advert:.2}
    virtual_ipaddress {{
        {vip}/{length} dev {interface}
    }}
}}
"
    );
    Ok(text)
}
