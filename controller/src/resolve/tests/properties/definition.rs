//! The same answer as the resolver's, worked out pod by pod in the plainest way.

use std::sync::Arc;

use shared::crd::{self, Kind, WhenUnavailable};
use shared::{PodIp, Vip};

use super::super::builders::OWN;
use super::Published;
use crate::model::{Observed, Pod, Resolved};

/// What must be published, given which Vips are accepted.
pub(super) fn expected(observed: &Observed, resolved: &Resolved) -> Published {
    let mut published = Published::new();
    for pod in observed.pods.iter().filter(|pod| !pod.finished && !pod.host_network) {
        let fates = [true, false].map(|ipv4| fate(pod, ipv4, observed, resolved));
        for &ip in pod.ips.iter().filter(|&&ip| is_own(ip, pod, observed)) {
            let (own, other) =
                if ip.is_ipv4() { (fates[0], fates[1]) } else { (fates[1], fates[0]) };
            let value = match (own, other) {
                (Fate::Vip(vip), _) => Some(vip),
                (Fate::Held, _) | (Fate::Unsaid, Fate::Held | Fate::Vip(_)) => None,
                _ => continue,
            };
            published.insert(ip, (pod.node.clone().unwrap(), value));
        }
    }
    published
}

#[derive(Clone, Copy)]
enum Fate {
    Vip(Vip),
    Held,
    Node,
    Unsaid,
}

fn is_own(ip: PodIp, pod: &Pod, observed: &Observed) -> bool {
    let of_node = observed.nodes.iter().any(|node| node.addresses.contains(&ip.addr()));
    let newer = observed.pods.iter().any(|other| {
        !other.finished
            && !other.host_network
            && other.ips.contains(&ip)
            && (other.created, &other.uid) > (pod.created, &pod.uid)
    });
    !of_node && !newer
}

fn fate(pod: &Pod, ipv4: bool, observed: &Observed, resolved: &Resolved) -> Fate {
    let about = observed.egresses.iter().filter(|egress| {
        let family = egress.spec.ip.parse::<Vip>().map_or(ipv4, Vip::is_ipv4);
        family == ipv4
    });
    let ranked = about.filter_map(|egress| Some((rank(egress, pod, observed)?, egress)));
    let winner = ranked.min_by_key(|(rank, egress)| {
        let meta = &egress.metadata;
        let created = meta.creation_timestamp.as_ref().unwrap().0;
        (*rank, created, meta.name.clone(), meta.namespace.clone())
    });
    let Some((_, egress)) = winner else { return Fate::Unsaid };
    let drop = egress.spec.when_unavailable == WhenUnavailable::Drop;
    match usable(egress, observed, resolved) {
        Some((vip, held)) if held || drop => Fate::Vip(vip),
        _ if drop => Fate::Held,
        _ => Fate::Node,
    }
}

/// The VIP of the Egress, if it may use it, and whether a node holds it.
fn usable(egress: &crd::Egress, observed: &Observed, resolved: &Resolved) -> Option<(Vip, bool)> {
    let vip: Vip = egress.spec.ip.parse().ok()?;
    let is_accepted = |object: &&Arc<crd::Vip>| {
        object.spec.ip.parse() == Ok(vip)
            && resolved.vips.iter().any(|(key, verdict)| {
                Some(&key.name) == object.metadata.name.as_ref()
                    && Some(&key.namespace) == object.metadata.namespace.as_ref()
                    && verdict.accepted.holds()
            })
    };
    let object = observed.vips.iter().find(is_accepted)?;
    let own = vec![OWN.to_owned()];
    let permitted = object.spec.namespaces.as_ref().unwrap_or(&own);
    let from = egress.metadata.namespace.clone().unwrap();
    let held = observed.nodes.iter().any(|node| {
        observed.reports.get(&node.name).is_some_and(|report| report.holds.contains_key(&vip))
    });
    (permitted.contains(&from) || permitted.contains(&"*".to_owned())).then_some((vip, held))
}

/// How closely the Egress names the pod, if it does and may; 0 is closest.
fn rank(egress: &crd::Egress, pod: &Pod, observed: &Observed) -> Option<u8> {
    let spec = &egress.spec;
    let from = egress.metadata.namespace.as_deref()?;
    let namespace = spec.namespace.as_deref().unwrap_or(from);
    if pod.namespace != namespace || (namespace != from && from != OWN) {
        return None;
    }
    let controls = |kind: Kind| {
        let owner = pod.owner.as_ref()?;
        if owner.kind == kind {
            return Some(owner.name.clone());
        }
        match observed.owned.iter().find(|owned| owned.uid == owner.uid) {
            Some(middle) => {
                middle.owner.as_ref().filter(|by| by.kind == kind).map(|by| by.name.clone())
            }
            None if kind == Kind::Deployment && owner.kind == Kind::ReplicaSet => {
                owner.name.strip_suffix("-77").map(str::to_owned)
            }
            None => None,
        }
    };
    let name = spec.name.clone();
    let (rank, matches) = match (spec.kind.as_str(), &spec.selector) {
        ("pod", Some(_)) => (2, pod.labels.contains_key("app")),
        ("pod", None) => (0, name == Some(pod.name.clone())),
        ("rs", None) => (1, name.is_some() && controls(Kind::ReplicaSet) == name),
        ("deployment", None) => (1, name.is_some() && controls(Kind::Deployment) == name),
        ("sts", None) => (1, name.is_some() && controls(Kind::StatefulSet) == name),
        ("namespace", None) => (3, true),
        _ => return None,
    };
    matches.then_some(rank)
}
