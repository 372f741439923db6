//! The walkthrough of the README and the removal, on a real Kubernetes, seen from outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{
    Capture, Family, Installation, RunningPod, UdpProbe, UdpServer, eventually, left_on, wait_until,
};

const VIP: &str = "192.168.122.222";
const PORT: u16 = 9100;
const SOON: Duration = Duration::from_secs(40);

/// What a pod looks like from outside.
struct Sight<'a> {
    installation: &'a Installation,
    outside: SocketAddr,
    _server: UdpServer,
}

impl<'a> Sight<'a> {
    fn of(installation: &'a Installation) -> Result<Self> {
        let host = installation.cluster().lab().outside();
        let outside = SocketAddr::new(host.ip(Family::V4), PORT);
        Ok(Self { installation, outside, _server: UdpServer::start(host, PORT)? })
    }

    /// The host outside sees the pod with that address, soon, and from then on with no other.
    fn assert_seen_as(&self, pod: &RunningPod, expected: IpAddr) -> Result<()> {
        let cluster = self.installation.cluster();
        let probe = UdpProbe::start(&cluster.pod_host(pod)?, self.outside, 200)?;
        let seen = wait_until(SOON, || probe.seen_as() == Some(expected));
        ensure!(seen, "seen as {:?}, not {expected}:\n{}", probe.seen_as(), self.state());
        let capture = Capture::start(cluster.lab())?;
        let before = probe.received();
        eventually(SOON, || probe.received() > before + 100);
        let sources = capture.sources_where(|flow| flow.destination_port == PORT)?;
        assert_eq!(sources.keys().collect::<Vec<_>>(), [&expected], "seen: {}", capture.text());
        Ok(())
    }

    /// What the cluster says of itself, for whoever has to find out what went wrong.
    fn state(&self) -> String {
        let states = [
            "kubectl get vips,egresses,configmaps,pods -A -o wide",
            "kubectl get vips,egresses,configmaps -o yaml",
            "kubectl logs -l name=egress-mapper --tail=40",
            "kubectl logs daemonset/kube-egress --all-pods --tail=40 --prefix",
            "kubectl logs daemonset/kube-keepalived-vip --all-pods --tail=40 --prefix",
        ];
        let said = |line| self.installation.sh(line).unwrap_or_else(|error| format!("{error:#}"));
        states.map(said).join("\n")
    }
}

fn node_address(installation: &Installation, pod: &RunningPod) -> Result<IpAddr> {
    let nodes = installation.cluster().lab().nodes();
    let node = nodes.iter().find(|node| node.name == pod.node).context("no node of the pod")?;
    Ok(node.ip(Family::V4))
}

/// Names of the resources of ours that the cluster has, ConfigMaps first.
fn ours(installation: &Installation) -> Result<Vec<String>> {
    let text = installation.sh(
        "kubectl get configmaps,serviceaccounts,roles,rolebindings,deployments,daemonsets,pods,leases,\
         clusterroles,clusterrolebindings,crds,validatingadmissionpolicies,\
         validatingadmissionpolicybindings --all-namespaces -o name",
    )?;
    let ours = ["egress", "keepalived", "vip"];
    Ok(text
        .lines()
        .filter(|line| ours.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_walkthrough_step_by_step() -> Result<()> {
    let installation = Installation::prepare()?;
    let sight = Sight::of(&installation)?;
    let vip: IpAddr = VIP.parse()?;

    // Deploy, again and again.
    assert_eq!(ours(&installation)?, [""; 0]);
    let printed = installation.sh("deploy/deploy.sh")?;
    assert_eq!(count(&printed, " created"), 20, "{printed}");
    let printed = installation.sh("deploy/deploy.sh")?;
    assert_eq!(count(&printed, " unchanged"), 20, "{printed}");
    let ready = "kubectl get deployment egress-mapper -o jsonpath={.status.readyReplicas}";
    assert_eq!(installation.sh(ready)?, "1\n");
    for set in ["kube-egress", "kube-keepalived-vip"] {
        let ready = format!("kubectl get daemonset {set} -o jsonpath={{.status.numberReady}}");
        assert_eq!(installation.sh(&ready)?, "3\n", "{set}");
    }

    // A VIP, an Egress, a pod.
    installation.sh("kubectl create -f deploy/crds/egress_v1alpha1_vip_cr.yaml")?;
    installation.sh("kubectl create -f deploy/crds/egress_v1alpha1_egress_cr.yaml")?;
    installation.wait_for("default", "vip/example-vip", "condition=Held")?;
    let cluster = installation.cluster();
    let first = cluster.run_pod("default", "pod1", Some(1), "{}")?;
    let other = cluster.run_pod("default", "pod2", Some(1), "{}")?;
    sight.assert_seen_as(&first, vip)?;
    sight.assert_seen_as(&other, node_address(&installation, &other)?)?;
    installation.wait_for("default", "egress/example-pod1-egress", "condition=Ready")?;

    for node in cluster.nodes() {
        let ours = left_on(node)?;
        for what in ["table inet egress", "lookup 10064 proto 69", "table 10064 proto 69"] {
            assert!(ours.contains(what), "no {what} on {}: {ours}", node.host().name);
        }
    }

    // The pod again, with another address, on the same node and on the others.
    let mut before = first;
    for node in [1, 2, 3] {
        cluster.delete_pod(&before)?;
        let again = cluster.run_pod("default", "pod1", Some(node), "{}")?;
        assert_ne!(again.ips, before.ips);
        sight.assert_seen_as(&again, vip)?;
        before = again;
    }

    // Undeploy: the node's address again, nothing on the nodes, three objects in the API.
    installation.sh("deploy/deploy.sh -d")?;
    let left = ["podip-vip-mappings", "vip-configmap", "vip-routeid-mappings"];
    assert_eq!(ours(&installation)?, left.map(|name| format!("configmap/{name}")));
    for node in cluster.nodes() {
        assert_eq!(left_on(node)?, "", "on {}", node.host().name);
    }
    sight.assert_seen_as(&before, node_address(&installation, &before)?)?;

    // Nothing to do is no error; and it can be deployed again.
    installation.sh("deploy/deploy.sh -d")?;
    installation.sh("deploy/deploy.sh")?;
    installation.sh("kubectl create -f deploy/crds/egress_v1alpha1_vip_cr.yaml")?;
    installation.sh("kubectl create -f deploy/crds/egress_v1alpha1_egress_cr.yaml")?;
    sight.assert_seen_as(&before, vip)?;

    // Undeploy when the controller is dead: nobody takes the finalizer from the Vip.
    installation.wait_for("default", "egress/example-pod1-egress", "condition=Ready")?;
    installation.sh("kubectl scale deployment egress-mapper --replicas=0 && kubectl wait --for=delete pod -l name=egress-mapper --timeout=60s")?;
    let printed = installation.sh("deploy/deploy.sh -d --timeout 60")?;
    ensure!(
        printed.contains("removing its finalizers"),
        "nothing said of the finalizers: {printed}"
    );
    assert_eq!(ours(&installation)?, left.map(|name| format!("configmap/{name}")));
    for node in cluster.nodes() {
        assert_eq!(left_on(node)?, "", "on {}", node.host().name);
    }
    sight.assert_seen_as(&before, node_address(&installation, &before)?)
}

fn count(text: &str, end: &str) -> usize {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines().filter(|line| line.ends_with(end)) {
        *lines.entry(line).or_default() += 1;
    }
    lines.len()
}
