//! Which Vips are accepted, under which route id, and which node holds each.
//!
//! The gateways of the nodes' network are not known here: nothing that is observed names them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use shared::crd;
use shared::route_id::InvalidRouteId;
use shared::vip::InvalidVip;
use shared::{ClusterNetworks, RouteId, Vip};

use super::addresses::Addresses;
use super::age::{age, key};
use super::reported::Reported;
use crate::model::{Finding, ObjectKey, Observed, VipReason};
use crate::route_ids::{Need, Refusal, allocate};

/// Every Vip, judged.
pub(super) struct Vips<'a> {
    /// The accepted ones, by address.
    pub(super) accepted: BTreeMap<Vip, Accepted<'a>>,
    /// The others, the oldest first.
    pub(super) refused: Vec<Refused<'a>>,
}

/// A Vip that pods can leave with.
pub(super) struct Accepted<'a> {
    pub(super) object: &'a crd::Vip,
    pub(super) route_id: RouteId,
    /// The node that has the address.
    pub(super) holder: Option<&'a str>,
    /// Other nodes that have it, too, and not just because it has moved.
    pub(super) other_holders: Vec<&'a str>,
    /// What was seen of other machines that use it.
    pub(super) conflicts: Vec<String>,
}

/// A Vip that pods cannot leave with.
pub(super) struct Refused<'a> {
    pub(super) object: &'a crd::Vip,
    /// Its address, if it is one.
    pub(super) vip: Option<Vip>,
    pub(super) why: Finding<VipReason>,
}

impl Accepted<'_> {
    /// Whether Egresses of that namespace may use it.
    pub(super) fn permits(&self, namespace: &str) -> bool {
        match &self.object.spec.namespaces {
            None => self.object.metadata.namespace.as_deref() == Some(namespace),
            Some(listed) => {
                listed.iter().any(|item| item == namespace || item == crd::vip::ANY_NAMESPACE)
            }
        }
    }
}

/// Judges every Vip, the older before the younger.
pub(super) fn judge<'a>(
    observed: &'a Observed,
    networks: &ClusterNetworks,
    addresses: &Addresses<'_>,
) -> Vips<'a> {
    let mut objects: Vec<&crd::Vip> = observed.vips.iter().map(|vip| &**vip).collect();
    objects.sort_by_cached_key(|vip| age(*vip));

    let mut refused = Vec::new();
    let mut candidates: Vec<(Vip, &crd::Vip)> = Vec::new();
    for object in objects {
        let judged = address(object, observed, networks, addresses)
            .and_then(|vip| unclaimed(vip, &candidates).map(|()| vip));
        match judged {
            Ok(vip) => candidates.push((vip, object)),
            Err(why) => refused.push(Refused { object, vip: object.spec.ip.parse().ok(), why }),
        }
    }

    let (askable, unusable): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .map(|(vip, object)| (vip, object, wanted(object)))
        .partition(|(.., wanted)| wanted.is_ok());
    for (vip, object, wanted) in unusable {
        if let Err(why) = wanted {
            refused.push(Refused { object, vip: Some(vip), why });
        }
    }
    let need = |&(vip, object, ref wanted): &(Vip, &crd::Vip, Wanted)| Need {
        wanted: wanted.as_ref().ok().copied().flatten(),
        has: has(vip, object, observed),
    };
    let ids = allocate(&askable.iter().map(need).collect::<Vec<_>>());

    let mut reported = Reported::new(observed);
    let mut accepted = BTreeMap::new();
    for (&(vip, object, _), id) in askable.iter().zip(ids) {
        match id {
            Ok(route_id) => {
                let mut holders = reported.holders(vip, observed.now).into_iter();
                let (holder, other_holders) = (holders.next(), holders.collect());
                let conflicts = reported.conflicts(vip);
                let of = Accepted { object, route_id, holder, other_holders, conflicts };
                accepted.insert(vip, of);
            }
            Err(refusal) => {
                let owner = |place: usize| askable.get(place).map(|&(_, object, _)| key(object));
                let why = no_route_id(object, refusal, owner);
                refused.push(Refused { object, vip: Some(vip), why });
            }
        }
    }
    refused.sort_by_cached_key(|refused| age(refused.object));
    Vips { accepted, refused }
}

/// The address that the Vip claims, if it may.
fn address(
    object: &crd::Vip,
    observed: &Observed,
    networks: &ClusterNetworks,
    addresses: &Addresses<'_>,
) -> Result<Vip, Finding<VipReason>> {
    if object.metadata.namespace.as_ref() != Some(&observed.namespace) {
        return Err(Finding::new(
            VipReason::WrongNamespace,
            format!(
                "Vips count only in namespace {}, where the controller runs; create it there",
                observed.namespace
            ),
        ));
    }
    let invalid = |message: String| Finding::new(VipReason::InvalidAddress, message);
    let vip: Vip = object.spec.ip.parse().map_err(|why: InvalidVip| invalid(why.to_string()))?;
    let addr = vip.addr();
    let within = |nets: &[IpNet]| nets.iter().find(|net| net.contains(&addr)).copied();
    let place = if networks.node_addresses().contains(&addr) {
        format!("is an address of Node {}", node_with(addr, observed))
    } else if let Some(net) = within(networks.pod_subnets()) {
        format!("lies in pod subnet {net}")
    } else if let Some(net) = within(networks.service_subnets()) {
        format!("lies in service subnet {net}")
    } else if let Some(pod) = addresses.owner(addr) {
        format!("is the address of Pod {}/{}", pod.namespace, pod.name)
    } else {
        return Ok(vip);
    };
    Err(invalid(format!("{vip} {place}; choose an address of the nodes' network that no host has")))
}

fn node_with(addr: IpAddr, observed: &Observed) -> &str {
    let nodes = observed.nodes.iter().filter(|node| node.addresses.contains(&addr));
    nodes.map(|node| node.name.as_str()).min().unwrap_or_default()
}

fn unclaimed(vip: Vip, older: &[(Vip, &crd::Vip)]) -> Result<(), Finding<VipReason>> {
    match older.iter().find(|(other, _)| *other == vip) {
        None => Ok(()),
        Some((_, owner)) => Err(Finding::new(
            VipReason::AddressConflict,
            format!("{vip} belongs to Vip {}, which is older; remove one of the two", key(*owner)),
        )),
    }
}

type Wanted = Result<Option<RouteId>, Finding<VipReason>>;

/// The route id that the Vip asks for.
fn wanted(object: &crd::Vip) -> Wanted {
    let Some(number) = object.spec.routeid else { return Ok(None) };
    number.to_string().parse().map(Some).map_err(|why: InvalidRouteId| {
        Finding::new(VipReason::RouteIdConflict, format!("routeid {why}"))
    })
}

/// The route id that the VIP has now: the status is the controller's own, while what is published
/// may have been edited by hand; it is ahead of the status for a moment, though.
fn has(vip: Vip, object: &crd::Vip, observed: &Observed) -> Option<RouteId> {
    let status = object.status.as_ref().and_then(|status| status.routeid);
    let of_status = status.and_then(|number| number.to_string().parse().ok());
    of_status.or_else(|| observed.published_route_ids.get(&vip).copied())
}

fn no_route_id(
    object: &crd::Vip,
    refusal: Refusal,
    owner: impl Fn(usize) -> Option<ObjectKey>,
) -> Finding<VipReason> {
    match refusal {
        Refusal::TakenBy(place) => Finding::new(
            VipReason::RouteIdConflict,
            format!(
                "route id {} belongs to Vip {}; choose another, or leave routeid out",
                object.spec.routeid.unwrap_or_default(),
                owner(place).unwrap_or_default()
            ),
        ),
        Refusal::NoneFree => Finding::new(
            VipReason::NoFreeRouteId,
            format!("all {} route ids are taken; remove a Vip", RouteId::MAX),
        ),
    }
}
