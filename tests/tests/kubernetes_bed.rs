//! The Kubernetes test bed itself: what it promises without any of our programs.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tests::{ApiServer, KubeCluster, Lab, eventually, leftovers_of};

const SOON: Duration = Duration::from_secs(10);

async fn who_am_i(client: Client) -> Result<UserInfo> {
    let api: Api<SelfSubjectReview> = Api::all(client);
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    review.status.and_then(|status| status.user_info).context("nobody")
}

#[tokio::test]
async fn objects_outlive_the_api_server() -> Result<()> {
    let server = ApiServer::start()?;
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
    assert!(answer.is_err(), "a frozen server does not answer");
    server.thaw()?;
    maps.get("kept").await?;
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
        .spawn(command.args(["-c", script]).stdout(std::process::Stdio::piped()))?
        .wait_with_output()?;
    let text = String::from_utf8(child.stdout)?;
    assert!(text.starts_with("reach{") && text.contains("\"gitVersion\": \"v1."), "{text}");
    Ok(())
}

#[test]
fn nothing_is_left_of_an_api_server() -> Result<()> {
    let server = ApiServer::start()?;
    server.start_controller_manager()?;
    let netns = &server.host().netns;
    let prefix = netns.strip_suffix("api").context("named after its prefix")?.to_owned();
    assert_eq!(leftovers_of(&prefix), [netns.clone(), format!("{prefix}files")]);
    eventually(SOON, || server.kubectl(&["get", "serviceaccount", "default"]).is_ok());
    drop(server);
    assert_eq!(leftovers_of(&prefix), [""; 0]);
    Ok(())
}

#[test]
fn cluster_first_try() -> Result<()> {
    let start = std::time::Instant::now();
    let cluster = KubeCluster::shared()?;
    eprintln!("up in {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let pod = cluster.run_pod("default", "one", Some(1), "{}")?;
    eprintln!("pod in {:?}: {pod:?}", start.elapsed());
    eprintln!("{}", cluster.exec(&pod, &["ping", "-c1", "192.168.122.64"])?);
    eprintln!("{}", cluster.exec(&pod, &["ping", "-c1", "fd00:122::64"])?);
    let start = std::time::Instant::now();
    cluster.delete_pod(&pod)?;
    eprintln!("deleted in {:?}: {pod:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(
        std::env::var("HOLD").map_or(0, |t| t.parse().unwrap()),
    ));
    Ok(())
}
