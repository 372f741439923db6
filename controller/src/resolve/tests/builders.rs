//! Small clusters for tests: what is not said is as usual.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use shared::config_map::NodeReport;
use shared::crd::{self, EgressMapperSpec, EgressSpec, Kind, VipSpec, WhenUnavailable};
use shared::{PodIp, Vip};

use crate::model::{EgressVerdict, Node, ObjectKey, Observed, Owned, Owner, Pod, Resolved};
use crate::model::{MapperVerdict, VipVerdict};
use crate::resolve;

/// The namespace the controller runs in.
pub(super) const OWN: &str = "default";
/// A VIP that most tests use.
pub(super) const VIP: &str = "192.168.122.222";

/// Seconds after the beginning.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

pub(super) fn cluster() -> Observed {
    Observed { namespace: OWN.to_owned(), ..Observed::default() }
}

fn born<T: Resource>(mut object: T, namespace: &str, seconds: i64) -> T {
    object.meta_mut().namespace = Some(namespace.to_owned());
    object.meta_mut().creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(seconds)));
    object
}

pub(super) fn vip(name: &str, ip: &str) -> crd::Vip {
    born(crd::Vip::new(name, VipSpec { ip: ip.to_owned(), ..VipSpec::default() }), OWN, 0)
}

/// An Egress for `default/NAME`, created when the cluster was.
pub(super) fn egress(name: &str, ip: &str, kind: &str, target: &str) -> crd::Egress {
    let spec = EgressSpec {
        ip: ip.to_owned(),
        kind: kind.to_owned(),
        name: (!target.is_empty()).then(|| target.to_owned()),
        ..EgressSpec::default()
    };
    born(crd::Egress::new(name, spec), OWN, 0)
}

pub(super) fn mapper(name: &str, spec: EgressMapperSpec) -> crd::EgressMapper {
    born(crd::EgressMapper::new(name, spec), OWN, 0)
}

/// A live pod of namespace default on node1.
pub(super) fn pod(name: &str, ips: &[&str]) -> Pod {
    Pod {
        namespace: OWN.to_owned(),
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        labels: Arc::default(),
        owner: None,
        node: Some("node1".to_owned()),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        host_network: false,
        finished: false,
        terminating: false,
        created: at(0),
    }
}

pub(super) fn owner(kind: Kind, name: &str) -> Owner {
    Owner { kind, name: name.to_owned(), uid: format!("uid-of-{kind}-{name}") }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.to_owned(),
        addresses: vec![address.parse().unwrap()],
        internal: vec![address.parse().unwrap()],
        ready: true,
        ..Node::default()
    }
}

/// Changes of one thing, to be chained.
pub(super) trait Change: Sized {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl<T> Change for T {}

/// Where and when an object was made.
pub(super) trait Born: Resource + Sized {
    fn in_namespace(mut self, namespace: &str) -> Self {
        self.meta_mut().namespace = Some(namespace.to_owned());
        self
    }

    fn created(mut self, seconds: i64) -> Self {
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(seconds));
        self.meta_mut().creation_timestamp = Some(time);
        self
    }
}

impl<T: Resource> Born for T {}

pub(super) fn or_node_address(egress: crd::Egress) -> crd::Egress {
    egress.with(|egress| egress.spec.when_unavailable = WhenUnavailable::NodeAddress)
}

pub(super) trait Build: Sized {
    fn vip(self, vip: crd::Vip) -> Self;
    fn egress(self, egress: crd::Egress) -> Self;
    fn mapper(self, mapper: crd::EgressMapper) -> Self;
    fn pod(self, pod: Pod) -> Self;
    fn owned(self, kind: Kind, name: &str, by: Option<Owner>) -> Self;
    fn node(self, node: Node) -> Self;
    fn holds(self, node: &str, vip: &str, since: i64) -> Self;
    fn published(self, vip: &str, route_id: u32) -> Self;
}

impl Build for Observed {
    fn vip(mut self, vip: crd::Vip) -> Self {
        self.vips.push(Arc::new(vip));
        self
    }

    fn egress(mut self, egress: crd::Egress) -> Self {
        self.egresses.push(Arc::new(egress));
        self
    }

    fn mapper(mut self, mapper: crd::EgressMapper) -> Self {
        self.mappers.push(Arc::new(mapper));
        self
    }

    fn pod(mut self, pod: Pod) -> Self {
        self.pods.push(Arc::new(pod));
        self
    }

    fn owned(mut self, kind: Kind, name: &str, by: Option<Owner>) -> Self {
        let Owner { kind, name, uid } = owner(kind, name);
        let namespace = OWN.to_owned();
        self.owned.push(Arc::new(Owned { uid, kind, namespace, name, owner: by }));
        self
    }

    fn node(mut self, node: Node) -> Self {
        self.nodes.push(Arc::new(node));
        self
    }

    fn holds(mut self, node: &str, vip: &str, since: i64) -> Self {
        let report: &mut NodeReport = self.reports.entry(node.to_owned()).or_default();
        report.holds.insert(vip.parse().unwrap(), at(since));
        self
    }

    fn published(mut self, vip: &str, route_id: u32) -> Self {
        self.published_route_ids
            .insert(vip.parse().unwrap(), shared::RouteId::try_from(route_id).unwrap());
        self
    }
}

/// What a test looks at.
pub(super) struct Outcome(pub(super) Resolved);

pub(super) fn outcome(observed: &Observed) -> Outcome {
    Outcome(resolve(observed))
}

fn own(name: &str) -> ObjectKey {
    match name.split_once('/') {
        Some((namespace, name)) => {
            ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }
        }
        None => ObjectKey { namespace: OWN.to_owned(), name: name.to_owned() },
    }
}

impl Outcome {
    /// Every published address: "IP VIP", or "IP held"; sorted.
    pub(super) fn mapped(&self) -> Vec<String> {
        let all = self.0.shards.values().flatten();
        let text = |(ip, vip): (&PodIp, &Option<Vip>)| match vip {
            Some(vip) => format!("{ip} {vip}"),
            None => format!("{ip} held"),
        };
        let mut lines: Vec<String> = all.map(text).collect();
        lines.sort();
        lines
    }

    pub(super) fn egress(&self, name: &str) -> &EgressVerdict {
        &self.0.egresses[&own(name)]
    }

    /// "Reason: message" of the Egress.
    pub(super) fn said(&self, name: &str) -> String {
        let ready = &self.egress(name).ready;
        format!("{:?}: {}", ready.reason, ready.message)
    }

    pub(super) fn vip(&self, name: &str) -> &VipVerdict {
        &self.0.vips[&own(name)]
    }

    /// "Reason: message" of the Vip's condition Accepted.
    pub(super) fn accepted(&self, name: &str) -> String {
        let accepted = &self.vip(name).accepted;
        format!("{:?}: {}", accepted.reason, accepted.message)
    }

    pub(super) fn mapper(&self, name: &str) -> &MapperVerdict {
        &self.0.mappers[&own(name)]
    }
}
