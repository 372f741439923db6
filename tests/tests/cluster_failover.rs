//! VIPs of a real Kubernetes that are moved on purpose: by a wish, because their node is emptied, because keepalived's
//! pod there is replaced. Pods of all nodes talk meanwhile, and the host outside sees nothing but the VIPs.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{
    Capture, Family, Host, Installation, TcpServer, Traffic, UdpProbe, UdpServer, eventually, vip,
    wait_until,
};

const PORT: u16 = 9300;
const RATE: u32 = 200;
const SOON: Duration = Duration::from_secs(30);
/// What a move may cost on a machine that does all at once; the benchmark `failover` has figures.
const FEW: u64 = 100;

/// A pod of each node is mapped to a VIP of each family; the Vips are called `v4` and `v6`.
struct Bed {
    installation: Installation,
    pods: Vec<Host>,
    _servers: (UdpServer, TcpServer),
}

/// What pods send, and the witness.
struct Watch {
    capture: Capture,
    traffic: Vec<Traffic>,
}

const NAMES: [&str; 2] = ["v4", "v6"];

fn vips() -> [IpAddr; 2] {
    Family::ALL.map(|family| vip(family, 222))
}

impl Bed {
    fn make() -> Result<Self> {
        let installation = Installation::start()?;
        let cluster = installation.cluster();
        for (name, vip) in NAMES.iter().zip(vips()) {
            installation.create_vip(name, &vip.to_string())?;
            let selector = "{matchLabels: {app: mapped}}";
            let spec = format!("{{ip: \"{vip}\", kind: pod, selector: {selector}}}");
            installation.create_egress("default", name, &spec)?;
        }
        let pods = cluster.pod_on_each_node("mapped")?;
        let outside = cluster.lab().outside();
        let servers = (UdpServer::start(outside, PORT)?, TcpServer::start(outside, PORT)?);
        let bed = Self { pods, _servers: servers, installation };
        for (family, vip) in Family::ALL.into_iter().zip(vips()) {
            for pod in &bed.pods {
                let probe = UdpProbe::start(pod, bed.outside(family), RATE)?;
                eventually(SOON, || probe.seen_as() == Some(vip));
            }
        }
        Ok(bed)
    }

    fn outside(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.installation.cluster().lab().outside().ip(family), PORT)
    }

    /// The name of the node that the API server says holds that VIP.
    fn holder(&self, name: &str) -> Result<String> {
        let line = format!("kubectl get vip {name} -o jsonpath={{.status.holder}}");
        Ok(self.installation.sh(&line)?.trim().to_owned())
    }

    /// Brings both VIPs to one node; its name.
    fn gather(&self, node: &str) -> Result<()> {
        for name in NAMES {
            self.wish(name, Some(node))?;
        }
        for name in NAMES {
            self.await_holder(name, node)?;
            self.wish(name, None)?;
        }
        Ok(())
    }

    fn wish(&self, name: &str, node: Option<&str>) -> Result<()> {
        let node = node.map_or("null".to_owned(), |node| format!("\"{node}\""));
        let line = format!(
            "kubectl patch vip {name} --type merge -p '{{\"spec\":{{\"preferredNode\":{node}}}}}'"
        );
        self.installation.sh(&line).map(drop)
    }

    fn await_holder(&self, name: &str, node: &str) -> Result<()> {
        let what = format!("jsonpath={{.status.holder}}={node}");
        self.installation.wait_for("default", &format!("vip/{name}"), &what)
    }

    /// Waits until both VIPs have left that node, for nodes and for the API server; where they are.
    fn await_away_from(&self, node: &str) -> Result<[String; 2]> {
        let now = || NAMES.map(|name| self.holder(name).unwrap_or_default());
        let away = |holder: &String| !holder.is_empty() && holder != node;
        ensure!(wait_until(SOON, || now().iter().all(away)), "on {node} still: {:?}", now());
        self.assert_on(&now())?;
        Ok(now())
    }

    /// The VIPs are on these nodes and no others, and the API server says that all is well.
    fn assert_on(&self, nodes: &[String; 2]) -> Result<()> {
        let lab = self.installation.cluster().lab();
        for ((name, vip), node) in NAMES.iter().zip(vips()).zip(nodes) {
            let on = || -> Vec<&str> {
                lab.holders(vip).iter().map(|number| lab.node(*number).name.as_str()).collect()
            };
            ensure!(wait_until(SOON, || on() == [node]), "{vip} is on {:?}, not {node}", on());
            for condition in ["Held", "Placed", "Unique"] {
                let what = format!("condition={condition}");
                self.installation.wait_for("default", &format!("vip/{name}"), &what)?;
            }
        }
        Ok(())
    }

    /// Waits until an Event tells that of the Vip.
    fn await_told(&self, name: &str, reason: &str, message: &str) -> Result<()> {
        let line = format!(
            "kubectl get events --field-selector involvedObject.name={name},reason={reason} \
             -o jsonpath='{{range .items[*]}}{{.message}}{{\"\\n\"}}{{end}}'"
        );
        let told = || self.installation.sh(&line).unwrap_or_default();
        let is_told = || told().lines().any(|line| line.starts_with(message));
        ensure!(wait_until(SOON, is_told), "of {name} is not told {message:?}: {}", told());
        Ok(())
    }

    fn await_told_of_move(&self, from: &str, to: &[String; 2]) -> Result<()> {
        for (name, to) in NAMES.iter().zip(to) {
            self.await_told(name, "HolderMoved", &format!("moved from Node {from} to Node {to}"))?;
        }
        Ok(())
    }

    fn watch(&self) -> Result<Watch> {
        let pods: Vec<&Host> = self.pods.iter().collect();
        let capture = Capture::start(self.installation.cluster().lab())?;
        let start = |family| Traffic::start(&pods, self.outside(family), RATE);
        Ok(Watch { capture, traffic: Family::ALL.map(start).into_iter().collect::<Result<_>>()? })
    }

    /// The name of keepalived's pod on that node.
    fn keepalived_on(&self, node: &str) -> Result<String> {
        let line = format!(
            "kubectl get pods -l name=kube-keepalived-vip --field-selector spec.nodeName={node} -o name"
        );
        let text = self.installation.sh(&line)?;
        Ok(text.lines().next().context("no pod of keepalived")?.to_owned())
    }
}

impl Watch {
    /// All of it goes on, no session has ended, little was lost, and nothing but the VIPs was seen.
    fn judge(self, what: &str, bed: &Bed) -> Result<()> {
        for traffic in &self.traffic {
            traffic.flows_within(SOON)?;
        }
        for ((traffic, family), vip) in self.traffic.into_iter().zip(Family::ALL).zip(vips()) {
            for pod in traffic.stop()? {
                println!("{what}, {family:?}: {pod}");
                assert!(pod.udp.lost <= FEW, "{what}, {family:?}: {pod}");
            }
            self.capture.assert_only_source(vip, bed.outside(family).ip(), 1000);
        }
        Ok(())
    }
}

#[test]
fn vips_move_on_purpose_and_the_host_outside_sees_nothing_else() -> Result<()> {
    let bed = Bed::make()?;
    let sh = |line: &str| bed.installation.sh(line);

    // A wish. It stays where it is when the wish is taken back.
    bed.gather("n1")?;
    let watch = bed.watch()?;
    bed.gather("n2")?;
    let on = ["n2", "n2"].map(str::to_owned);
    bed.assert_on(&on)?;
    watch.judge("preferredNode", &bed)?;
    bed.await_told_of_move("n1", &on)?;

    // A node is emptied, and comes back: nothing returns to it.
    let watch = bed.watch()?;
    sh("kubectl label node n2 egress.mapper.com/drain=true")?;
    let on = bed.await_away_from("n2")?;
    bed.await_told_of_move("n2", &on)?;
    sh("kubectl label node n2 egress.mapper.com/drain-")?;
    let mapper = "egressmapper/example-egressmapper";
    bed.installation.wait_for("default", mapper, "jsonpath={.status.readyGateways}=3")?;
    bed.assert_on(&on)?;
    watch.judge("drain", &bed)?;

    // keepalived's pod on the holder is replaced.
    bed.gather("n3")?;
    let before = bed.keepalived_on("n3")?;
    let watch = bed.watch()?;
    sh(&format!("kubectl delete {before}"))?;
    let on = bed.await_away_from("n3")?;
    bed.await_told_of_move("n3", &on)?;
    eventually(SOON, || bed.keepalived_on("n3").is_ok_and(|pod| pod != before));
    let set = "daemonset/kube-keepalived-vip";
    bed.installation.cluster().wait_rollout("default", set, SOON * 2)?;
    bed.assert_on(&on)?;
    watch.judge("keepalived's pod is replaced", &bed)
}
