//! A launcher that is killed together with its keepalived, as a container is, leaves its VIPs on the node. The agent
//! there takes them off once another node reports that it has them, and only then.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tests::{
    Agent, ApiServer, Capture, Family, Lab, PodIdentity, UdpProbe, UdpServer, eventually, vip,
    wait_until,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(15);
const MANIFESTS: [&str; 8] = [
    include_str!("../../deploy/kube-egress/service_account.yaml"),
    include_str!("../../deploy/kube-egress/role.yaml"),
    include_str!("../../deploy/kube-egress/role_binding.yaml"),
    include_str!("../../deploy/kube-egress/report_policy.yaml"),
    include_str!("../../deploy/kube-egress/report_policy_binding.yaml"),
    include_str!("../../deploy/keepalived-vip/service_account.yaml"),
    include_str!("../../deploy/keepalived-vip/role.yaml"),
    include_str!("../../deploy/keepalived-vip/role_binding.yaml"),
];

fn publish(server: &ApiServer, name: &str, data: &[(&str, &str)]) -> Result<()> {
    let node = name.strip_prefix("podip-vip-mappings-");
    let labels: BTreeMap<&str, &str> =
        node.map(|node| ("egress.mapper.com/node", node)).into_iter().collect();
    let metadata = json!({ "name": name, "namespace": "default", "labels": labels });
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data,
    });
    server.apply(&object.to_string()).map(drop)
}

/// The launcher and keepalived of a node; killed together.
struct Container {
    launcher: std::process::Child,
    files: tempfile::TempDir,
}

impl Container {
    fn start(lab: &Lab, node: usize, pod: &PodIdentity) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let mut command = pod.command(&Agent::program()?);
        command
            .args(["keepalived", "--services-configmap=default/vip-configmap", "--run-dir"])
            .arg(files.path())
            .args(["--advert-interval-ms", "100"])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self { launcher: lab.node(node).spawn(&mut command)?, files })
    }

    /// Whether it has held the VIP for some seconds: holding counts then.
    fn holds_for_good(&self, vip: &str) -> bool {
        let path = self.files.path().join(format!("priorities/vip-{vip}"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<i16>().is_ok_and(|adds| adds >= 197)
    }

    fn kill(&mut self) -> Result<()> {
        self.launcher.kill()?;
        self.launcher.wait()?;
        for name in ["keepalived.pid", "vrrp.pid"] {
            if let Ok(text) = std::fs::read_to_string(self.files.path().join(name)) {
                kill(Pid::from_raw(text.trim().parse()?), Signal::SIGKILL)?;
            }
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[test]
fn vips_of_a_container_that_was_killed_go_when_another_node_has_them() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
    let vip = vip(Family::V4, 222);
    let text = vip.to_string();
    let server = ApiServer::start_on(&lab)?;
    server.apply(&MANIFESTS.join("\n---\n"))?;
    let pod_ip = |node: usize| lab.pod(node, 1).ip(Family::V4).to_string();
    publish(&server, "vip-candidates", &[(&text, "n1,n2")])?;
    publish(&server, "vip-routeid-mappings", &[(&text, "64")])?;
    publish(&server, "vip-configmap", &[(&text, "")])?;
    let networks = [("pod-subnets", "10.244.0.0/16"), ("service-subnets", "10.96.0.0/12")];
    publish(&server, "egress-networks", &networks)?;
    publish(&server, "podip-vip-mappings-n1", &[(&pod_ip(1), &text)])?;
    publish(&server, "podip-vip-mappings-n2", &[(&pod_ip(2), &text)])?;
    let _server = UdpServer::start(lab.outside(), PORT)?;
    let outside = SocketAddr::new(lab.outside().ip(Family::V4), PORT);

    let mut agents = Vec::new();
    for node in 1..=2 {
        let name = format!("n{node}");
        let pod = server.pod_on_node("default", &format!("agent-{name}"), "kube-egress", &name)?;
        let mut agent = Agent::start_in_pod(lab.node(node), &pod, &["--interface", "eth0"])?;
        agent.wait_ready()?;
        agents.push(agent);
    }
    let start = |node: usize| -> Result<Container> {
        let (name, account) = (format!("n{node}"), "kube-keepalived-vip");
        let pod = server.pod_on_node("default", &format!("keepalived-{name}"), account, &name)?;
        Container::start(&lab, node, &pod)
    };
    let mut first = start(1)?;
    eventually(SOON, || lab.holders(vip) == [1]);
    let pod = lab.pod(1, 1);
    let probe = UdpProbe::start(pod, outside, 200)?;
    eventually(SOON, || probe.seen_as() == Some(vip));

    // The agent asks for the launcher each second, and has to have seen it.
    eventually(SOON, || first.holds_for_good(&text));

    // Nobody else has it: it stays, and works.
    first.kill()?;
    assert!(!wait_until(Duration::from_secs(4), || lab.holders(vip) != [1]), "it was taken off");
    let before = probe.received();
    eventually(SOON, || probe.received() > before + 100);

    // Another takes it: it goes here, and this node's pod goes on.
    let capture = Capture::start(&lab)?;
    let _second = start(2)?;
    eventually(SOON, || lab.holders(vip) == [2]);
    let before = probe.received();
    eventually(SOON, || probe.received() > before + 100);
    capture.assert_only_source(vip, outside.ip(), 100);
    let log = agents.first().context("an agent")?.log();
    assert!(log.contains("is taken off"), "{log}");
    Ok(())
}
