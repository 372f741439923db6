//! Measures, on a real Kubernetes on this machine: a pod's address appears in the API → the pod's
//! packets arrive outside with its VIP.
//!
//! Every pod pings an address of the host outside that is its own from the moment it runs. The
//! first moment is that of the watch event with the pod's address; the second is that of the first
//! packet which the capture sees with the VIP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Write, stdout};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tests::{Capture, Installation, wait_until};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 222);
/// Addresses of the host outside, one for each pod of a batch: 192.168.122.100 and up.
const FIRST_TARGET: u8 = 100;
const MOST_AT_ONCE: u8 = 100;
const MAPPED_WITHIN: Duration = Duration::from_mins(2);

/// Measures how soon a new pod leaves with its VIP.
#[derive(Debug, Parser)]
#[command(name = "latency", max_term_width = 100)]
struct Options {
    /// How many pods are measured.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// How many of them are created at once, at most 100.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    at_once: u8,
    /// How often every pod sends a packet, in seconds.
    #[arg(long, default_value = "0.002")]
    interval: String,
}

type Appeared = Arc<Mutex<BTreeMap<String, Instant>>>;

fn main() -> Result<()> {
    let options = Options::parse();
    let installation = Installation::start()?;
    let outside = &installation.cluster().lab().outside().netns;
    for number in 0..options.at_once.min(MOST_AT_ONCE) {
        let target = target(number);
        tests::run(&["ip", "-n", outside, "addr", "add", &format!("{target}/24"), "dev", "eth0"])?;
    }
    installation.create_vip("latency", &VIP.to_string())?;
    installation.create_egress(
        "default",
        "latency",
        &format!("{{ip: {VIP}, kind: pod, selector: {{matchLabels: {{app: latency}}}}}}"),
    )?;
    let appeared = Appeared::default();
    watch(&installation, &appeared)?;

    let mut measured = Vec::new();
    let mut left = options.pods;
    for batch in 0.. {
        let count = u8::try_from(left.min(options.at_once.into()))?;
        if count == 0 {
            break;
        }
        measured.extend(measure(&installation, &options, batch, count, &appeared)?);
        left -= usize::from(count);
        write!(stdout(), "\r{} of {}", measured.len(), options.pods)?;
        stdout().flush()?;
    }
    measured.sort_unstable();
    let at = |share: usize| measured[(measured.len() * share).div_ceil(100).max(1) - 1];
    writeln!(
        stdout(),
        "\raddress in the API → VIP on the wire, {} pods, {} at once, ms: p50 {:.1}, p90 {:.1}, p99 {:.1}, most {:.1}",
        measured.len(),
        options.at_once,
        millis(at(50)),
        millis(at(90)),
        millis(at(99)),
        millis(at(100)),
    )?;
    Ok(())
}

/// Writes down when addresses of pods appear, for as long as the program runs.
fn watch(installation: &Installation, appeared: &Appeared) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(installation.cluster().server().client())?;
    let appeared = Arc::clone(appeared);
    thread::spawn(move || {
        let pods = watcher(Api::<Pod>::namespaced(client, "default"), watcher::Config::default());
        runtime.block_on(pods.default_backoff().applied_objects().for_each(|pod| {
            if let Ok(pod) = pod
                && pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some())
            {
                let mut appeared = appeared.lock().unwrap_or_else(PoisonError::into_inner);
                appeared.entry(pod.name_any()).or_insert_with(Instant::now);
            }
            std::future::ready(())
        }));
    });
    Ok(())
}

/// Creates some pods at once, waits until each was seen with the VIP, and deletes them.
fn measure(
    installation: &Installation,
    options: &Options,
    batch: usize,
    count: u8,
    appeared: &Appeared,
) -> Result<Vec<Duration>> {
    let capture = Capture::start(installation.cluster().lab())?;
    let name = |number: u8| format!("latency-{batch}-{number}");
    let mut pods = String::new();
    for number in 0..count {
        write!(
            pods,
            "apiVersion: v1
kind: Pod
metadata: {{namespace: default, name: {}, labels: {{app: latency}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [ping, -q, -i, '{}', '{}']
---
",
            name(number),
            options.interval,
            target(number)
        )?;
    }
    installation.apply(&pods)?;
    let mut seen = BTreeMap::new();
    let all = wait_until(MAPPED_WITHIN, || {
        let flows = capture.flows().unwrap_or_default();
        seen = flows
            .into_iter()
            .filter(|(flow, _)| flow.source == IpAddr::V4(VIP))
            .map(|(flow, seen)| (flow.destination, seen.first))
            .collect::<BTreeMap<_, _>>();
        let appeared = appeared.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() == usize::from(count)
            && (0..count).all(|number| appeared.contains_key(&name(number)))
    });
    ensure!(all, "not all pods appeared and were seen with the VIP:\n{}", capture.text());
    installation.sh("kubectl delete pods -l app=latency")?;
    let appeared = appeared.lock().unwrap_or_else(PoisonError::into_inner);
    (0..count)
        .map(|number| {
            let first = seen.get(&IpAddr::V4(target(number))).context("no packet of a pod")?;
            let known = appeared.get(&name(number)).context("a pod was never told of")?;
            Ok(first.saturating_duration_since(*known))
        })
        .collect()
}

fn target(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 122, FIRST_TARGET + number)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
