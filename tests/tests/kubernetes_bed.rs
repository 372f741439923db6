//! The Kubernetes test bed itself: what it promises without any of our programs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tests::{
    ApiServer, Family, Host, KubeCluster, Lab, ProxyMode, UdpServer, eventually, leftovers_of,
    ping, seen_as,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(10);

async fn who_am_i(client: Client) -> Result<UserInfo> {
    let api: Api<SelfSubjectReview> = Api::all(client);
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    review.status.and_then(|status| status.user_info).context("nobody")
}

#[tokio::test]
async fn objects_outlive_the_api_server_and_nothing_outlives_its_drop() -> Result<()> {
    let server = ApiServer::start()?;
    let netns = server.host().netns.clone();
    let prefix = netns.strip_suffix("api").context("not named after its prefix")?;
    assert_eq!(leftovers_of(prefix), [netns.clone(), format!("{prefix}files")]);
    let client = server.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let map = serde_json::from_str(r#"{"metadata": {"name": "kept"}, "data": {"key": "value"}}"#)?;
    let made = maps.create(&PostParams::default(), &map).await?;
    server.kill()?;
    assert!(maps.get("kept").await.is_err());
    server.restart()?;
    let found = maps.get("kept").await?;
    assert_eq!((found.uid(), found.data), (made.uid(), made.data));

    server.freeze()?;
    let answer = tokio::time::timeout(Duration::from_secs(1), maps.get("kept")).await;
    assert!(answer.is_err(), "a frozen server answers: {answer:?}");
    server.thaw()?;
    maps.get("kept").await?;

    server.start_controller_manager()?;
    let account = ["get", "serviceaccount", "default"];
    eventually(SOON, || server.kubectl(&account).is_ok());
    drop(server);
    assert_eq!(leftovers_of(prefix), [""; 0]);
    assert_eq!(processes_with(prefix), 0);
    Ok(())
}

#[tokio::test]
async fn tokens_say_who_and_on_which_node() -> Result<()> {
    let server = ApiServer::shared()?;
    server.create_namespace("tokens")?;
    let pod = server.pod_on_node("tokens", "one", "default", "n2")?;
    let user = who_am_i(server.client_of(&pod.token).await?).await?;
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:tokens:default"));
    let extra = user.extra.unwrap_or_default();
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["n2"]);
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["one"]);

    let maps: Api<ConfigMap> = Api::namespaced(server.client_of(&pod.token).await?, "tokens");
    let refused = maps.get("any").await.err().context("nothing is granted")?;
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));

    let node = who_am_i(server.client_of(&server.node_token("n3")).await?).await?;
    assert_eq!(node.username.as_deref(), Some("system:node:n3"));
    Ok(())
}

#[test]
fn machines_of_a_laboratory_reach_the_api_server_as_pods_do() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(0).build()?;
    let server = ApiServer::start_on(&lab)?;
    server.create_namespace("reach")?;
    let pod = server.pod_on_node("reach", "one", "default", "n1")?;
    let script = "cd /run/secrets/kubernetes.io/serviceaccount && cat namespace && \
                  exec curl -sS --cacert ca.crt -H \"Authorization: Bearer $(cat token)\" \
                  https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version";
    let mut command = pod.command("sh".as_ref());
    let child = lab
        .node(1)
        .spawn(command.args(["-c", script]).stdout(Stdio::piped()))?
        .wait_with_output()?;
    let text = String::from_utf8(child.stdout)?;
    assert!(text.starts_with("reach{") && text.contains("\"gitVersion\": \"v1."), "{text}");
    Ok(())
}

/// Pods on all nodes, as hosts, in the order of the nodes.
fn pod_on_each_node(cluster: &KubeCluster, namespace: &str) -> Result<Vec<Host>> {
    cluster.server().create_namespace(namespace)?;
    thread::scope(|scope| {
        let pods: Vec<_> = (1..=cluster.nodes().len())
            .map(|node| {
                scope.spawn(move || {
                    let labels = format!("{{on: n{node}}}");
                    cluster.run_pod(namespace, &format!("on-n{node}"), Some(node), &labels)
                })
            })
            .collect();
        pods.into_iter()
            .map(|pod| cluster.pod_host(&pod.join().map_err(|_| anyhow!("a thread panicked"))??))
            .collect()
    })
}

#[test]
fn pods_of_every_node_leave_with_its_address() -> Result<()> {
    let cluster = KubeCluster::shared()?;
    let lab = cluster.lab();
    let capture = cluster.capture()?;
    for (pod, node) in pod_on_each_node(cluster, "leave")?.iter().zip(lab.nodes()) {
        for family in Family::ALL {
            for server in [lab.outside(), lab.far()] {
                assert_eq!(ping(pod, server.ip(family), 2)?, 2);
                let sources = capture.sources_towards(server.ip(family))?;
                assert_eq!(sources.get(&node.ip(family)), Some(&2), "{}", capture.text());
                assert_eq!(sources.get(&pod.ip(family)), None);
            }
        }
    }
    Ok(())
}

fn pods_and_services_are_reached(cluster: &KubeCluster) -> Result<()> {
    let pods = pod_on_each_node(cluster, "reach")?;
    let last = pods.len();
    cluster.server().apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{namespace: reach, name: last}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{on: n{last}}}
  ports: [{{protocol: UDP, port: 80, targetPort: {PORT}}}]
"
    ))?;
    let addresses =
        ["get", "service", "last", "-n", "reach", "-o", "jsonpath={.spec.clusterIPs[*]}"];
    let addresses = cluster.server().kubectl(&addresses)?;
    let services = addresses.split(' ').map(str::parse).collect::<Result<Vec<IpAddr>, _>>()?;
    assert_eq!(services.len(), 2);
    let (client, server) = (&pods[0], &pods[last - 1]);
    let _server = UdpServer::start(server, PORT)?;
    for family in Family::ALL {
        let direct = SocketAddr::new(server.ip(family), PORT);
        assert_eq!(seen_as(client, direct)?, [client.ip(family)]);
        let service = services.iter().find(|ip| Family::of(**ip) == family);
        let service = SocketAddr::new(*service.context("no such family")?, 80);
        assert_eq!(seen_as(client, service)?, [client.ip(family)]);
    }
    Ok(())
}

#[test]
fn pods_and_services_are_reached_by_nftables() -> Result<()> {
    pods_and_services_are_reached(KubeCluster::shared()?)
}

#[test]
fn pods_and_services_are_reached_by_iptables() -> Result<()> {
    let lab = Lab::builder().nodes(2);
    pods_and_services_are_reached(&KubeCluster::start_on(lab, ProxyMode::Iptables)?)
}

#[tokio::test]
async fn a_pods_token_says_its_node_and_the_scheduler_finds_one() -> Result<()> {
    let cluster = KubeCluster::shared()?;
    let pod = cluster.run_pod("default", "token", None, "{}")?;
    let token =
        cluster.exec(&pod, &["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"])?;
    let user = who_am_i(cluster.server().client_of(&token).await?).await?;
    let extra = user.extra.unwrap_or_default();
    assert_eq!(extra["authentication.kubernetes.io/node-name"], [pod.node.as_str()]);
    let text = cluster.node(1).run(&["cat", "/proc/1/comm"])?;
    assert_eq!(text, "bash\n", "a node has processes of its own");
    cluster.delete_pod(&pod)
}

#[test]
fn nothing_is_left_when_the_tests_are_killed() -> Result<()> {
    let mut program = Killed(
        Command::new(env!("CARGO_BIN_EXE_cluster"))
            .args(["--nodes", "1"])
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut said = String::new();
    let mut output = BufReader::new(program.0.stdout.take().context("no output")?);
    output.read_line(&mut said)?;
    let prefix = said.trim_end().rsplit(' ').next().context("no names")?.trim_end_matches('*');
    assert!(prefix.starts_with("em"), "{said}");
    assert!(!fs::read_to_string("/proc/self/mounts")?.contains(&format!("{prefix}files")));
    assert!(processes_with(prefix) > 3);
    assert!(leftovers_of(prefix).len() > 6);

    drop(program);
    eventually(SOON, || leftovers_of(prefix).is_empty());
    eventually(SOON, || processes_with(prefix) == 0);
    Ok(())
}

/// A process that is killed, not asked to end, when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already, and then the test says why.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Processes that name it in their arguments.
fn processes_with(text: &str) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    processes
        .flatten()
        .filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok())
        .filter(|arguments| arguments.contains(text))
        .count()
}
