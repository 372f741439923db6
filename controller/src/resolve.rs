//! Who gets which VIP, and why not: a pure function of everything that is observed.
//!
//! It starts from nothing each time, so no order of events can matter, and what is deleted leaves
//! nothing behind.

mod addresses;
mod age;
mod assignment;
mod claims;
mod gateways;
mod mappers;
mod matching;
mod networks;
mod owners;
mod placement;
mod reported;
mod tally;
#[cfg(test)]
mod tests;
mod vip_verdicts;
mod vips;
pub(crate) mod wording;

use std::collections::{BTreeMap, HashMap};

use shared::config_map::Decoded;
use shared::{PodIp, PodUid, Vip};

use self::addresses::{Addresses, can_be_mapped};
use self::age::key;
use self::assignment::Deciding;
use self::claims::{Claim, claims};
use self::gateways::Gateways;
use self::matching::Matching;
use self::owners::Owners;
use self::placement::{Placement, place};
use self::tally::Tally;
use self::vip_verdicts::Usage;
use self::vips::{Accepted, Vips};
use crate::model::{EgressVerdict, Named, Observed, Resolved};

/// All that follows from what is observed.
pub fn resolve(observed: &Observed) -> Resolved {
    let mapper = mappers::counting(observed);
    let Decoded { entries: networks, rejected } =
        networks::networks(mapper.map(|mapper| &mapper.spec), &observed.nodes);
    let addresses = Addresses::new(&observed.pods, &observed.reports, networks.node_addresses());
    let vips = vips::judge(observed, &networks, &addresses);
    let (claims, voids) = claims(&observed.egresses, &observed.namespace, &vips);
    let Assigned { shards, named, tallies } = assign(observed, &claims, &addresses);

    let mut usage: BTreeMap<Vip, Usage> = BTreeMap::new();
    let mut egresses = BTreeMap::new();
    for (claim, tally) in claims.iter().zip(&tallies) {
        if let Some(vip) = used(claim, &vips) {
            let usage = usage.entry(vip).or_default();
            usage.egresses.push(key(claim.egress));
            usage.pods += tally.mapped;
        }
        egresses.insert(key(claim.egress), tally.verdict(claim, &claims, &vips));
    }
    for void in voids {
        let verdict = EgressVerdict { ready: void.why, pods: 0, mapped: 0, left_out: 0 };
        egresses.insert(key(void.egress), verdict);
    }

    let gateways = Gateways::new(mapper, observed);
    let Placement { candidates, placed } = place(observed, mapper, &gateways, &vips, &usage);
    let default_path = mapper.and_then(|mapper| mapper.spec.default_path);
    let path = |of: &Accepted<'_>| of.object.spec.path.or(default_path).unwrap_or_default();
    Resolved {
        paths: vips.accepted.iter().map(|(&vip, of)| (vip, (key(of.object), path(of)))).collect(),
        route_ids: vips.accepted.iter().map(|(&vip, of)| (vip, of.route_id)).collect(),
        shards,
        named,
        candidates,
        networks: networks.with_gateway_addresses(gateways.addresses(&observed.nodes)),
        vips: vip_verdicts::verdicts(&vips, usage, placed),
        egresses,
        mappers: mappers::verdicts(observed, &rejected, &gateways),
    }
}

/// The accepted Vip that the Egress may use, whether pods leave with it now or not.
fn used(claim: &Claim<'_>, vips: &Vips<'_>) -> Option<Vip> {
    let vip = claim.vip()?;
    let namespace = claim.egress.metadata.namespace.as_deref().unwrap_or_default();
    vips.accepted.get(&vip).filter(|accepted| accepted.permits(namespace)).map(|_| vip)
}

struct Assigned {
    /// By node: the addresses of the mapped pods there.
    shards: BTreeMap<String, BTreeMap<PodIp, Option<Vip>>>,
    /// By node: what is said of pods there by their UIDs.
    named: BTreeMap<String, Named>,
    /// For each claim what became of its pods.
    tallies: Vec<Tally>,
}

fn assign(observed: &Observed, claims: &[Claim<'_>], addresses: &Addresses<'_>) -> Assigned {
    let matching = Matching::new(claims, Owners::new(&observed.owned));
    let mut shards: HashMap<&str, BTreeMap<PodIp, Option<Vip>>> = HashMap::new();
    let mut named: HashMap<&str, Named> = HashMap::new();
    // The pods that nodes tell of, or ask about.
    let reports = observed.reports.iter().filter(|(_, report)| !report.pods.is_empty());
    let asked: HashMap<&str, _> = reports.map(|(node, of)| (node.as_str(), &of.pods)).collect();
    let mut tallies = vec![Tally::default(); claims.len()];
    let mut places = Vec::new();
    for pod in observed.pods.iter().map(|pod| &**pod) {
        matching.find(pod, &mut places);
        let asked = pod.node.as_deref().and_then(|node| asked.get(node));
        if places.is_empty() && asked.is_none() {
            continue;
        }
        let deciding = Deciding::among(&places, claims);
        let mut published = Vec::new();
        if let Some(node) = pod.node.as_deref().filter(|_| can_be_mapped(pod)) {
            published.extend(addresses.of(pod).filter_map(|ip| deciding.mapping(ip, claims)));
            if !published.is_empty() {
                shards.entry(node).or_default().extend(published.iter().copied());
            }
            let is_known = !addresses.known(pod).is_empty();
            let expected = deciding.expected(claims).filter(|_| !is_known);
            // A pod that the kubelet made has another UID there.
            if let Ok(uid) = pod.uid.parse::<PodUid>() {
                let is_asked = asked.is_some_and(|pods| pods.contains_key(&uid));
                if !published.is_empty() || expected.is_some() || is_asked {
                    let named = named.entry(node).or_default();
                    match expected {
                        _ if !published.is_empty() => {
                            named.addresses.insert(uid, addresses.of(pod).collect());
                        }
                        Some(expected) => drop(named.expected.insert(uid, expected)),
                        None => drop(named.uncovered.insert(uid)),
                    }
                }
            }
        }
        for &place in &places {
            if let (Some(tally), Some(claim)) = (tallies.get_mut(place), claims.get(place)) {
                tally.count(pod, place, claim, deciding, &published);
            }
        }
    }
    let shards = shards.into_iter().map(|(node, pods)| (node.to_owned(), pods)).collect();
    let named = named.into_iter().map(|(node, pods)| (node.to_owned(), pods)).collect();
    Assigned { shards, named, tallies }
}
