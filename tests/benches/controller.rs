//! What the controller costs in a large cluster: `cargo bench -p tests --bench controller`.
//!
//! A real API server holds nodes and pods as objects; the built controller (`CONTROLLER_BIN`, by
//! default the one built with this program's profile) maps all of them. Printed are the time from a
//! pod's address in the API to its share being written, as another client sees both, and the
//! controller's own part; bytes per change; memory; and processor time when nothing changes.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tests::{ApiServer, Controller, ObjectCluster, wait_until};

const APPS: usize = 100;
const PODS_PER_NODE: usize = 200;
const AT_ONCE: usize = 16;
const CHANGES: u32 = 200;
const QUIET: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let number = std::env::var("PODS").ok().and_then(|text| text.parse().ok());
    let number: usize = number.unwrap_or(10_000);
    let server = ApiServer::start()?;
    let cluster = ObjectCluster::prepare(&server)?;
    let started = Instant::now();
    let nodes = number.div_ceil(PODS_PER_NODE);
    for node in 0..nodes {
        cluster.node(
            &format!("n{node}"),
            &format!("192.168.{}.{}", 123 + node / 250, node % 250 + 1),
            &format!("10.{node}.0.0/16"),
        )?;
    }
    cluster.vip("vip", &json!({ "ip": "192.168.122.222", "routeid": 64 }))?;
    for app in 0..APPS {
        let labels = json!({ "matchLabels": { "app": format!("a{app}") } });
        let spec = json!({ "ip": "192.168.122.222", "kind": "pod", "selector": labels });
        cluster.egress(&format!("e{app}"), &spec)?;
    }
    let (runtime, client) = cluster.client();
    runtime.block_on(make_pods(&client, number))?;
    say(&format!("{number} pods on {nodes} nodes made in {:.0?}", started.elapsed()))?;

    let started = Instant::now();
    let mut controller = Controller::start_with(&server, "default", "bench", &[])?;
    controller.wait_ready()?;
    say(&format!("start to knowing all: {:.2?}", started.elapsed()))?;
    let all_of_them = f64::from(u32::try_from(number)?);
    let complete = |controller: &Controller| {
        controller
            .metric("egress_controller_pod_addresses{state=\"mapped\"}")
            .is_ok_and(|mapped| mapped >= all_of_them)
            && (0..nodes).all(|node| {
                cluster
                    .data(&format!("podip-vip-mappings-n{node}"))
                    .is_some_and(|of| !of.is_empty())
            })
    };
    ensure!(wait_until(Duration::from_mins(1), || complete(&controller)), "not all was published");
    say(&format!("start to everything published: {:.2?}", started.elapsed()))?;
    let settled = || controller.metric("egress_controller_status_backlog").is_ok_and(|of| of < 0.5);
    ensure!(wait_until(Duration::from_mins(2), settled), "status was not written");

    let (writes, bytes, own) = (
        count(&controller, "writes_total")?,
        count(&controller, "written_bytes_total")?,
        own_times(&controller)?,
    );
    let shard_bytes =
        controller.metric("egress_controller_written_bytes_total{object=\"shard\"}")?;
    let mut times = runtime.block_on(change_pods(&client, number))?;
    times.sort();
    let at =
        |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap_or_default();
    say(&format!(
        "address in the API → share written, as another client sees it: p50 {:.1?}, p99 {:.1?}, worst {:.1?}",
        at(50),
        at(99),
        at(100)
    ))?;
    let after = own_times(&controller)?;
    say("of that, from news to everything written, as the controller sees it:")?;
    for (bound, before) in &own {
        say(&format!(
            "  ≤ {bound} s: {}",
            after.iter().find(|(other, _)| other == bound).map_or(0.0, |(_, now)| now - before)
        ))?;
    }
    for part in ["resolve", "publish", "news_to_written"] {
        let value = |what: &str| {
            controller.metric(&format!(
                "egress_controller_part_duration_seconds_{what}{{part=\"{part}\"}}"
            ))
        };
        say(&format!("mean of {part}: {:.1} ms", value("sum")? / value("count")? * 1e3))?;
    }
    let of_shards =
        controller.metric("egress_controller_written_bytes_total{object=\"shard\"}")? - shard_bytes;
    say(&format!(
        "per change: {:.1} writes, {:.0} bytes, of which the share {:.0}",
        (count(&controller, "writes_total")? - writes) / f64::from(CHANGES),
        (count(&controller, "written_bytes_total")? - bytes) / f64::from(CHANGES),
        of_shards / f64::from(CHANGES)
    ))?;

    ensure!(
        wait_until(Duration::from_secs(30), || controller
            .metric("egress_controller_status_backlog")
            .is_ok_and(|of| of < 0.5)),
        "status"
    );
    let before = processor_time(controller.pid())?;
    std::thread::sleep(QUIET);
    let used = processor_time(controller.pid())? - before;
    say(&format!("nothing changes: {:.2} % of a processor", used / QUIET.as_secs_f64() * 100.0))?;
    say(&format!(
        "memory: {}, at most {}",
        memory(controller.pid(), "VmRSS")?,
        memory(controller.pid(), "VmHWM")?
    ))?;
    controller.stop()
}

fn ip(number: usize, generation: usize) -> String {
    let (node, place) = (number / PODS_PER_NODE, number % PODS_PER_NODE);
    format!("10.{node}.{generation}.{}", place + 1)
}

async fn make_pods(client: &Client, number: usize) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    stream::iter(0..number)
        .map(|number| {
            let pods = &pods;
            async move {
                let name = format!("p{number}");
                // As large as pods are: what is not kept has to be read all the same.
                let env: Vec<Value> = (0..20)
                    .map(|of| json!({ "name": format!("VARIABLE_{of}"), "value": "a value of some length" }))
                    .collect();
                let pod: Pod = serde_json::from_value(json!({
                    "metadata": {
                        "name": name,
                        "labels": { "app": format!("a{}", number % APPS), "pod-template-hash": "5d4f8c7b9" },
                        "annotations": { "note": "x".repeat(500) },
                    },
                    "spec": {
                        "nodeName": format!("n{}", number / PODS_PER_NODE),
                        "containers": [{ "name": "main", "image": "localhost/none", "env": env }],
                    },
                }))?;
                pods.create(&PostParams::default(), &pod).await?;
                set_address(pods, &name, &ip(number, 0)).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

async fn set_address(pods: &Api<Pod>, name: &str, ip: &str) -> Result<()> {
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] });
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Gives pods other addresses, one after the other; how long each took to be published.
async fn change_pods(client: &Client, number: usize) -> Result<Vec<Duration>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let list = maps.list(&kube::api::ListParams::default()).await?;
    let version = list.metadata.resource_version.context("no version")?;
    let mut news = maps.watch(&WatchParams::default(), &version).await?.boxed();
    let mut times = Vec::new();
    for change in 0..usize::try_from(CHANGES)? {
        let pod = change * 37 % number;
        let ip = ip(pod, change + 1);
        set_address(&pods, &format!("p{pod}"), &ip).await?;
        let started = Instant::now();
        let shard = format!("podip-vip-mappings-n{}", pod / PODS_PER_NODE);
        let written = async {
            while let Some(event) = news.next().await {
                if let WatchEvent::Added(map) | WatchEvent::Modified(map) = event?
                    && map.metadata.name.as_deref() == Some(&shard)
                    && map.data.is_some_and(|data| data.contains_key(&ip))
                {
                    return Ok(());
                }
            }
            Err(anyhow::anyhow!("the watch has ended"))
        };
        tokio::time::timeout(Duration::from_secs(10), written).await??;
        times.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(times)
}

fn count(controller: &Controller, metric: &str) -> Result<f64> {
    let all = controller.metrics()?;
    Ok(all.iter().filter(|(name, _)| name.contains(metric)).map(|(_, value)| value).sum())
}

fn own_times(controller: &Controller) -> Result<Vec<(String, f64)>> {
    let all = controller.metrics()?;
    let bucket = |(name, value): (&String, &f64)| {
        let rest = name.strip_prefix("egress_controller_part_duration_seconds_bucket{le=\"")?;
        let (bound, rest) = rest.split_once('"')?;
        rest.contains("news_to_written").then(|| (bound.to_owned(), *value))
    };
    let mut found: Vec<_> = all.iter().filter_map(bucket).collect();
    found.sort_by(|one, other| seconds(&one.0).total_cmp(&seconds(&other.0)));
    Ok(found)
}

/// The upper bound of a bucket.
fn seconds(bound: &str) -> f64 {
    bound.parse().unwrap_or(f64::INFINITY)
}

/// Seconds of user and system time.
fn processor_time(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let mut all = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        all += text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default();
    }
    ensure!(!text.is_empty(), "no times");
    Ok(all / 1e9)
}

fn memory(pid: u32, which: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(which)).context("no such line")?;
    let kilobytes: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
    Ok(format!("{:.0} MB", kilobytes / 1024.0))
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write")
}
