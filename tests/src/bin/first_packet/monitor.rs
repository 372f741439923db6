//! When which node's kernel was told of a pod, as `nft monitor` tells.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::unistd::gettid;
use tests::KubeCluster;

use super::starts::Start;

/// By node and address of a pod: whenever it was mapped.
type Told = BTreeMap<(String, IpAddr), Vec<SystemTime>>;

/// The lowest that there is: what takes the time shall not wait for a processor.
const REALTIME: &str = "1";

/// Listens on every node until it is dropped.
pub(crate) struct Monitor {
    programs: Vec<Child>,
    told: Arc<Mutex<Told>>,
}

impl Monitor {
    pub(crate) fn start(cluster: &KubeCluster) -> Result<Self> {
        let allowed = tests::run(&["chrt", "--rr", REALTIME, "true"]);
        allowed.context("times cannot be taken without real-time priority")?;
        let mut monitor = Self { programs: Vec::new(), told: Arc::default() };
        for node in cluster.nodes() {
            let host = node.host();
            let mut program = Command::new("chrt")
                .args(["--rr", REALTIME, "ip", "netns", "exec", &host.netns])
                .args(["nft", "monitor", "new", "elements"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start nft monitor")?;
            let lines = program.stdout.take().context("nft monitor has no output")?;
            monitor.programs.push(program);
            let (told, name) = (Arc::clone(&monitor.told), host.name.clone());
            thread::spawn(move || {
                do_not_wait();
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    let now = SystemTime::now();
                    for ip in mapped(&line) {
                        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                        told.entry((name.clone(), ip)).or_default().push(now);
                    }
                }
            });
        }
        Ok(monitor)
    }

    /// From when addresses were assigned to when the pod's own node knew, and to when the holder's
    /// did if that is another one.
    pub(crate) fn delays(&self, starts: &[Start], holder: &str) -> (Vec<Duration>, Vec<Duration>) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = |start: &Start, node: &str| {
            let assigned = start.assigned?;
            // Addresses are used again: the first time after this pod had it.
            let times = told.get(&(node.to_owned(), start.ip))?.iter();
            times.filter_map(|at| at.duration_since(assigned).ok()).min()
        };
        let own = starts.iter().filter_map(|start| delay(start, &start.node)).collect();
        let elsewhere = starts.iter().filter(|start| start.node != holder);
        (own, elsewhere.filter_map(|start| delay(start, holder)).collect())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Gives this thread real-time priority.
fn do_not_wait() {
    let thread = gettid().to_string();
    let status = Command::new("chrt").args(["--rr", "--pid", REALTIME, &thread]).status();
    assert!(status.is_ok_and(|status| status.success()), "chrt gives this thread no priority");
}

/// The pods of `add element inet egress pod_vip4 { 10.244.1.5 : 192.168.122.222 }`.
fn mapped(line: &str) -> Vec<IpAddr> {
    let of_pods = line.split_once("pod_vip4 {").map_or("", |(_, elements)| elements);
    let entries = of_pods.split(['{', '}', ',']);
    entries.filter_map(|entry| entry.split_once(" : ")?.0.trim().parse().ok()).collect()
}
