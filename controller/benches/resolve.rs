//! How long one pass of the resolver takes at 10 000 pods and 1 000 Egresses of every kind, and how long
//! it takes to find that nothing has to change about the blocks of 200 VIPs on the direct path.
//!
//! `cargo bench -p controller --bench resolve`

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::blocks::{Allocator, Situation, Wanted};
use controller::model::{Node, Observed, Owned, Owner, Pod};
use controller::resolve;
use k8s_openapi::jiff::Timestamp;
use shared::config_map::{BlockUse, NodeReport, VipBlocks};
use shared::crd::{self, EgressMapperSpec, EgressSpec, Kind, LabelSelector, VipSpec};
use shared::{Vip, VipPath};

const PODS: usize = 10_000;
const EGRESSES: usize = 1_000;
const NODES: usize = 100;
const VIPS: usize = 200;
const NAMESPACES: usize = 50;
const LARGE: usize = 5_000;
const ROUNDS: usize = 50;

fn main() -> std::io::Result<()> {
    let observed = observed();
    let mapped: usize = resolve(&observed).shards.values().map(BTreeMap::len).sum();
    let times = timed(|| drop(black_box(resolve(black_box(&observed)))));
    writeln!(
        std::io::stdout(),
        "{PODS} pods, {EGRESSES} Egresses, {VIPS} Vips, {NODES} nodes: {mapped} addresses mapped; \
         {times}"
    )?;
    blocks()
}

/// Median and 95th percentile.
fn timed(mut work: impl FnMut()) -> String {
    let round = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..ROUNDS).map(round).collect();
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    format!("median {:.1?}, 95th percentile {:.1?}", at(50), at(95))
}

/// Each VIP has pods on as many nodes as there are blocks.
fn blocks() -> std::io::Result<()> {
    let address = |n: usize| format!("10.0.{}.{}", n / 250, n % 250 + 1).parse().into_iter();
    let nodes: BTreeMap<String, Vec<IpAddr>> =
        (0..LARGE).map(|n| (format!("node{n}"), address(n).collect())).collect();
    let vips: Vec<Vip> = (0..VIPS).filter_map(|n| vip_address(n).parse().ok()).collect();
    let with_pods = |vip: usize| nodes.keys().cycle().skip(vip * 20).take(47).map(String::as_str);
    let direct: BTreeMap<Vip, BTreeSet<&str>> =
        vips.iter().enumerate().map(|(n, vip)| (*vip, with_pods(n).collect())).collect();
    let mut situation = Situation {
        now: Instant::now().into(),
        direct,
        published: BTreeMap::new(),
        nodes: nodes.iter().map(|(name, of)| (name.as_str(), of.as_slice())).collect(),
        reports: BTreeMap::new(),
    };
    let mut allocator = Allocator::default();
    let first = allocator.plan(&situation);
    let mut published: BTreeMap<Vip, VipBlocks> = BTreeMap::new();
    let mut reports: BTreeMap<&str, BTreeMap<Vip, BlockUse>> = BTreeMap::new();
    for (vip, wanted) in first.wanted {
        let Wanted::Blocks(wanted) = wanted else { continue };
        for (node, of) in &wanted {
            let of =
                BlockUse { blocks: of.open.clone(), path: VipPath::Direct, ..BlockUse::default() };
            if let Some((name, _)) = nodes.get_key_value(node) {
                reports.entry(name).or_default().insert(vip, of);
            }
        }
        published.insert(vip, wanted);
    }
    situation.published = published.iter().map(|(vip, of)| (*vip, of)).collect();
    situation.reports = reports.iter().map(|(node, of)| (*node, of)).collect();
    let times = timed(|| drop(black_box(allocator.plan(black_box(&situation)))));
    let given: usize = published.values().map(BTreeMap::len).sum();
    writeln!(
        std::io::stdout(),
        "{VIPS} VIPs on the direct path, {LARGE} nodes, {given} blocks given: {times}"
    )
}

fn observed() -> Observed {
    let mut observed = Observed { namespace: "default".to_owned(), ..Observed::default() };
    let subnet = EgressMapperSpec {
        pod_subnet: Some("10.244.0.0/16".to_owned()),
        ..EgressMapperSpec::default()
    };
    observed.mappers.push(Arc::new(within("default", crd::EgressMapper::new("m", subnet))));
    for n in 0..NODES {
        let name = format!("node{n}");
        let mut report = NodeReport { synced: true, ..NodeReport::default() };
        for vip in (0..VIPS).filter(|vip| vip % NODES == n) {
            report.holds.extend(vip_address(vip).parse().map(|vip| (vip, Timestamp::UNIX_EPOCH)));
        }
        observed.reports.insert(name.clone(), report);
        let addresses = format!("192.168.0.{n}").parse().into_iter().collect();
        observed.nodes.push(Arc::new(Node { name, addresses, ready: true, ..Node::default() }));
    }
    for n in 0..VIPS {
        let namespaces = Some(vec!["*".to_owned()]);
        let spec = VipSpec { ip: vip_address(n), namespaces, ..VipSpec::default() };
        observed.vips.push(Arc::new(within("default", crd::Vip::new(&format!("vip{n}"), spec))));
    }
    for n in 0..PODS {
        observed.pods.push(Arc::new(pod(n)));
    }
    for n in 0..PODS / 10 {
        observed.owned.push(Arc::new(Owned {
            uid: format!("replica-set-{n}"),
            kind: Kind::ReplicaSet,
            namespace: format!("ns{}", n % NAMESPACES),
            name: format!("web{n}-5d4f"),
            owner: Some(owner(Kind::Deployment, &format!("web{n}"), &format!("deployment-{n}"))),
        }));
    }
    for n in 0..EGRESSES {
        let egress = crd::Egress::new(&format!("egress{n}"), egress(n));
        observed.egresses.push(Arc::new(within(&format!("ns{}", n % NAMESPACES), egress)));
    }
    observed
}

/// Of ten: five for Deployments, two for pods, two selectors, one for the namespace.
fn egress(n: usize) -> EgressSpec {
    let ip = vip_address(n % VIPS);
    let named = |kind: &str, name: String| EgressSpec {
        ip: ip.clone(),
        kind: kind.to_owned(),
        name: Some(name),
        ..EgressSpec::default()
    };
    match n / NAMESPACES % 10 {
        0..5 => named("deployment", format!("web{n}")),
        5 | 6 => named("pod", format!("pod{n}")),
        7 | 8 => {
            let match_labels = [("app".to_owned(), format!("web{n}"))].into();
            let selector = Some(LabelSelector { match_labels, ..LabelSelector::default() });
            EgressSpec { selector, name: None, ..named("pod", String::new()) }
        }
        _ => EgressSpec { name: None, ..named("namespace", String::new()) },
    }
}

fn pod(n: usize) -> Pod {
    // Ten pods of one ReplicaSet, in the namespace of that.
    let set = n / 10;
    Pod {
        namespace: format!("ns{}", set % NAMESPACES),
        name: format!("pod{n}"),
        uid: format!("uid-{n}"),
        labels: Arc::new([("app".to_owned(), format!("web{set}"))].into()),
        owner: Some(owner(
            Kind::ReplicaSet,
            &format!("web{set}-5d4f"),
            &format!("replica-set-{set}"),
        )),
        node: Some(format!("node{}", n % NODES)),
        ips: format!("10.244.{}.{}", n / 250, n % 250 + 1).parse().into_iter().collect(),
        host_network: false,
        finished: false,
        terminating: false,
        created: Timestamp::UNIX_EPOCH,
    }
}

fn owner(kind: Kind, name: &str, uid: &str) -> Owner {
    Owner { kind, name: name.to_owned(), uid: uid.to_owned() }
}

fn vip_address(n: usize) -> String {
    format!("198.51.100.{}", n + 1)
}

fn within<T: kube::Resource>(namespace: &str, mut object: T) -> T {
    object.meta_mut().namespace = Some(namespace.to_owned());
    object
}
