//! Small random clusters whose objects often have to do with one another.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use shared::crd::egress_mapper::Rebalance;
use shared::crd::{self, EgressMapperSpec, Kind, LabelSelector};

use super::super::builders::{
    Born, Build, Change, OWN, at, cluster, egress, labels, mapper, node, or_node_address, owner,
    pod, vip,
};
use crate::model::{Node, Observed, Pod};

const NAMESPACES: [&str; 2] = [OWN, "b"];
const VIPS: [&str; 7] = [
    "192.168.122.1",
    "192.168.122.2",
    "192.168.122.3",
    "2001:db8::1",
    "2001:db8::2",
    "10.244.1.3",
    "192.168.122.101",
];

/// Distinct names: the place in the list.
fn named<T>(prefix: &'static str, things: Vec<T>) -> impl Iterator<Item = (String, T)> {
    things.into_iter().enumerate().map(move |(n, thing)| (format!("{prefix}{n}"), thing))
}

pub(super) fn any_cluster() -> impl Strategy<Value = Observed> {
    let objects = (
        vec(any_vip(), 0..5),
        vec(any_egress(), 0..7),
        vec(any_pod(), 0..9),
        vec(any_mapper(), 0..3),
        0usize..4,
    );
    let rest = (
        vec((0usize..4, select(VIPS.to_vec()), 0i64..4), 0..6),
        vec((select(VIPS.to_vec()), 1u32..5), 0..3),
        vec(option::of(select(vec!["web", "api"])), 2),
        vec(any::<bool>(), 4),
    );
    (objects, rest).prop_map(
        |((vips, egresses, pods, mappers, nodes), (holds, ids, middles, synced))| {
            let mut all = cluster();
            for (name, vip) in named("v", vips) {
                all = all.vip(vip.with(|vip| vip.metadata.name = Some(name)));
            }
            for (name, egress) in named("e", egresses) {
                all = all.egress(egress.with(|egress| egress.metadata.name = Some(name)));
            }
            for (n, pod) in pods.into_iter().enumerate() {
                // Names repeat between namespaces only; addresses repeat now and then.
                all = all.pod(pod.with(|pod| {
                    pod.name = format!("p{n}");
                    pod.uid = format!("uid{n}");
                }));
            }
            for (name, mapper) in named("m", mappers) {
                all = all.mapper(mapper.with(|mapper| mapper.metadata.name = Some(name)));
            }
            for n in 0..nodes {
                all = all.node(any_nth_node(n));
            }
            for (node, vip, since) in holds {
                all = all.holds(&format!("node{node}"), vip, since);
            }
            for (n, synced) in synced.into_iter().enumerate() {
                all.reports.entry(format!("node{n}")).or_default().synced = synced;
            }
            for (vip, id) in ids {
                all = all.published(vip, id);
            }
            for (n, deployment) in middles.into_iter().enumerate() {
                let by = deployment.map(|name| owner(Kind::Deployment, name));
                all = all.owned(Kind::ReplicaSet, &format!("rs{n}"), by);
            }
            all
        },
    )
}

fn any_nth_node(n: usize) -> Node {
    node(&format!("node{n}"), &format!("192.168.122.{}", 101 + n)).with(|node| {
        node.unschedulable = n == 3;
        node.ready = n != 1;
        if n == 2 {
            node.labels = labels(&[("egress.mapper.com/drain", "true")]);
        }
        node.pod_cidrs = vec![format!("10.250.{n}.0/24").parse().unwrap()];
    })
}

prop_compose! {
    fn any_vip()(
        ip in select(VIPS.to_vec()),
        namespace in select(vec![OWN, OWN, OWN, "b"]),
        created in 0i64..3,
        routeid in option::of(1i64..4),
        namespaces in option::of(select(vec!["*", "b", OWN])),
        preferred_node in option::of(select(vec!["node0", "node1", "node3", "nowhere"])),
    ) -> crd::Vip {
        vip("v", ip).in_namespace(namespace).created(created).with(|vip| {
            vip.spec.routeid = routeid;
            vip.spec.preferred_node = preferred_node.map(str::to_owned);
            vip.spec.namespaces = namespaces.map(|namespace| vec![namespace.to_owned()]);
        })
    }
}

prop_compose! {
    fn any_egress()(
        ip in select([&VIPS[..], &["192.168.122.9", "nonsense"]].concat()),
        from in select(NAMESPACES.to_vec()),
        to in option::of(select(NAMESPACES.to_vec())),
        (kind, name) in select(vec![
            ("pod", "p0"), ("pod", "p1"), ("pod", "p2"), ("rs", "rs0"), ("deployment", "web"),
            ("sts", "db"), ("namespace", ""), ("pod", ""), ("service", "p0"), ("job", ""),
        ]),
        created in 0i64..3,
        node_address: bool,
    ) -> crd::Egress {
        let egress = egress("e", ip, kind, name).in_namespace(from).created(created);
        let egress = if node_address { or_node_address(egress) } else { egress };
        egress.with(|egress| {
            egress.spec.namespace = to.map(str::to_owned);
            if kind == "pod" && name.is_empty() {
                let match_labels = labels(&[("app", "web")]);
                egress.spec.selector =
                    Some(LabelSelector { match_labels, ..LabelSelector::default() });
            }
        })
    }
}

prop_compose! {
    fn any_pod()(
        namespace in select(NAMESPACES.to_vec()),
        ips in select(vec![
            vec!["10.244.1.1"], vec!["10.244.1.2", "fd00::2"], vec!["10.244.1.3"], vec!["fd00::4"],
            vec!["10.244.1.5", "fd00::5"], vec!["10.244.1.6"], vec!["10.244.1.7"], vec![],
            vec!["192.168.122.101"],
        ]),
        node in 0usize..4,
        owner in option::of(select(vec![
            (Kind::ReplicaSet, "rs0"), (Kind::ReplicaSet, "rs1"), (Kind::StatefulSet, "db"),
            (Kind::ReplicaSet, "web-77"),
        ])),
        labelled: bool,
        state in 0usize..8,
        created in 0i64..3,
    ) -> Pod {
        pod("p", &ips).with(|pod| {
            pod.namespace = namespace.to_owned();
            pod.node = Some(format!("node{node}"));
            pod.owner = owner.map(|(kind, name)| super::super::builders::owner(kind, name));
            let mut of = labels(&[("pod-template-hash", "77")]);
            if labelled {
                of.insert("app".to_owned(), "web".to_owned());
            }
            pod.labels = Arc::new(of);
            pod.finished = state == 0;
            pod.host_network = state == 1;
            pod.terminating = state == 2;
            pod.created = at(created);
        })
    }
}

prop_compose! {
    fn any_mapper()(
        pod_subnet in option::of(select(vec!["10.244.0.0/16", "10.244.1.1/24,fd00::/64", "0.0.0.0/0,x"])),
        excluded in vec(select(vec!["10.0.0.0/8", "::/0", "fd00::/8"]), 0..2),
        namespace in select(NAMESPACES.to_vec()),
        created in 0i64..3,
        rebalance in option::of(select(vec![Rebalance::Never, Rebalance::Always])),
    ) -> crd::EgressMapper {
        let spec = EgressMapperSpec {
            pod_subnet: pod_subnet.map(str::to_owned),
            rebalance,
            excluded_networks: excluded.into_iter().map(str::to_owned).collect(),
            ..EgressMapperSpec::default()
        };
        mapper("m", spec).in_namespace(namespace).created(created)
    }
}
