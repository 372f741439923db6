//! Pods of a real Kubernetes whose first act is to send: none of their packets leaves with another
//! address than the VIP, however they come and go.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{Capture, Installation, eventually};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 222);
/// What the pod of a Job does: some of each, and then it is done.
const ONCE: &str = "timeout -s KILL 1 nslookup -type=a first TARGET >/dev/null; \
    nc -w 1 TARGET 7002 </dev/null; ping -q -c 5 -i 0.05 TARGET; true";
const STARTED_WITHIN: Duration = Duration::from_mins(3);
/// What the pods do: TARGET is an address of the host outside that nobody else sends to.
const COMMAND: &str = "timeout -s KILL 1 nslookup -type=a first TARGET >/dev/null & \
    (while :; do nc -w 1 TARGET 7002 </dev/null; done) & exec ping -q -i 0.05 TARGET";

/// One test at a time: they share a cluster of two processors.
struct Bed {
    installation: &'static Installation,
    target: IpAddr,
    capture: Capture,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    /// The pods with that label are covered; `number` tells this test's packets from others'.
    fn take(label: &str, number: u8) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let installation = Installation::shared()?;
        let lab = installation.cluster().lab();
        let target = Ipv4Addr::new(192, 168, 122, number);
        let (netns, address) = (&lab.outside().netns, format!("{target}/24"));
        tests::run(&["ip", "-n", netns, "addr", "add", &address, "dev", "eth0"])?;
        installation.create_vip("first-packet", &VIP.to_string())?;
        let egress =
            format!("{{ip: {VIP}, kind: pod, selector: {{matchLabels: {{app: {label}}}}}}}");
        installation.create_egress("default", label, &egress)?;
        for agents in ["kube-egress", "kube-keepalived-vip"] {
            let what = format!("daemonset/{agents}");
            installation.cluster().wait_rollout("default", &what, STARTED_WITHIN)?;
        }
        let capture = Capture::start(lab)?;
        Ok(Self { installation, target: target.into(), capture, _turn: turn })
    }

    /// The spec of a pod that sends at once.
    fn spec(&self) -> String {
        self.spec_of(COMMAND, "Always")
    }

    fn spec_of(&self, command: &str, restart: &str) -> String {
        let command = command.replace("TARGET", &self.target.to_string());
        format!(
            "{{terminationGracePeriodSeconds: 1, restartPolicy: {restart}, containers: [{{name: main, \
             image: 'localhost/busybox:1', imagePullPolicy: Never, command: [sh, -c, \"{command}\"]}}]}}"
        )
    }

    /// How many datagrams that pods sent as their first act have arrived.
    fn first_packets(&self) -> u64 {
        let (target, port) = (self.target, 53);
        let is_first = |flow: &tests::Flow| {
            flow.destination == target && flow.destination_port == port && flow.source == VIP
        };
        self.capture.sources_where(is_first).map_or(0, |sources| sources.into_values().sum())
    }

    /// So many pods have been heard, and no packet had another address.
    #[track_caller]
    fn assert_heard(&self, pods: u64) {
        eventually(STARTED_WITHIN, || self.first_packets() >= pods);
        self.capture.assert_only_source(VIP.into(), self.target, pods);
    }

    /// One more address of the host outside.
    fn further_target(&self, number: u8) -> Result<IpAddr> {
        let target = Ipv4Addr::new(192, 168, 122, number);
        let netns = &self.installation.cluster().lab().outside().netns;
        tests::run(&["ip", "-n", netns, "addr", "add", &format!("{target}/24"), "dev", "eth0"])?;
        Ok(target.into())
    }

    /// Whether unknown pods never leave.
    fn be_strict(&self, strict: bool) -> Result<()> {
        let patch = format!("{{\"spec\":{{\"strictPods\":{strict}}}}}");
        self.sh(&format!("kubectl patch egressmapper --type=merge -p '{patch}' $(kubectl get egressmapper -o name | cut -d/ -f2)"))?;
        let args = "kubectl get daemonset/kube-egress -o jsonpath='{.spec.template.spec.containers[0].args}'";
        eventually(STARTED_WITHIN, || {
            self.sh(args).is_ok_and(|args| args.contains("--strict-pods") == strict)
        });
        let agents = "daemonset/kube-egress";
        self.installation.cluster().wait_rollout("default", agents, STARTED_WITHIN).map(drop)
    }

    /// How many packets the nodes have dropped for that reason.
    fn dropped(&self, reason: &str) -> u64 {
        let counter = ["nft", "list", "counter", "inet", "egress", reason];
        let count = |node: &tests::KubeNode| -> Option<u64> {
            let text = node.run(&counter).ok()?;
            text.split("packets ").nth(1)?.split(' ').next()?.parse().ok()
        };
        self.installation.cluster().nodes().iter().filter_map(count).sum()
    }

    /// How many echo requests have gone to that address with the VIP.
    fn echoes(&self, target: IpAddr) -> u64 {
        let are = |flow: &tests::Flow| {
            flow.destination == target && flow.protocol == 1 && flow.source == VIP
        };
        self.capture.sources_where(are).map_or(0, |sources| sources.into_values().sum())
    }

    /// The nodes have ended all pods whose names begin so.
    #[track_caller]
    fn wait_ended(&self, name: &str) {
        let pattern = format!("\"K8S_POD_NAME\",\"{name}");
        let list = ["sh", "-c", "grep -ls \"$0\" /var/lib/cni/results/* || true", &pattern];
        let has_ended = |node: &tests::KubeNode| node.run(&list).is_ok_and(|text| text.is_empty());
        eventually(STARTED_WITHIN, || self.installation.cluster().nodes().iter().all(has_ended));
    }

    fn sh(&self, line: &str) -> Result<String> {
        self.installation.sh(line)
    }
}

fn pods(label: &str, count: usize, spec: &str) -> String {
    let pod = |number| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{namespace: default, name: {label}-{number}, labels: {{app: {label}}}}}
spec: {spec}
---
"
        )
    };
    (0..count).map(pod).collect()
}

fn burst(bed: &Bed, label: &str, count: usize) -> Result<()> {
    bed.installation.apply(&pods(label, count, &bed.spec())).map(drop)
}

#[test]
fn a_burst_of_pods_leaves_with_the_vip_from_the_first_packet() -> Result<()> {
    let bed = Bed::take("burst", 150)?;
    // Others start in between, to whom nothing happens.
    let beside = bed.further_target(160)?;
    let uncovered =
        pods("beside", 4, &bed.spec().replace(&bed.target.to_string(), &beside.to_string()));
    let all = pods("burst", 20, &bed.spec()) + &uncovered;
    bed.installation.apply(&all)?;
    bed.assert_heard(20);
    let first_of_others = |flow: &tests::Flow| {
        flow.destination == beside && flow.destination_port == 53 && flow.source != VIP
    };
    eventually(STARTED_WITHIN, || {
        let heard = bed.capture.sources_where(first_of_others);
        heard.is_ok_and(|sources| sources.into_values().sum::<u64>() == 4)
    });
    bed.sh("kubectl delete pods --wait=false -l app=beside")?;
    let nodes = bed.sh("kubectl get pods -l app=burst -o jsonpath='{.items[*].spec.nodeName}'")?;
    let holder = bed.sh("kubectl get vip first-packet -o jsonpath='{.status.holder}'")?;
    let here = nodes.split_whitespace().filter(|node| *node == holder.trim()).count();
    assert!(here > 0 && here < 20, "on the holder's node and on others: {nodes}");
    bed.sh("kubectl delete pods -l app=burst")?;
    bed.assert_heard(20);
    Ok(())
}

#[test]
fn owners_that_make_pods_anew_leak_nothing() -> Result<()> {
    let bed = Bed::take("owned", 151)?;
    let template =
        format!("template: {{metadata: {{labels: {{app: owned}}}}, spec: {}}}", bed.spec());
    bed.installation.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{namespace: default, name: owned}}
spec: {{replicas: 4, selector: {{matchLabels: {{app: owned}}}}, {template}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{namespace: default, name: owned-set}}
spec: {{replicas: 2, serviceName: owned, podManagementPolicy: Parallel, selector: {{matchLabels: {{app: owned}}}}, {template}}}
"
    ))?;
    bed.assert_heard(6);
    bed.sh("kubectl scale deployment/owned --replicas=1")?;
    bed.sh("kubectl scale deployment/owned --replicas=5")?;
    bed.assert_heard(10);
    bed.sh("kubectl delete pod owned-set-0 owned-set-1")?;
    bed.assert_heard(12);
    bed.installation.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{namespace: default, name: owned-job}}
spec: {{completions: 2, parallelism: 2, template: {{metadata: {{labels: {{app: owned}}}}, spec: {}}}}}
",
        bed.spec_of(ONCE, "Never")
    ))?;
    bed.assert_heard(14);
    bed.sh("kubectl wait --for=condition=Complete --timeout=60s job/owned-job && kubectl delete job/owned-job")?;
    bed.sh("kubectl delete deployment/owned statefulset/owned-set && kubectl wait --for=delete pods -l app=owned")?;
    bed.assert_heard(14);
    Ok(())
}

#[test]
fn pods_that_are_deleted_by_force_leak_nothing_until_their_nodes_have_ended_them() -> Result<()> {
    const RUNS_ON: &str = "terminationGracePeriodSeconds: 5";
    let bed = Bed::take("forced", 154)?;
    let spec = bed.spec().replace("terminationGracePeriodSeconds: 1", RUNS_ON);
    bed.installation.apply(&pods("forced", 4, &spec))?;
    bed.assert_heard(4);
    let before = bed.dropped("held");
    bed.sh("kubectl delete pods -l app=forced --grace-period=0 --force")?;
    bed.wait_ended("forced-");
    bed.assert_heard(4);
    let held = bed.dropped("held") - before;
    assert!(held > 50, "they did not run on: {held} packets were dropped");

    // Those that have hardly begun: the API server may never know their addresses.
    bed.installation.apply(&pods("forced", 4, &spec))?;
    bed.sh("kubectl delete pods -l app=forced --grace-period=0 --force")?;
    bed.installation.apply(&pods("forced", 4, &spec))?;
    bed.assert_heard(8);
    bed.sh("kubectl delete pods -l app=forced --grace-period=0 --force")?;
    bed.wait_ended("forced-");
    bed.assert_heard(8);
    let map = ["nft", "list", "map", "inet", "egress", "pod_vip4"];
    let forgets =
        |node: &tests::KubeNode| node.run(&map).is_ok_and(|text| !text.contains("elements"));
    eventually(STARTED_WITHIN, || bed.installation.cluster().nodes().iter().all(forgets));
    Ok(())
}

#[test]
fn a_frozen_controller_is_ended_and_leaks_nothing_if_strict() -> Result<()> {
    /// kubelet notices within 20 seconds and starts another; the rest is for a busy machine.
    const ENDED_WITHIN: Duration = Duration::from_mins(1);
    let bed = Bed::take("frozen", 155)?;
    let freeze = || {
        bed.sh("kubectl rollout status deployment/egress-mapper")?;
        let newest = "kubectl get pods -l name=egress-mapper --sort-by=.metadata.creationTimestamp \
                      -o jsonpath='{.items[-1:].metadata.name}'";
        bed.installation.container_of(bed.sh(newest)?.trim())?.freeze()
    };
    freeze()?;
    let frozen = Instant::now();
    burst(&bed, "frozen", 3)?;
    // What nobody says of a pod its node cannot know: it leaves with the node's address ...
    let others = |flow: &tests::Flow| flow.destination == bed.target && flow.source != VIP;
    eventually(STARTED_WITHIN, || {
        bed.capture.sources_where(others).is_ok_and(|sources| !sources.is_empty())
    });
    // ... until there is another controller.
    eventually(ENDED_WITHIN, || bed.echoes(bed.target) > 0);
    println!("a frozen controller: pods have their VIP after {:?}", frozen.elapsed());
    let is_mapped = || {
        bed.capture.clear();
        eventually(STARTED_WITHIN, || bed.echoes(bed.target) > 100);
        bed.capture.sources_where(others).is_ok_and(|sources| sources.is_empty())
    };
    eventually(STARTED_WITHIN, is_mapped);
    bed.sh("kubectl delete pods -l app=frozen")?;

    bed.be_strict(true)?;
    let strictly = bed.further_target(165)?;
    let before = bed.dropped("unsure");
    freeze()?;
    let spec = bed.spec().replace(&bed.target.to_string(), &strictly.to_string());
    bed.installation.apply(&pods("frozen", 3, &spec))?;
    eventually(STARTED_WITHIN, || bed.dropped("unsure") > before);
    eventually(STARTED_WITHIN, || bed.echoes(strictly) > 300);
    bed.sh("kubectl delete pods -l app=frozen")?;
    bed.capture.assert_only_source(VIP.into(), strictly, 300);
    bed.be_strict(false)
}

#[test]
fn a_pod_whose_sandbox_is_made_anew_keeps_its_vip_with_its_new_address() -> Result<()> {
    let bed = Bed::take("anew", 156)?;
    burst(&bed, "anew", 4)?;
    bed.assert_heard(4);
    bed.sh("kubectl wait --for=condition=Ready --timeout=180s pods -l app=anew")?;
    let list = "kubectl get pods -l app=anew -o jsonpath='{.items[*].status.podIP}'";
    let addresses = || -> Result<BTreeSet<String>> {
        Ok(bed.sh(list)?.split_whitespace().map(str::to_owned).collect())
    };
    let before = addresses()?;
    for number in 0..4 {
        bed.installation.container_of(&format!("anew-{number}"))?.kill_sandbox()?;
    }
    eventually(STARTED_WITHIN, || {
        addresses().is_ok_and(|now| now.len() == 4 && now.is_disjoint(&before))
    });
    println!("{} of 4 first packets with a new address arrived", bed.first_packets() - 4);
    let echoes = bed.echoes(bed.target);
    eventually(STARTED_WITHIN, || bed.echoes(bed.target) > echoes + 300);
    bed.assert_heard(4);
    bed.sh("kubectl delete pods -l app=anew")?;
    bed.assert_heard(4);
    Ok(())
}

#[test]
fn a_controller_that_restarts_meanwhile_costs_packets_but_leaks_none() -> Result<()> {
    let bed = Bed::take("restart", 152)?;
    bed.sh("kubectl rollout restart deployment/egress-mapper")?;
    burst(&bed, "restart", 10)?;
    let all = "kubectl wait --for=condition=Ready --timeout=180s pods -l app=restart";
    bed.sh(all).context("the pods do not run")?;
    let echoes = |bed: &Bed| {
        let target = bed.target;
        let of_pods = |flow: &tests::Flow| flow.destination == target && flow.protocol == 1;
        bed.capture.sources_where(of_pods).map_or(0, |sources| sources.into_values().sum::<u64>())
    };
    let before = echoes(&bed);
    eventually(STARTED_WITHIN, || echoes(&bed) > before + 500);
    bed.capture.assert_only_source(VIP.into(), bed.target, 500);
    bed.sh("kubectl delete pods -l app=restart")?;
    bed.capture.assert_only_source(VIP.into(), bed.target, 500);
    Ok(())
}

#[test]
fn strictly_nothing_leaks_of_pods_that_are_bound_while_no_controller_runs() -> Result<()> {
    let bed = Bed::take("strict", 153)?;
    bed.be_strict(true)?;
    bed.sh("kubectl scale deployment/egress-mapper --replicas=0 && kubectl wait --for=delete pods -l name=egress-mapper")?;
    burst(&bed, "strict", 6)?;
    bed.sh("kubectl wait --for=condition=Ready --timeout=180s pods -l app=strict")?;
    let dropped = |node: &tests::KubeNode| {
        let counter = ["nft", "list", "counter", "inet", "egress", "unsure"];
        node.run(&counter).is_ok_and(|text| !text.contains("packets 0 "))
    };
    eventually(STARTED_WITHIN, || bed.installation.cluster().nodes().iter().any(dropped));
    bed.capture.assert_silent(bed.target);
    bed.sh("kubectl scale deployment/egress-mapper --replicas=1")?;
    let echoes = |flow: &tests::Flow| flow.destination == bed.target && flow.protocol == 1;
    eventually(STARTED_WITHIN, || {
        let heard = bed.capture.sources_where(echoes);
        heard.is_ok_and(|sources| sources.into_values().sum::<u64>() > 300)
    });
    bed.capture.assert_only_source(VIP.into(), bed.target, 300);

    // One that nothing is for is let out once that was said.
    let beside = bed.further_target(163)?;
    let spec = bed.spec().replace(&bed.target.to_string(), &beside.to_string());
    bed.installation.apply(&pods("beside-strict", 1, &spec))?;
    eventually(STARTED_WITHIN, || {
        let heard = bed.capture.sources_where(|flow| flow.destination == beside);
        heard.is_ok_and(|sources| sources.keys().any(|source| *source != VIP))
    });
    bed.sh("kubectl delete pods -l app=strict && kubectl delete pods -l app=beside-strict")?;
    bed.capture.assert_only_source(VIP.into(), bed.target, 300);
    bed.be_strict(false)
}
