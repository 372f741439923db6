//! What pods of a real Kubernetes look like from outside while pods, owners, Egresses and the API
//! server come and go.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Capture, Family, Installation, RunningPod, UdpProbe, UdpServer, eventually};

const SOON: Duration = Duration::from_secs(40);
const PER_SECOND: u32 = 200;
/// Kubelets wait longer each time before they start a container again.
const RESTARTED_WITHIN: Duration = Duration::from_mins(3);
const LATE_PORT: u16 = 9205;
/// Packets that show that nothing else is seen.
const ENOUGH: u64 = 100;

/// One test at a time: they share a cluster of two processors, and one takes its API server away.
struct Bed {
    installation: &'static Installation,
    port: u16,
    _server: UdpServer,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    /// `port` tells this test's packets from those of others.
    fn take(port: u16) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let installation = Installation::shared()?;
        let server = UdpServer::start(installation.cluster().lab().outside(), port)?;
        Ok(Self { installation, port, _server: server, _turn: turn })
    }

    fn call(&self, pod: &RunningPod) -> Result<UdpProbe> {
        let cluster = self.installation.cluster();
        let outside = SocketAddr::new(cluster.lab().outside().ip(Family::V4), self.port);
        UdpProbe::start(&cluster.pod_host(pod)?, outside, PER_SECOND)
    }

    fn capture(&self) -> Result<Capture> {
        Capture::start(self.installation.cluster().lab())
    }

    fn sources(&self, capture: &Capture) -> Result<Vec<IpAddr>> {
        let port = self.port;
        Ok(capture.sources_where(|flow| flow.destination_port == port)?.into_keys().collect())
    }

    fn node_of(&self, pod: &RunningPod) -> Result<IpAddr> {
        let nodes = self.installation.cluster().lab().nodes();
        let node = nodes.iter().find(|node| node.name == pod.node).context("no node of the pod")?;
        Ok(node.ip(Family::V4))
    }

    /// Pods with that label in that namespace, once `count` of them are ready.
    fn pods(&self, namespace: &str, label: &str, count: usize) -> Result<Vec<RunningPod>> {
        let cluster = self.installation.cluster();
        let line = format!("kubectl get pods -n {namespace} -l {label} -o name");
        let mut names = Vec::new();
        eventually(SOON, || {
            let text = self.installation.sh(&line).unwrap_or_default();
            names = text.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect();
            names.len() == count
        });
        names.iter().map(|name| cluster.await_pod(namespace, name)).collect()
    }
}

/// Soon the host outside sees the pod with that address, and from then on with no other.
fn assert_seen_as(bed: &Bed, pod: &RunningPod, expected: IpAddr) -> Result<()> {
    let probe = bed.call(pod)?;
    eventually(SOON, || probe.seen_as() == Some(expected));
    assert_stays(bed, &[&probe], &[expected])
}

/// From now on the host outside sees these addresses and no others.
fn assert_stays(bed: &Bed, probes: &[&UdpProbe], expected: &[IpAddr]) -> Result<()> {
    let capture = bed.capture()?;
    for probe in probes {
        let before = probe.received();
        eventually(SOON, || probe.received() > before + ENOUGH);
    }
    assert_eq!(bed.sources(&capture)?, expected, "seen: {}", capture.text());
    Ok(())
}

/// A namespace with a `default` service account.
fn namespace(bed: &Bed, name: &str) -> Result<()> {
    bed.installation.sh(&format!("kubectl create namespace {name}"))?;
    bed.installation.wait_for(name, "serviceaccount/default", "create")
}

fn workload(kind: &str, namespace: &str, name: &str, replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1
kind: {kind}
metadata: {{namespace: {namespace}, name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, of: {kind}}}}}
    spec:
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
            labelSelector: {{matchLabels: {{app: {name}}}}}}}
      containers: [{{name: main, image: 'localhost/busybox:1', imagePullPolicy: Never}}]
"
    )
}

#[test]
fn owners_selectors_and_namespaces_are_followed() -> Result<()> {
    let bed = Bed::take(9201)?;
    let installation = bed.installation;
    namespace(&bed, "kinds")?;
    namespace(&bed, "whole")?;
    let [by_owner, by_selector, by_namespace]: [IpAddr; 3] =
        ["192.168.122.201", "192.168.122.202", "192.168.122.203"].map(|ip| ip.parse().unwrap());
    for (name, ip) in [("owner", by_owner), ("selector", by_selector), ("whole", by_namespace)] {
        installation.create_vip(name, &ip.to_string())?;
    }
    // Egresses for other namespaces are made in the controller's.
    let egress = |name: &str, spec: String| installation.create_egress("default", name, &spec);
    for (kind, name) in [("Deployment", "web"), ("StatefulSet", "db")] {
        egress(name, format!("{{ip: {by_owner}, kind: {kind}, namespace: kinds, name: {name}}}"))?;
        installation.apply(&workload(kind, "kinds", name, 3))?;
    }
    egress(
        "labelled",
        format!(
            "{{ip: {by_selector}, kind: pod, namespace: kinds, selector: {{matchLabels: {{tier: front}}}}}}"
        ),
    )?;
    egress(
        "everything",
        format!("{{ip: {by_namespace}, kind: namespace, namespace: whole, name: whole}}"),
    )?;

    for name in ["web", "db"] {
        let pods = bed.pods("kinds", &format!("app={name}"), 3)?;
        let nodes: BTreeSet<_> = pods.iter().map(|pod| &pod.node).collect();
        assert_eq!(nodes.len(), 3, "one pod on each node");
        for pod in &pods {
            assert_seen_as(&bed, pod, by_owner)?;
        }
    }
    let cluster = installation.cluster();
    let front = cluster.run_pod("kinds", "front", None, "{tier: front}")?;
    assert_seen_as(&bed, &front, by_selector)?;
    let back = cluster.run_pod("kinds", "back", None, "{tier: back}")?;
    assert_seen_as(&bed, &back, bed.node_of(&back)?)?;
    let any = cluster.run_pod("whole", "any", None, "{}")?;
    assert_seen_as(&bed, &any, by_namespace)?;

    // The label goes, and with it the mapping.
    installation.sh("kubectl label pod -n kinds front tier=back --overwrite")?;
    assert_seen_as(&bed, &front, bed.node_of(&front)?)?;
    // A StatefulSet's pod is made again with its name: the next one, too, has the VIP.
    installation.sh("kubectl delete pod -n kinds db-0")?;
    for pod in bed.pods("kinds", "app=db", 3)? {
        assert_seen_as(&bed, &pod, by_owner)?;
    }
    installation.sh("kubectl delete namespace kinds whole --wait=false")?;
    installation.sh("kubectl delete egress web db labelled everything")?;
    installation.sh("kubectl delete vip owner selector whole").map(drop)
}

#[test]
fn an_egress_changes_its_vip_and_goes_without_another_address_being_seen() -> Result<()> {
    let bed = Bed::take(9202)?;
    let installation = bed.installation;
    let [one, two]: [IpAddr; 2] =
        ["192.168.122.211", "192.168.122.212"].map(|ip| ip.parse().unwrap());
    installation.create_vip("one", &one.to_string())?;
    installation.create_vip("two", &two.to_string())?;
    let spec = |ip: IpAddr| format!("{{ip: {ip}, kind: pod, name: mover}}");
    installation.create_egress("default", "mover", &spec(one))?;
    let pod = installation.cluster().run_pod("default", "mover", Some(2), "{}")?;
    let probe = bed.call(&pod)?;
    eventually(SOON, || probe.seen_as() == Some(one));

    let capture = bed.capture()?;
    installation.create_egress("default", "mover", &spec(two))?;
    eventually(SOON, || probe.seen_as() == Some(two));
    assert_eq!(bed.sources(&capture)?, [one, two], "seen: {}", capture.text());
    assert_stays(&bed, &[&probe], &[two])?;

    let capture = bed.capture()?;
    installation.sh("kubectl delete egress mover")?;
    let node = bed.node_of(&pod)?;
    eventually(SOON, || probe.seen_as() == Some(node));
    let mut expected = vec![node, two];
    expected.sort_unstable();
    assert_eq!(bed.sources(&capture)?, expected, "seen: {}", capture.text());
    assert_stays(&bed, &[&probe], &[node])?;
    installation.cluster().delete_pod(&pod)?;
    installation.sh("kubectl delete vip one two").map(drop)
}

#[test]
fn a_pod_that_gets_the_address_of_a_mapped_one_is_not_mapped() -> Result<()> {
    let bed = Bed::take(9203)?;
    let installation = bed.installation;
    let cluster = installation.cluster();
    let vip: IpAddr = "192.168.122.221".parse()?;
    installation.create_vip("reused", &vip.to_string())?;
    installation.create_egress(
        "default",
        "reused",
        &format!("{{ip: {vip}, kind: pod, name: before}}"),
    )?;
    let before = cluster.run_pod("default", "before", Some(3), "{}")?;
    assert_seen_as(&bed, &before, vip)?;
    cluster.delete_pod(&before)?;

    // The next address that the node gives away is the one after the last.
    let node = cluster.node(3);
    for (range, ip) in before.ips.iter().enumerate() {
        let last = match ip {
            IpAddr::V4(ip) => Ipv4Addr::from(u32::from(*ip) - 1).to_string(),
            IpAddr::V6(ip) => Ipv6Addr::from(u128::from(*ip) - 1).to_string(),
        };
        let line = format!("printf {last} > /run/cni-ipam/pods/last_reserved_ip.{range}");
        node.run(&["sh", "-c", &line])?;
    }
    let after = cluster.run_pod("default", "after", Some(3), "{}")?;
    assert_eq!(after.ips, before.ips, "this test is about the same address");
    let capture = bed.capture()?;
    let probe = bed.call(&after)?;
    let expected = bed.node_of(&after)?;
    eventually(SOON, || probe.received() > ENOUGH);
    assert_eq!(bed.sources(&capture)?, [expected], "seen: {}", capture.text());
    drop(probe);
    cluster.delete_pod(&after)?;
    installation.sh("kubectl delete egress reused && kubectl delete vip reused").map(drop)
}

#[test]
fn nothing_is_lost_or_leaks_while_the_api_server_is_gone_and_all_restart() -> Result<()> {
    let bed = Bed::take(9204)?;
    let installation = bed.installation;
    let cluster = installation.cluster();
    let vip: IpAddr = "192.168.122.231".parse()?;
    installation.create_vip("outage", &vip.to_string())?;
    installation.create_egress(
        "default",
        "outage",
        &format!("{{ip: {vip}, kind: pod, selector: {{matchLabels: {{app: outage}}}}}}"),
    )?;
    let pods = (1..=3)
        .map(|node| {
            cluster.run_pod("default", &format!("outage-{node}"), Some(node), "{app: outage}")
        })
        .collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        let probe = bed.call(pod)?;
        eventually(SOON, || probe.seen_as() == Some(vip));
    }
    installation.wait_for("default", "egress/outage", "condition=Ready")?;
    let programs =
        [installation.pods_of("app=kube-egress")?, installation.pods_of("name=egress-mapper")?];
    let programs = programs.concat();
    assert_eq!(programs.len(), 4);
    let containers =
        programs.iter().map(|pod| installation.container_of(pod)).collect::<Result<Vec<_>>>()?;

    let capture = bed.capture()?;
    let probes = pods.iter().map(|pod| bed.call(pod)).collect::<Result<Vec<_>>>()?;
    cluster.server().kill()?;
    for container in &containers {
        container.kill()?;
    }
    // They come up again by their kubelets alone, and have no API server to ask.
    for container in &containers {
        eventually(RESTARTED_WITHIN, || container.has_successor().unwrap_or(false));
    }
    std::thread::sleep(outage());
    cluster.server().restart()?;
    for set in ["daemonset/kube-egress", "deployment/egress-mapper"] {
        cluster.wait_rollout("default", set, RESTARTED_WITHIN)?;
    }
    let reports = probes.into_iter().map(UdpProbe::stop).collect::<Result<Vec<_>>>()?;
    // Agents that are killed move no VIP. A keepalived that a busy machine lets wait for too long
    // does, and costs what a failover costs.
    let holders: BTreeSet<_> = capture
        .flows()?
        .into_keys()
        .filter(|flow| flow.source == vip)
        .map(|flow| flow.source_mac)
        .collect();
    let bearable = if holders.len() > 1 { u64::from(PER_SECOND) } else { 0 };
    for report in reports {
        assert!(report.lost <= bearable, "{report:?} of {holders:?}: {}", capture.text());
        assert_eq!(report.refused, 0, "of {} packets", report.sent);
    }
    assert_eq!(bed.sources(&capture)?, [vip], "seen: {}", capture.text());

    // The controller works again: what is new is mapped. Scheduler and kubelets may take more than
    // a minute to hear of new pods after a long outage.
    let late = cluster
        .run_pod("default", "outage-late", Some(1), "{app: outage}")
        .or_else(|_| cluster.await_pod("default", "outage-late"))?;
    let outside = cluster.lab().outside();
    let _server = UdpServer::start(outside, LATE_PORT)?;
    let there = SocketAddr::new(outside.ip(Family::V4), LATE_PORT);
    let probe = UdpProbe::start(&cluster.pod_host(&late)?, there, PER_SECOND)?;
    eventually(RESTARTED_WITHIN, || probe.seen_as() == Some(vip));

    installation.sh("kubectl delete pod -l app=outage")?;
    installation.sh("kubectl delete egress outage && kubectl delete vip outage").map(drop)
}

/// How long the API server is away after all have restarted.
fn outage() -> Duration {
    let seconds = std::env::var("OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}
