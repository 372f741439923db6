//! The launcher with a real keepalived: every VIP on one node, also when a node goes, and changes disturb no other VIP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::{
    Agent, ApiServer, Family, Host, Lab, MappingsDir, PodIdentity, eventually, vip, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// A launcher on a node; stopped when dropped.
struct Launcher {
    process: Child,
    files: TempDir,
}

impl Launcher {
    fn start(node: &Host, mappings: &MappingsDir) -> Result<Self> {
        let mut command = Command::new(Agent::program()?);
        command.arg("keepalived").arg("--mappings-dir").arg(mappings.path());
        command.args(["--node-name", &node.name]);
        Self::launch(node, command)
    }

    /// As in a pod, with the arguments that images of others take too.
    fn start_in_pod(node: &Host, pod: &PodIdentity) -> Result<Self> {
        let mut command = pod.command(&Agent::program()?);
        command.args(["keepalived", "--services-configmap=default/vip-configmap"]);
        Self::launch(node, command)
    }

    fn launch(node: &Host, mut command: Command) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let log = File::create(files.path().join("log"))?;
        let run = files.path().join("run");
        fs::create_dir(&run)?;
        // As after a restart of a container: numbers that others have by now.
        fs::write(run.join("keepalived.pid"), "1\n")?;
        fs::write(run.join("vrrp.pid"), "1\n")?;
        let process = node.spawn(
            command
                .arg("--run-dir")
                .arg(run)
                .args(["--advert-interval-ms", "100"])
                .stdin(Stdio::null())
                .stderr(log),
        )?;
        Ok(Self { process, files })
    }

    /// What it adds to the priority of a VIP; 71 or more: holding counts.
    fn adds(&self, vip: IpAddr) -> Option<i16> {
        let file = format!("run/priorities/vip-{}", vip.to_string().replace(':', "-"));
        fs::read_to_string(self.files.path().join(file)).ok()?.trim().parse().ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    fn keepalived(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.files.path().join("run/keepalived.pid")).ok()?;
        Some(Pid::from_raw(text.trim().parse().ok()?))
    }

    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM)?;
        let mut status = None;
        ensure!(wait_until(SOON, || {
            status = self.process.try_wait().ok().flatten();
            status.is_some()
        }));
        ensure!(status.context("ended")?.success(), "{}", self.log());
        Ok(())
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) && self.stop().is_err() {
            // keepalived goes with its network.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Names of the nodes that have the VIP.
fn holders(lab: &Lab, vip: IpAddr) -> Vec<String> {
    let has = |node: &&Host| {
        node.sh("ip -o address").is_ok_and(|text| text.contains(&format!(" {vip}/")))
    };
    lab.nodes().iter().filter(has).map(|node| node.name.clone()).collect()
}

/// The number of the one node that has the VIP, once it is one.
#[track_caller]
fn holder(lab: &Lab, vip: IpAddr) -> usize {
    eventually(SOON, || holders(lab, vip).len() == 1);
    if holders(lab, vip) == ["n1"] { 1 } else { 2 }
}

#[track_caller]
fn await_holder(lab: &Lab, vip: IpAddr, node: usize) {
    eventually(SOON, || holders(lab, vip) == [format!("n{node}")]);
}

#[test]
fn every_vip_is_on_one_node_and_moves_when_that_stops() -> Result<()> {
    let lab = Lab::builder().nodes(2).pods_per_node(0).build()?;
    let vips = [vip(Family::V4, 221), vip(Family::V4, 222), vip(Family::V6, 223)];
    let [first, second, sixth] = vips;
    let mut mappings = MappingsDir::of(&lab)?;
    let start = |mappings: &MappingsDir, node| Launcher::start(lab.node(node), mappings);
    let mut launchers = [start(&mappings, 1)?, start(&mappings, 2)?];
    mappings.set("vip-candidates", "192.168.122.221", "n1,n2")?;
    mappings.set("vip-candidates", "192.168.122.222", "n2,n1")?;
    mappings.set_vip(first, 221)?;
    // Until holding counts the better one may come late and take it.
    let keeps = |launcher: &Launcher, vip| launcher.adds(vip).is_some_and(|adds| adds >= 71);
    eventually(SOON, || keeps(&launchers[holder(&lab, first) - 1], first));
    let one = holder(&lab, first);
    let other = 3 - one;
    let process = launchers[one - 1].keepalived().context("it runs")?;

    // What comes later disturbs nobody: same process, no move, no address taken away.
    let mut monitor = Command::new("ip");
    monitor.args(["monitor", "address"]).stdout(Stdio::piped());
    let witnesses = [lab.node(1).spawn(&mut monitor)?, lab.node(2).spawn(&mut monitor)?];
    mappings.set_vip(second, 222)?;
    mappings.set_vip(sixth, 223)?;
    holder(&lab, second);
    holder(&lab, sixth);
    assert_eq!(holders(&lab, first), [format!("n{one}")]);
    assert_eq!(launchers[one - 1].keepalived(), Some(process));
    let said = witnesses.into_iter().map(ended).collect::<Result<String>>()?;
    assert!(said.contains(&second.to_string()) && said.contains(&sixth.to_string()), "{said}");
    assert!(!said.contains(&first.to_string()), "{said}");

    launchers[one - 1].stop()?;
    for vip in vips {
        await_holder(&lab, vip, other);
    }

    // Who comes back waits, once holding counts.
    for vip in vips {
        eventually(SOON, || keeps(&launchers[other - 1], vip));
    }
    launchers[one - 1] = start(&mappings, one)?;
    eventually(SOON, || launchers[one - 1].log().contains("Entering BACKUP STATE"));
    let moved = wait_until(Duration::from_secs(1), || {
        vips.iter().any(|vip| holders(&lab, *vip) != [format!("n{other}")])
    });
    assert!(!moved, "{}", launchers[one - 1].log());

    // keepalived dies: it is started again, whatever its ghost says.
    let process = launchers[other - 1].keepalived().context("it runs")?;
    kill(process, Signal::SIGKILL)?;
    let again = || launchers[other - 1].keepalived().is_some_and(|new| new != process);
    eventually(SOON, again);
    for vip in vips {
        holder(&lab, vip);
    }

    // No VIP: nothing runs, the launcher waits.
    for vip in vips {
        mappings.remove_vip(vip)?;
    }
    eventually(SOON, || launchers.iter().all(|launcher| launcher.keepalived().is_none()));
    assert!(vips.iter().all(|vip| holders(&lab, *vip).is_empty()));
    mappings.set_vip(first, 221)?;
    holder(&lab, first);
    launchers.iter_mut().try_for_each(Launcher::stop)?;
    assert_eq!(holders(&lab, first), [""; 0]);
    Ok(())
}

#[test]
fn in_a_pod_vips_come_from_the_api_server_and_stay_without_it() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(0).build()?;
    let server = ApiServer::start_on(&lab)?;
    server.apply(include_str!("../../deploy/keepalived-vip/service_account.yaml"))?;
    server.apply(include_str!("../../deploy/keepalived-vip/role.yaml"))?;
    server.apply(include_str!("../../deploy/keepalived-vip/role_binding.yaml"))?;
    let pod = server.pod_on_node("default", "keepalived", "kube-keepalived-vip", "n1")?;
    let mut launcher = Launcher::start_in_pod(lab.node(1), &pod)?;
    let (first, second) = (vip(Family::V4, 221), vip(Family::V4, 222));
    let publish = |vips: &[(IpAddr, u8)]| {
        let of = |value: &dyn Fn(u8) -> String| -> BTreeMap<String, String> {
            vips.iter().map(|(vip, id)| (vip.to_string(), value(*id))).collect()
        };
        let object = |name: &str, data: BTreeMap<String, String>| {
            let metadata = serde_json::json!({ "name": name, "namespace": "default" });
            serde_json::json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data,
            })
            .to_string()
        };
        server.apply(&object("vip-routeid-mappings", of(&|id| id.to_string())))?;
        server.apply(&object("vip-configmap", of(&|_| String::new())))
    };
    publish(&[(first, 221)])?;
    await_holder(&lab, first, 1);
    server.kill()?;
    eventually(SOON, || launcher.log().contains("cannot watch"));
    assert_eq!(holders(&lab, first), ["n1"]);
    server.restart()?;
    publish(&[(second, 222)])?;
    await_holder(&lab, second, 1);
    eventually(SOON, || holders(&lab, first).is_empty());
    launcher.stop()?;
    assert_eq!(holders(&lab, second), [""; 0]);
    Ok(())
}

fn ended(mut witness: Child) -> Result<String> {
    witness.kill()?;
    Ok(String::from_utf8(witness.wait_with_output()?.stdout)?)
}
