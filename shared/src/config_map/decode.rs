//! How the objects are read: every good entry, and every other one with the reason.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Reason, Rejected, addr_of_key, key, network_keys};
use crate::address::{parse_usable, usable};
use crate::mappings::{Expected, same_family};
use crate::{ClusterNetworks, PodIp, PodUid, RouteId, Vip};

/// The good entries of an object and the rejected ones, sorted.
///
/// Every entry is in the one or the other, or repeats another spelling of its address. Only a pod
/// with a bad value is in both: it was meant to be mapped, so it is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded<T> {
    pub entries: T,
    pub rejected: Vec<Rejected>,
}

/// Reads `object` as [`ROUTE_IDS`](super::ROUTE_IDS). Route ids may occur twice.
pub fn decode_route_ids(
    object: &str,
    data: &BTreeMap<String, String>,
) -> Decoded<BTreeMap<Vip, RouteId>> {
    let Decoded { entries, rejected } = route_id_entries(object, data);
    Decoded { entries: entries.into_iter().map(|(vip, (_, id))| (vip, id)).collect(), rejected }
}

/// Each VIP with the key that it is written under.
pub(crate) fn route_id_entries<'a>(
    object: &'a str,
    data: &'a BTreeMap<String, String>,
) -> Decoded<BTreeMap<Vip, (&'a str, RouteId)>> {
    let mut spelled = Spelled::new(object);
    for (key, value) in data {
        match vip_key(key) {
            Err(reason) => spelled.reject(key, value, reason),
            Ok(vip) => match value.trim().parse() {
                Ok(meaning) => {
                    let spelling = Spelling { key, value, meaning, named: false };
                    spelled.add(vip, vip.addr(), spelling);
                }
                Err(_) => spelled.reject(key, value, Reason::NoRouteId),
            },
        }
    }
    spelled.finish(|entry| (entry.key, entry.meaning))
}

/// Reads `object` as [`PODS`](super::PODS) or as one node's pods; `None` holds the pod. Keys with
/// UIDs are passed over: see [`decode_expected`].
pub fn decode_pods(
    object: &str,
    data: &BTreeMap<String, String>,
) -> Decoded<BTreeMap<PodIp, Option<Vip>>> {
    let mut spelled = Spelled::new(object);
    for (key, value) in data {
        match pod_key(key) {
            Err(reason) => spelled.reject(key, value, reason),
            Ok(PodKey::Uid(_) | PodKey::AddressesOf(_)) => {}
            Ok(PodKey::Ip(pod)) => {
                let vip = pod_value(pod, value);
                let named = vip.is_err();
                let meaning = vip.unwrap_or_else(|reason| {
                    spelled.reject(key, value, reason);
                    None
                });
                spelled.add(pod, pod.addr(), Spelling { key, value, meaning, named });
            }
        }
    }
    spelled.finish(|entry| entry.meaning)
}

/// Reads `object` as one node's pods: those whose addresses are not known yet. Keys that are not UIDs
/// are passed over: see [`decode_pods`].
pub fn decode_expected(
    object: &str,
    data: &BTreeMap<String, String>,
) -> Decoded<BTreeMap<PodUid, Expected>> {
    let mut decoded = Decoded::<BTreeMap<_, _>>::default();
    for (key, value) in data {
        if let Ok(PodKey::Uid(uid)) = pod_key(key)
            && ![super::UNCOVERED, super::GONE].contains(&value.trim())
        {
            let (expected, reason) = expected_value(value);
            decoded.entries.insert(uid, expected);
            decoded.rejected.extend(reason.map(|reason| Rejected::new(object, key, value, reason)));
        }
    }
    decoded.rejected.sort();
    decoded
}

/// The pods that one node's object names by their UIDs as covered: now, or until they were gone.
pub fn decode_covered(data: &BTreeMap<String, String>) -> BTreeSet<PodUid> {
    let covered = |(key, value): (&String, &String)| match pod_key(key) {
        Ok(PodKey::Uid(uid)) => (value.trim() != super::UNCOVERED).then_some(uid),
        Ok(PodKey::AddressesOf(uid)) => Some(uid),
        Ok(PodKey::Ip(_)) | Err(_) => None,
    };
    data.iter().filter_map(covered).collect()
}

/// Reads `object` as [`NETWORKS`](super::NETWORKS).
///
/// Lists are separated by commas and white space; each bad item is rejected by itself.
pub fn decode_networks(object: &str, data: &BTreeMap<String, String>) -> Decoded<ClusterNetworks> {
    let mut networks = ClusterNetworks::default();
    let mut rejected = Vec::new();
    for (key, value) in data {
        networks = match key.as_str() {
            network_keys::POD_SUBNETS => {
                networks.with_pod_subnets(items(object, key, value, network, &mut rejected))
            }
            network_keys::SERVICE_SUBNETS => {
                networks.with_service_subnets(items(object, key, value, network, &mut rejected))
            }
            network_keys::NODE_ADDRESSES => {
                networks.with_node_addresses(items(object, key, value, node, &mut rejected))
            }
            network_keys::EXCLUDED => {
                networks.with_excluded(items(object, key, value, network, &mut rejected))
            }
            network_keys::GATEWAY_ADDRESSES => {
                networks.with_gateway_addresses(items(object, key, value, node, &mut rejected))
            }
            _ => {
                rejected.push(Rejected::new(object, key, value, Reason::UnknownKey));
                networks
            }
        };
    }
    rejected.sort();
    Decoded { entries: networks, rejected }
}

fn items<T>(
    object: &str,
    key: &str,
    value: &str,
    read: impl Fn(&str) -> Result<T, Reason>,
    rejected: &mut Vec<Rejected>,
) -> Vec<T> {
    let texts =
        value.split(|c: char| c == ',' || c.is_whitespace()).filter(|text| !text.is_empty());
    let mut good = Vec::new();
    for text in texts {
        match read(text) {
            Ok(item) => good.push(item),
            Err(reason) => rejected.push(Rejected::new(object, key, text, reason)),
        }
    }
    good
}

fn network(text: &str) -> Result<IpNet, Reason> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match parsed {
        Err(_) => Err(Reason::NoNetwork),
        Ok(net) if net.prefix_len() == 0 => Err(Reason::DefaultRoute),
        Ok(IpNet::V6(net)) if net.network().to_ipv4_mapped().is_some() => {
            Err(Reason::Ipv4NetworkInIpv6)
        }
        Ok(net) => Ok(net.trunc()),
    }
}

fn node(text: &str) -> Result<IpAddr, Reason> {
    parse_usable(text).map_err(Reason::NoNodeAddress)
}

pub(super) fn vip_key(key: &str) -> Result<Vip, Reason> {
    let addr = addr_of_key(key).and_then(usable).map_err(Reason::KeyIsNoVip)?;
    Vip::try_from(addr).map_err(|invalid| Reason::KeyIsNoVip(invalid.why))
}

/// What a key says of which pod is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodKey {
    Ip(PodIp),
    Uid(PodUid),
    AddressesOf(PodUid),
}

/// The pod that a key stands for.
pub(crate) fn pod_key(key: &str) -> Result<PodKey, Reason> {
    if let Ok(uid) = key.parse() {
        return Ok(PodKey::Uid(uid));
    }
    if let Some(Ok(uid)) = key.strip_suffix(super::ADDRESSES_OF).map(str::parse) {
        return Ok(PodKey::AddressesOf(uid));
    }
    let addr = addr_of_key(key).map_err(Reason::KeyIsNoPodIp)?;
    let ip = PodIp::try_from(addr).map_err(|invalid| Reason::KeyIsNoPodIp(invalid.why))?;
    Ok(PodKey::Ip(ip))
}

/// What a value gives a pod whose addresses are not known yet, and what of it cannot be used: the
/// pod is held then, in the family in question.
pub(crate) fn expected_value(value: &str) -> (Expected, Option<Reason>) {
    let mut expected = Expected::default();
    for text in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse::<Vip>() {
            Err(invalid) => return (Expected::default(), Some(Reason::NoVip(invalid.why))),
            Ok(vip) if !expected.add(vip) => {
                let others = expected.vips().filter(|other| other.is_ipv4() != vip.is_ipv4());
                return (others.fold(Expected::default(), Expected::with), Some(Reason::TwoVips));
            }
            Ok(_) => {}
        }
    }
    (expected, None)
}

/// The addresses of one pod that a value lists, at least one.
pub(crate) fn pod_addresses(value: &str) -> Result<Vec<PodIp>, Reason> {
    let ip = |text: &str| text.trim().parse::<PodIp>().map_err(|bad| bad.why);
    value.split(',').map(ip).collect::<Result<_, _>>().map_err(Reason::NoPodAddress)
}

/// The VIP that a value gives the pod; `None` holds it.
pub(crate) fn pod_value(pod: PodIp, value: &str) -> Result<Option<Vip>, Reason> {
    let text = value.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let vip = text.parse::<Vip>().map_err(|invalid| Reason::NoVip(invalid.why))?;
    Ok(Some(same_family(pod, vip)?))
}

/// Entries by address, of which each keeps the best spelling.
pub(super) struct Spelled<'a, A, T> {
    object: &'a str,
    entries: BTreeMap<A, Spelling<'a, T>>,
    rejected: Vec<Rejected>,
}

pub(super) struct Spelling<'a, T> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
    pub(super) meaning: T,
    /// Whether it is among the rejected already.
    pub(super) named: bool,
}

impl<'a, A: Ord, T: PartialEq> Spelled<'a, A, T> {
    pub(super) fn new(object: &'a str) -> Self {
        Self { object, entries: BTreeMap::new(), rejected: Vec::new() }
    }

    pub(super) fn reject(&mut self, key: &str, value: &str, reason: Reason) {
        self.rejected.push(Rejected::new(self.object, key, value, reason));
    }

    /// Keys come in ascending order.
    pub(super) fn add(&mut self, address: A, addr: IpAddr, spelling: Spelling<'a, T>) {
        match self.entries.entry(address) {
            Entry::Vacant(vacant) => {
                vacant.insert(spelling);
            }
            Entry::Occupied(mut present) => {
                let loser = if self::key(addr) == spelling.key {
                    present.insert(spelling)
                } else {
                    spelling
                };
                let winner = present.get();
                if winner.meaning != loser.meaning && !loser.named {
                    let reason = Reason::Contradicted {
                        object: self.object.to_owned(),
                        key: winner.key.to_owned(),
                    };
                    self.reject(loser.key, loser.value, reason);
                }
            }
        }
    }

    pub(super) fn finish<M>(
        mut self,
        meaning: impl Fn(Spelling<'a, T>) -> M,
    ) -> Decoded<BTreeMap<A, M>> {
        self.rejected.sort();
        let entries = self.entries.into_iter().map(|(addr, entry)| (addr, meaning(entry)));
        Decoded { entries: entries.collect(), rejected: self.rejected }
    }
}
