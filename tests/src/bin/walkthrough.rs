//! The walkthrough of the README, for real: a Kubernetes of three workers on this machine, the
//! images and manifests of this repository, and a host outside that says who called it.
//!
//! Every command is printed and run as a person would type it; every step checks what it shows, and
//! the program fails when something is not as it should be.

use std::io::{Write, stderr, stdout};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tests::{
    Capture, KubeCluster, Shell, UdpProbe, UdpServer, Witness, left_on, sender, wait_until,
};

/// Of the samples in `deploy/crds`.
const VIP: &str = "192.168.122.222";
const VIP_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 122, 222));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 122, 64));
const POD: &str = "kubectl run -n default pod1 --image=localhost/busybox:1 --image-pull-policy=Never \
                   --restart=Never --command -- sh -c \"trap : TERM INT; (while true;do sleep 1000;done) & wait\"";
const PING: &str = "kubectl exec pod1 -- ping -c 1 192.168.122.64";
const PORT: u16 = 7000;
/// What the pod sends while the VIP fails over.
const PER_SECOND: u32 = 500;
/// How long a failover may take: three adverts of 0.1 s and more, on a machine that does all at once.
const FAILS_OVER_WITHIN: Duration = Duration::from_secs(10);
/// What the installation makes, in this order; more may come between or after.
const INSTALLED: [&str; 11] = [
    "serviceaccount/egress-mapper",
    "role.rbac.authorization.k8s.io/egress-mapper",
    "rolebinding.rbac.authorization.k8s.io/egress-mapper",
    "customresourcedefinition.apiextensions.k8s.io/egressmappers.egress.mapper.com",
    "egressmapper.egress.mapper.com/example-egressmapper",
    "customresourcedefinition.apiextensions.k8s.io/egresses.egress.mapper.com",
    "customresourcedefinition.apiextensions.k8s.io/vips.egress.mapper.com",
    "serviceaccount/kube-keepalived-vip",
    "clusterrole.rbac.authorization.k8s.io/kube-keepalived-vip",
    "clusterrolebinding.rbac.authorization.k8s.io/kube-keepalived-vip",
    "deployment.apps/egress-mapper",
];
/// tcpdump's two lines of a ping are there by then.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// Deploys egress-mapper into a real Kubernetes on this machine and shows what it does.
#[derive(Debug, Parser)]
#[command(name = "walkthrough", max_term_width = 100)]
struct Options {
    /// Where the image archives are, as deploy/images/build.sh --archives writes them.
    #[arg(long, value_name = "DIR", default_value = "target/images")]
    images: PathBuf,
    /// Leaves the cluster running to play with: before the removal, or where a step failed.
    #[arg(long)]
    keep: bool,
}

struct Walkthrough {
    cluster: KubeCluster,
    shell: Shell,
}

fn main() -> ExitCode {
    match walk(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "\nwalkthrough: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn walk(options: &Options) -> Result<()> {
    let started = Instant::now();
    tests::sweep()?;
    title("A Kubernetes of three workers, and a host outside")?;
    let cluster = KubeCluster::start()?;
    for image in ["egress-mapper", "kube-egress", "kube-keepalived-vip"] {
        cluster.import_image(&image_archive(&options.images, image)?)?;
    }
    let shell = cluster.server().shell()?.echoing();
    let walkthrough = Walkthrough { cluster, shell };
    let walked = walkthrough.all_steps(options.keep);
    if options.keep {
        walkthrough.keep()?;
    }
    walked?;
    say(format!("\nAll of it was as it should be, in {} s.", started.elapsed().as_secs()))
}

impl Walkthrough {
    fn all_steps(&self, keep: bool) -> Result<()> {
        self.run("kubectl get nodes -o wide")?;
        self.deploy()?;
        self.create_vip_and_egress()?;
        let first = self.create_pod()?;
        self.ping("the VIP", |seen| seen == VIP_ADDRESS)?;
        self.look()?;
        self.recreate_pod(first)?;
        self.ping("the VIP", |seen| seen == VIP_ADDRESS)?;
        self.fail_over()?;
        if keep {
            return Ok(());
        }
        self.undeploy()?;
        let node = self.node_of_pod()?;
        self.ping("its node's address", |seen| seen == node)?;
        self.nothing_left()
    }

    fn deploy(&self) -> Result<()> {
        title("Deploy egress-mapper")?;
        let printed = self.run("deploy/deploy.sh")?;
        let mut lines = printed.lines();
        for wanted in INSTALLED {
            ensure!(
                lines.any(|line| line == format!("{wanted} created")),
                "deploy/deploy.sh did not create {wanted}, or not in the order of the README"
            );
        }
        title("Confirm that the controller and both DaemonSets work")?;
        let deployment = self.run("kubectl get deployment")?;
        ensure!(row(&deployment, "egress-mapper")?[1] == "1/1", "the controller is not ready");
        let sets = self.run("kubectl get ds")?;
        for name in ["kube-egress", "kube-keepalived-vip"] {
            ensure!(row(&sets, name)?[3] == "3", "{name} is not ready on all three nodes");
        }
        self.run("kubectl get pod").map(drop)
    }

    fn create_vip_and_egress(&self) -> Result<()> {
        title("Create a VIP")?;
        let printed = self.run("kubectl create -f deploy/crds/egress_v1alpha1_vip_cr.yaml")?;
        ensure!(printed == "vip.egress.mapper.com/example-vip created\n", "no Vip was created");
        let vips = self.run(
            "kubectl get vip -o=custom-columns=NAME:.metadata.name,IP:.spec.ip,ROUTEID:.spec.routeid",
        )?;
        ensure!(row(&vips, "example-vip")? == ["example-vip", VIP, "64"], "the Vip is another one");
        title("Create an Egress")?;
        let printed = self.run("kubectl create -f deploy/crds/egress_v1alpha1_egress_cr.yaml")?;
        ensure!(
            printed == "egress.egress.mapper.com/example-pod1-egress created\n",
            "no Egress was created"
        );
        let egresses = self.run(
            "kubectl get egress -o=custom-columns=NAME:.metadata.name,IP:.spec.ip,KIND:.spec.kind,NAMESPACE:.spec.namespace,RESOURCENAME:.spec.name",
        )?;
        ensure!(
            row(&egresses, "example-pod1-egress")?
                == ["example-pod1-egress", VIP, "pod", "default", "pod1"],
            "the Egress is another one"
        );
        self.run("kubectl wait --for=condition=Held --timeout=60s vip/example-vip").map(drop)
    }

    fn create_pod(&self) -> Result<IpAddr> {
        title("Create a pod, and call a host outside")?;
        self.run(POD)?;
        self.wait_for_pod()
    }

    fn recreate_pod(&self, before: IpAddr) -> Result<()> {
        title("Delete the pod and create it again: another address, the same VIP")?;
        self.run("kubectl delete pod pod1")?;
        self.run(POD)?;
        let now = self.wait_for_pod()?;
        ensure!(now != before, "the pod has the address {before} again: this shows nothing");
        Ok(())
    }

    fn wait_for_pod(&self) -> Result<IpAddr> {
        self.run("kubectl wait --for=condition=Ready --timeout=60s pod/pod1")?;
        let pods = self.run("kubectl get pod pod1 -o wide")?;
        row(&pods, "pod1")?[5].parse().context("the pod has no address")
    }

    /// Pings the host outside, which says who called; nobody else may have.
    fn ping(&self, whose: &str, expected: impl Fn(IpAddr) -> bool) -> Result<()> {
        let outside = self.cluster.lab().outside();
        let capture = Capture::start(self.cluster.lab())?;
        let witness = Witness::on(outside, "icmp")?;
        let answered = self.run(PING)?;
        ensure!(answered.contains(" 0% packet loss"), "the ping was not answered");
        say("  while on the host outside:")?;
        say("  $ tcpdump -nn icmp")?;
        let lines = witness.lines(2, SEEN_WITHIN);
        lines.iter().try_for_each(|line| say(format!("  {line}")))?;
        let seen = lines.first().and_then(|line| sender(line));
        ensure!(
            seen.is_some_and(&expected) && lines.len() == 2,
            "the host outside was to be called with {whose}, but saw {lines:?}"
        );
        let sources = capture.sources_towards(OUTSIDE)?;
        ensure!(
            sources.keys().copied().all(expected),
            "packets with another address than {whose} left the cluster: {sources:?}"
        );
        Ok(())
    }

    fn look(&self) -> Result<()> {
        title("Who holds the VIP, and who uses it")?;
        self.run("kubectl wait --for=condition=Ready --timeout=10s egress/example-pod1-egress")?;
        self.run("kubectl get vip,egress,egressmapper")?;
        self.run("kubectl describe egress example-pod1-egress").map(drop)
    }

    /// Unplugs the holder while the pod sends: another node takes the VIP.
    fn fail_over(&self) -> Result<()> {
        title("The node that holds the VIP loses its network: another one takes over")?;
        let pod = self.cluster.await_pod("default", "pod1")?;
        let mut holder = self.holder()?;
        if holder == pod.node {
            // Unplugged, it would take the pod's network away, too.
            holder = self.move_vip(&holder)?;
        }
        let _server = UdpServer::start(self.cluster.lab().outside(), PORT)?;
        let server = SocketAddr::new(OUTSIDE, PORT);
        let probe = UdpProbe::start(&self.cluster.pod_host(&pod)?, server, PER_SECOND)?;
        let goes_on = || {
            let before = probe.received();
            wait_until(FAILS_OVER_WITHIN, || probe.received() >= before + u64::from(PER_SECOND))
        };
        ensure!(goes_on(), "the pod's packets are not answered");

        let number = self.number_of(&holder)?;
        self.cluster.lab().unplug(number)?;
        say(format!("  {holder} is unplugged while pod1 sends {PER_SECOND} packets/s"))?;
        let elsewhere = || self.holder().is_ok_and(|now| now != holder);
        let moved = wait_until(FAILS_OVER_WITHIN, elsewhere) && goes_on();
        self.cluster.lab().plug_in(number)?;
        ensure!(moved, "no other node has taken the VIP");
        ensure!(goes_on(), "the node that came back has disturbed the new holder");
        self.run("kubectl get vip")?;

        let report = probe.stop()?;
        let outage = report.longest_outage.as_millis();
        let lost = report.lost;
        say(format!("  {lost} packets lost in {outage} ms; all others were seen with the VIP"))?;
        ensure!(lost > 0, "no packet was lost: the VIP was not on the node that was unplugged");
        ensure!(
            report.sources.keys().all(|source| *source == VIP_ADDRESS),
            "packets with another address left: {:?}",
            report.sources
        );
        Ok(())
    }

    fn holder(&self) -> Result<String> {
        let what = ["get", "vip", "example-vip", "-o", "jsonpath={.status.holder}"];
        self.cluster.server().kubectl(&what)
    }

    /// Moves the VIP to any other node, and says which.
    fn move_vip(&self, from: &str) -> Result<String> {
        let names = self.cluster.nodes().iter().map(|node| node.host().name.clone());
        let to = names.into_iter().find(|name| name != from).context("there is one node only")?;
        let wish = |node: &str| {
            self.run(&format!(
                "kubectl patch vip example-vip --type merge -p '{{\"spec\":{{\"preferredNode\":{node}}}}}'"
            ))
        };
        wish(&format!("\"{to}\""))?;
        self.run(&format!(
            "kubectl wait --for=jsonpath={{.status.holder}}={to} --timeout=30s vip/example-vip"
        ))?;
        wish("null")?;
        Ok(to)
    }

    fn number_of(&self, node: &str) -> Result<usize> {
        let mut nodes = self.cluster.nodes().iter();
        let place = nodes.position(|other| other.host().name == node);
        Ok(place.with_context(|| format!("there is no node {node}"))? + 1)
    }

    fn keep(self) -> Result<()> {
        let netns = self.cluster.server().host().netns.clone();
        let outside = self.cluster.lab().outside().netns.clone();
        let kubeconfig = self.cluster.server().kubeconfig();
        let guard = self.cluster.keep()?;
        title("The cluster stays")?;
        say(format!(
            "  export KUBECONFIG={}
  enter() {{ nsenter --net=/run/netns/{netns} env PATH=target/kubernetes/bin:$PATH \"$@\"; }}
  enter kubectl get vip,egress,egressmapper       # as every other command above
  enter deploy/deploy.sh -d                       # the removal, as shown without --keep
  nsenter --net=/run/netns/{outside} tcpdump -nn  # the host outside
  kill {guard}                                    # removes the cluster and all files of it",
            kubeconfig.display()
        ))
    }

    fn undeploy(&self) -> Result<()> {
        title("Undeploy")?;
        self.run("deploy/deploy.sh -d")?;
        for what in ["deployment", "ds"] {
            let printed = self.run(&format!("kubectl get {what}"))?;
            ensure!(printed.starts_with("No resources found"), "something is left: {printed}");
        }
        let pods = self.run("kubectl get pod")?;
        ensure!(pods.lines().count() == 2, "only pod1 was to be left");
        self.run("kubectl get configmap")?;
        self.run("kubectl delete configmap vip-configmap vip-routeid-mappings podip-vip-mappings")
            .map(drop)
    }

    fn node_of_pod(&self) -> Result<IpAddr> {
        let printed = self.run("kubectl get pod pod1 -o jsonpath={.status.hostIP}")?;
        printed.trim().parse().context("the pod is on no node")
    }

    fn nothing_left(&self) -> Result<()> {
        title("Nothing is left on the nodes")?;
        for node in self.cluster.nodes() {
            let left = left_on(node)?;
            ensure!(left.is_empty(), "left on {}:\n{left}", node.host().name);
            say(format!("  {}: no table, rule or route of ours", node.host().name))?;
        }
        Ok(())
    }

    fn run(&self, line: &str) -> Result<String> {
        self.shell.run(line)
    }
}

/// The row of a table that begins with that name, split at spaces.
fn row<'a>(table: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = rows.find(|row| row.first() == Some(&name) && row.len() >= 3);
    found.with_context(|| format!("there is no {name} in:\n{table}"))
}

fn image_archive(directory: &Path, image: &str) -> Result<PathBuf> {
    let path = directory.join(format!("{image}.tar"));
    path.canonicalize().with_context(|| {
        format!(
            "there is no {}: run deploy/images/build.sh --local --archives {}",
            path.display(),
            directory.display()
        )
    })
}

fn title(text: &str) -> Result<()> {
    say(format!("\n{text}"))
}

fn say(line: impl AsRef<str>) -> Result<()> {
    Ok(writeln!(stdout(), "{}", line.as_ref())?)
}
