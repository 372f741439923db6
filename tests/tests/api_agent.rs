//! The agent on the API server: what it reads there, what it does without, what it may write.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{Agent, ApiServer, CniResults, Lab, PodIdentity, eventually, kernel_text, wait_until};

const SOON: Duration = Duration::from_secs(10);
const VIP: &str = "192.168.122.222";
/// What the project installs for agents.
const MANIFESTS: [&str; 5] = [
    include_str!("../../deploy/kube-egress/service_account.yaml"),
    include_str!("../../deploy/kube-egress/role.yaml"),
    include_str!("../../deploy/kube-egress/role_binding.yaml"),
    include_str!("../../deploy/kube-egress/report_policy.yaml"),
    include_str!("../../deploy/kube-egress/report_policy_binding.yaml"),
];
const DAEMON_SET: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-egress}
spec:
  selector: {matchLabels: {app: kube-egress}}
  template:
    metadata: {labels: {app: kube-egress}}
    spec: {containers: [{name: agent, image: localhost/none}]}
";

/// Two nodes, an API server on their LAN, and a pod of the agent's on each node.
struct Bed {
    pods: Vec<PodIdentity>,
    maps: Api<ConfigMap>,
    server: ApiServer,
    lab: Lab,
}

impl Bed {
    async fn new() -> Result<Self> {
        let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
        let server = ApiServer::start_on(&lab)?;
        server.apply(&MANIFESTS.join("\n---\n"))?;
        server.apply(DAEMON_SET)?;
        let pods = ["n1", "n2"]
            .map(|node| {
                server.pod_on_node("default", &format!("agent-{node}"), "kube-egress", node)
            })
            .into_iter()
            .collect::<Result<_>>()?;
        let maps = Api::namespaced(server.client().await?, "default");
        Ok(Self { pods, maps, server, lab })
    }

    /// What a controller has published of a cluster in which nothing is mapped, and `n2` is to
    /// hold the VIP.
    async fn publish(&self) -> Result<()> {
        self.put("vip-candidates", &[(VIP, "n2")]).await?;
        self.put("vip-routeid-mappings", &[(VIP, "64")]).await?;
        let networks = [("pod-subnets", "10.244.0.0/16"), ("service-subnets", "10.96.0.0/12")];
        self.put("egress-networks", &networks).await?;
        self.put("podip-vip-mappings-n1", &[]).await?;
        self.put("podip-vip-mappings-n2", &[]).await
    }

    async fn put(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let data: BTreeMap<&str, &str> = data.iter().copied().collect();
        let node = name.strip_prefix("podip-vip-mappings-");
        let labels: BTreeMap<&str, &str> =
            node.map(|node| ("egress.mapper.com/node", node)).into_iter().collect();
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels}, "data": data,
        });
        let params = PatchParams::apply("test").force();
        self.maps.patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    fn agent(&self, node: usize) -> Result<Agent> {
        Agent::start_in_pod(self.lab.node(node), &self.pods[node - 1], &["--interface", "eth0"])
    }

    /// Whether that node maps the pod to the VIP.
    fn maps(&self, node: usize, pod: &str) -> bool {
        let element = format!("{{ {pod} }}");
        let get = ["nft", "get", "element", "inet", "egress", "pod_vip4", &element];
        self.lab.node(node).run(&get).is_ok_and(|text| text.contains(&format!("{pod} : {VIP}")))
    }

    #[track_caller]
    fn await_mapping(&self, node: usize, pod: &str) {
        eventually(SOON, || self.maps(node, pod));
    }

    /// The node's report, once it fulfils the condition.
    async fn report(
        &self,
        node: &str,
        condition: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Result<BTreeMap<String, String>> {
        let end = Instant::now() + SOON;
        let mut last = None;
        while Instant::now() < end {
            last = self.maps.get_opt(&format!("egress-node-{node}")).await?;
            match last.as_ref().and_then(|object| object.data.as_ref()) {
                Some(data) if condition(data) => return Ok(data.clone()),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Err(anyhow::anyhow!("no such report in time, but {last:?}"))
    }
}

fn says(agent: &Agent, path: &str, status: u16, text: &str) -> bool {
    agent.http(path).is_ok_and(|(code, body)| code == status && body.contains(text))
}

#[tokio::test]
async fn a_node_reads_its_own_pods_and_those_of_others_once_it_may_hold_a_vip() -> Result<()> {
    let bed = Bed::new().await?;
    bed.put("vip-candidates", &[(VIP, "n2")]).await?;
    let mut agent = bed.agent(1)?;
    eventually(SOON, || says(&agent, "/readyz", 503, "waiting for vip-routeid-mappings"));
    eventually(SOON, || says(&agent, "/readyz", 503, "podip-vip-mappings-n1"));
    bed.publish().await?;
    agent.wait_ready()?;

    bed.put("podip-vip-mappings-n2", &[("10.244.2.11", VIP)]).await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    bed.await_mapping(1, "10.244.1.11");
    assert!(!bed.maps(1, "10.244.2.11"), "not its business");

    bed.put("vip-candidates", &[(VIP, "n2,n1")]).await?;
    bed.await_mapping(1, "10.244.2.11");
    bed.put("podip-vip-mappings-n2", &[("10.244.2.11", VIP), ("10.244.2.12", VIP)]).await?;
    bed.await_mapping(1, "10.244.2.12");

    bed.put("vip-candidates", &[(VIP, "n2")]).await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP), ("10.244.1.12", VIP)]).await?;
    bed.await_mapping(1, "10.244.1.12");
    assert!(bed.maps(1, "10.244.2.11"), "what it once read it goes on to read");
    bed.put("podip-vip-mappings-n2", &[]).await?;
    eventually(SOON, || !bed.maps(1, "10.244.2.11") && !bed.maps(1, "10.244.2.12"));
    agent.stop()
}

#[tokio::test]
async fn a_node_to_which_a_vip_comes_against_all_plans_serves_the_pods_of_others() -> Result<()> {
    let bed = Bed::new().await?;
    bed.put("vip-candidates", &[(VIP, "n2")]).await?;
    bed.publish().await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    bed.put("podip-vip-mappings-n2", &[("10.244.2.11", VIP)]).await?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    bed.await_mapping(1, "10.244.1.11");
    assert!(!bed.maps(1, "10.244.2.11"), "not its business");
    bed.lab.hold_vip(1, VIP.parse()?)?;
    bed.await_mapping(1, "10.244.2.11");
    agent.stop()
}

#[tokio::test]
async fn what_vanishes_or_is_nonsense_takes_no_rule_away() -> Result<()> {
    let bed = Bed::new().await?;
    bed.publish().await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    bed.await_mapping(1, "10.244.1.11");

    let before = kernel_text(bed.lab.node(1), true)?;
    let objects = ["podip-vip-mappings-n1", "vip-routeid-mappings", "egress-networks"];
    for name in objects {
        bed.maps.delete(name, &DeleteParams::default()).await?;
    }
    let missing = || agent.metric("egress_agent_missing_objects").is_ok_and(|n| n >= 3.0);
    eventually(SOON, missing);
    assert_eq!(kernel_text(bed.lab.node(1), true)?, before);

    bed.publish().await?;
    let nonsense = [("10.244.1.11", VIP), ("10.244.1", VIP), ("10.244.1.13", "vip")];
    bed.put("podip-vip-mappings-n1", &nonsense).await?;
    eventually(SOON, || agent.metric("egress_agent_rejected_entries").is_ok_and(|n| n >= 2.0));
    bed.put("vip-routeid-mappings", &[(VIP, "64"), ("192.168.122.9", "0")]).await?;
    eventually(SOON, || agent.metric("egress_agent_rejected_entries").is_ok_and(|n| n >= 3.0));
    assert!(bed.maps(1, "10.244.1.11"));
    agent.stop()
}

#[tokio::test]
async fn without_an_api_server_the_rules_stay_also_when_the_agent_restarts() -> Result<()> {
    let bed = Bed::new().await?;
    bed.publish().await?;
    bed.put("vip-candidates", &[(VIP, "n1")]).await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    bed.put("podip-vip-mappings-n2", &[("10.244.2.11", VIP)]).await?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    bed.await_mapping(1, "10.244.2.11");
    let before = kernel_text(bed.lab.node(1), true)?;
    let connected = "egress_agent_source_connected{object=\"vip-routeid-mappings\"}";
    assert!((agent.metric(connected)? - 1.0).abs() < 0.1);

    bed.server.kill()?;
    eventually(SOON, || agent.metric(connected).is_ok_and(|up| up < 0.1));
    assert!(says(&agent, "/readyz", 200, ""), "it does its work as before");
    agent.stop()?;
    let mut agent = bed.agent(1)?;
    eventually(SOON, || says(&agent, "/readyz", 503, "waiting for the API server to list"));
    // Several regular looks of the agent's.
    let changed = wait_until(Duration::from_secs(12), || {
        kernel_text(bed.lab.node(1), true).map_or(true, |now| now != before)
    });
    assert!(!changed, "{:#?}", kernel_text(bed.lab.node(1), true)?);
    assert!(says(&agent, "/healthz", 200, ""));

    bed.server.restart()?;
    agent.wait_ready()?;
    assert_eq!(kernel_text(bed.lab.node(1), true)?, before, "nothing is done anew");
    bed.put("podip-vip-mappings-n1", &[("10.244.1.12", VIP)]).await?;
    bed.await_mapping(1, "10.244.1.12");
    eventually(SOON, || !bed.maps(1, "10.244.1.11"));
    assert!(bed.maps(1, "10.244.2.11"));

    // Its watches were there when the server went: only what differs comes after.
    let before = kernel_text(bed.lab.node(1), true)?;
    bed.server.kill()?;
    eventually(SOON, || agent.metric(connected).is_ok_and(|up| up < 0.1));
    bed.server.restart()?;
    eventually(SOON, || agent.metric(connected).is_ok_and(|up| up > 0.9));
    assert_eq!(kernel_text(bed.lab.node(1), true)?, before);
    agent.stop()
}

#[tokio::test]
async fn a_node_reports_the_vips_it_holds_and_no_other_node() -> Result<()> {
    let bed = Bed::new().await?;
    bed.publish().await?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    let report = bed.report("n1", |report| report["synced"] == "true").await?;
    assert_eq!((report["holds"].as_str(), report["message"].as_str()), ("", ""));

    let node = bed.lab.node(1);
    let came = Timestamp::now();
    node.sh(&format!("ip address add {VIP}/32 dev eth0"))?;
    let report = bed.report("n1", |report| report["holds"].starts_with(VIP)).await?;
    let took = Timestamp::now().duration_since(came);
    assert!(took.as_millis() < 500, "{took:?}");
    let since: Timestamp = report["holds"].split(' ').nth(1).context("a time")?.parse()?;
    assert!(since.duration_since(came).as_millis() < 500, "{since} after {came}");

    // Since when survives the agent.
    agent.stop()?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    node.sh(&format!("ip address del {VIP}/32 dev eth0"))?;
    node.sh("ip address add 192.168.122.223/32 dev eth0")?;
    bed.report("n1", |report| report["holds"].is_empty()).await?;
    node.sh(&format!("ip address add {VIP}/32 dev eth0"))?;
    let again = bed.report("n1", |report| report["holds"].starts_with(VIP)).await?;
    assert_ne!(again["holds"], report["holds"]);
    agent.stop()?;
    let mut agent = bed.agent(1)?;
    agent.wait_ready()?;
    bed.put("vip-routeid-mappings", &[(VIP, "64"), ("192.168.122.223", "65")]).await?;
    let both = bed.report("n1", |report| report["holds"].lines().count() == 2).await?;
    assert!(both["holds"].starts_with(&again["holds"]), "{both:?}");

    // Nothing is written when nothing differs.
    let version = |object: ConfigMap| object.metadata.resource_version;
    let before = version(bed.maps.get("egress-node-n1").await?);
    agent.stop()?;
    bed.agent(1)?.wait_ready()?;
    assert_eq!(version(bed.maps.get("egress-node-n1").await?), before);

    // The server takes some time to enforce a policy.
    let client: Client = bed.server.client_of(&bed.pods[0].token).await?;
    let own: Api<ConfigMap> = Api::namespaced(client, "default");
    for name in ["egress-node-n2", "vip-routeid-mappings", "podip-vip-mappings-n1"] {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"},
        });
        let params = PatchParams::apply("egress-agent").force();
        let refused = own.patch(name, &params, &Patch::Apply(&object)).await;
        let kube::Error::Api(status) = refused.err().context("it was written")? else {
            anyhow::bail!("no answer")
        };
        ensure!(status.code == 403, "{status:?}");
        assert!(status.message.contains("the report of its own node"), "{}", status.message);
    }
    Ok(())
}

#[tokio::test]
async fn only_an_agent_whose_daemon_set_goes_takes_the_rules_with_it() -> Result<()> {
    let bed = Bed::new().await?;
    bed.publish().await?;
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    let start = || -> Result<Agent> {
        let mut agent = bed.agent(1)?;
        agent.wait_ready()?;
        bed.await_mapping(1, "10.244.1.11");
        Ok(agent)
    };
    let bare = kernel_text(bed.lab.node(1), false)?;
    let ours = || Ok::<_, anyhow::Error>(kernel_text(bed.lab.node(1), false)? != bare);
    start()?.stop()?;
    assert!(ours()?, "an upgrade");

    let mut agent = start()?;
    bed.server.freeze()?;
    let asked = Instant::now();
    agent.kill(Signal::SIGTERM)?;
    assert!(agent.wait()?.success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    bed.server.thaw()?;
    assert!(ours()?, "nobody said that it goes");

    let mut agent = start()?;
    bed.server.kubectl(&[
        "delete",
        "daemonset",
        "kube-egress",
        "--cascade=foreground",
        "--wait=false",
    ])?;
    bed.server.kubectl(&["get", "daemonset", "kube-egress"])?;
    agent.stop()?;
    assert_eq!(kernel_text(bed.lab.node(1), false)?, bare, "it is being deleted");

    let mut agent = start()?;
    let remove_finalizer = "{\"metadata\":{\"finalizers\":null}}";
    bed.server.kubectl(&["patch", "daemonset", "kube-egress", "-p", remove_finalizer])?;
    eventually(SOON, || bed.server.kubectl(&["get", "daemonset", "kube-egress"]).is_err());
    agent.stop()?;
    assert!(!ours()?, "it is gone:\n{}", agent.log());
    Ok(())
}

#[tokio::test]
async fn the_address_of_a_new_pod_is_known_here_and_at_the_holder_before_the_api_knows()
-> Result<()> {
    const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";
    let bed = Bed::new().await?;
    bed.publish().await?;
    let results = CniResults::new()?;
    let directory = results.path().to_string_lossy().into_owned();
    let start = |node: usize, results: &str| {
        let arguments = ["--interface", "eth0", "--cni-results-dir", results];
        Agent::start_in_pod(bed.lab.node(node), &bed.pods[node - 1], &arguments)
    };
    let mut agents = [start(1, &directory)?, start(2, "")?];
    agents.iter_mut().try_for_each(Agent::wait_ready)?;

    bed.put("podip-vip-mappings-n1", &[(UID, VIP)]).await?;
    results.assign(UID, &["10.244.1.11".parse()?])?;
    bed.await_mapping(1, "10.244.1.11");
    let line = format!("{UID} 10.244.1.11");
    bed.report("n1", |data| data["pods"] == line).await?;
    bed.await_mapping(2, "10.244.1.11");

    // The controller has heard: from now on the shard says it, and the report as well for a while.
    bed.put("podip-vip-mappings-n1", &[("10.244.1.11", VIP)]).await?;
    bed.put("podip-vip-mappings-n2", &[("10.244.2.11", VIP)]).await?;
    bed.await_mapping(2, "10.244.2.11");
    assert!(bed.maps(1, "10.244.1.11") && bed.maps(2, "10.244.1.11"));
    bed.report("n1", |data| data["pods"] == line).await?;

    results.give_back(UID)?;
    bed.put("podip-vip-mappings-n1", &[]).await?;
    eventually(SOON, || !bed.maps(1, "10.244.1.11") && !bed.maps(2, "10.244.1.11"));
    bed.report("n1", |data| data["pods"].is_empty()).await?;
    agents.iter_mut().try_for_each(|agent| agent.stop())
}
