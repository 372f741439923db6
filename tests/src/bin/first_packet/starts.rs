//! Starts pods whose first act is to send, and sees what arrives.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use tests::{Capture, Installation, wait_until};

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 222);
/// Addresses of the host outside, one for each pod of a batch: this one and the following.
const FIRST_TARGET: u8 = 100;
/// Where the very first packet goes.
const FIRST_PORT: u16 = 53;
const STARTED_WITHIN: Duration = Duration::from_mins(3);
/// How long pods are listened to after all have been heard.
const LISTEN: Duration = Duration::from_millis(500);
/// A datagram at once, which is not sent again; then echo requests and connections, with pauses: processes
/// without end would take the processor away from what is measured.
const COMMAND: &str = "timeout -s KILL 1 nslookup -type=a first TARGET >/dev/null & \
    (while :; do nc -w 1 TARGET 7002 </dev/null; usleep 50000; done) & exec ping -q -i 0.02 TARGET";

/// Pods that are started together.
pub(crate) struct Batch<'a> {
    pub(crate) name: &'a str,
    pub(crate) count: u8,
    pub(crate) covered: bool,
}

/// What was seen of one pod.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) ip: IpAddr,
    /// The very first packet has arrived, with the VIP or, of a pod that has none, without.
    pub(crate) first: bool,
    /// Packets with another address.
    pub(crate) leaked: u64,
    /// From the creation to the first packet of all.
    pub(crate) took: Duration,
    /// When the first packet was seen.
    pub(crate) heard: SystemTime,
    /// From when the address was assigned to the first packet.
    pub(crate) ran: Option<Duration>,
    /// When the CNI plugin's result was written.
    pub(crate) assigned: Option<SystemTime>,
}

/// Gives the host outside the addresses that pods send to.
pub(crate) fn targets(installation: &Installation, count: u8) -> Result<()> {
    let outside = &installation.cluster().lab().outside().netns;
    for number in 0..count {
        let address = format!("{}/24", target(number));
        tests::run(&["ip", "-n", outside, "addr", "add", &address, "dev", "eth0"])?;
    }
    Ok(())
}

fn target(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 122, FIRST_TARGET + number)
}

impl Batch<'_> {
    fn label(&self) -> &'static str {
        if self.covered { "covered" } else { "uncovered" }
    }

    fn pod(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    fn yaml(&self) -> String {
        let pod = |number| {
            let command = COMMAND.replace("TARGET", &target(number).to_string());
            format!(
                "apiVersion: v1
kind: Pod
metadata: {{namespace: default, name: {}, labels: {{app: {}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, \"{command}\"]
---
",
                self.pod(number),
                self.label(),
            )
        };
        (0..self.count).map(pod).collect()
    }

    /// Starts them and waits until each was heard.
    pub(crate) fn start(&self, installation: &Installation) -> Result<Vec<Start>> {
        let capture = Capture::start(installation.cluster().lab())?;
        let created = Instant::now();
        installation.apply(&self.yaml())?;
        let number_of = |destination: IpAddr| (0..self.count).find(|n| target(*n) == destination);
        let heard = || {
            let flows = capture.flows()?;
            let mut heard: BTreeMap<u8, Instant> = BTreeMap::new();
            for (flow, seen) in flows.iter().filter(|(flow, _)| flow.protocol == 1) {
                let Some(number) = number_of(flow.destination) else { continue };
                heard.entry(number).or_insert(seen.first);
            }
            anyhow::Ok(heard)
        };
        let all = wait_until(STARTED_WITHIN, || {
            heard().is_ok_and(|heard| heard.len() == usize::from(self.count))
        });
        ensure!(all, "not all pods were heard:\n{}", capture.text());
        thread::sleep(LISTEN);
        let flows = capture.flows()?;
        let places = self.places(installation)?;
        let start = |number| {
            let pod = self.pod(number);
            let (node, ip) = places.get(&pod).context("a pod is not there")?.clone();
            let of_pod = || flows.iter().filter(|(flow, _)| flow.destination == target(number));
            let has_vip = |source: IpAddr| source == IpAddr::V4(VIP);
            let as_it_should = |source: IpAddr| has_vip(source) == self.covered;
            let first = of_pod()
                .any(|(flow, _)| flow.destination_port == FIRST_PORT && as_it_should(flow.source));
            let others = of_pod().filter(|(flow, _)| !has_vip(flow.source));
            let leaked = others.map(|(_, seen)| seen.packets).sum();
            let heard = of_pod().map(|(_, seen)| seen.first).min().context("a pod is silent")?;
            let took = heard.saturating_duration_since(created);
            let heard = SystemTime::now() - heard.elapsed();
            Ok(Start { pod, node, ip, first, leaked, took, heard, ran: None, assigned: None })
        };
        (0..self.count).map(start).collect()
    }

    pub(crate) fn remove(&self, installation: &Installation) -> Result<()> {
        installation.sh(&format!("kubectl delete pods -l app={}", self.label())).map(drop)
    }

    /// Node and address of each pod, once the API knows all.
    fn places(&self, installation: &Installation) -> Result<BTreeMap<String, (String, IpAddr)>> {
        let line = format!(
            "kubectl get pods -l app={} -o jsonpath='{{range .items[*]}}{{.metadata.name}} \
             {{.spec.nodeName}} {{.status.podIP}}{{\"\\n\"}}{{end}}'",
            self.label()
        );
        let mut places = BTreeMap::new();
        let all = wait_until(STARTED_WITHIN, || {
            let text = installation.sh(&line).unwrap_or_default();
            let place = |line: &str| {
                let mut words = line.split_whitespace().map(str::to_owned);
                let (pod, node) = (words.next()?, words.next()?);
                Some((pod, (node, words.next()?.parse().ok()?)))
            };
            places = text.lines().filter_map(place).collect();
            places.len() == usize::from(self.count)
        });
        ensure!(all, "not all pods have an address: {places:?}");
        Ok(places)
    }
}
