//! How the laboratory is put together: namespaces, sysctls, links, then each machine's own set-up.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::{Family, Lab};
use crate::command::run_within;
use crate::host::{Host, write_sysctl};
use crate::rules;
use crate::wait::wait_until;

const IP_BATCH: [&str; 3] = ["ip", "-batch", "-"];
const BRIDGE: &str = "mcast_snooping 0 forward_delay 0";
/// The kernel has namespaces made one after the other, and those that go are in the way.
const MADE_WITHIN: Duration = Duration::from_secs(90);
const LINKS_WITHIN: Duration = Duration::from_secs(10);
/// What VXLAN leaves of 1500.
const POD_MTU: u16 = 1450;

/// Builds all of it; on an error the caller removes what is there.
pub(super) fn build(lab: &Lab) -> Result<()> {
    let namespaces: Vec<String> =
        lab.hosts().map(|host| format!("netns add {}", host.netns)).collect();
    run_within(MADE_WITHIN, &IP_BATCH, &namespaces.join("\n"))?;
    // Before the links: an interface takes its defaults from the namespace when it appears.
    each(lab.hosts(), |host| host.enter(|| sysctls(lab, host))?)?;
    run_within(MADE_WITHIN, &IP_BATCH, &links(lab))?;
    each(lab.hosts(), |host| {
        let batch = set_up(lab, host);
        host.run_with_input(&IP_BATCH, &batch).map(drop)
    })?;
    each(lab.nodes(), |node| {
        vxlan_destinations(lab, node)?;
        rules::load(lab, node)
    })?;
    each(lab.hosts(), wait_for_links)
}

/// Waits until every interface works: the kernel says so some time after both ends are up, and a
/// bridge forwards to a port only then.
fn wait_for_links(host: &Host) -> Result<()> {
    let works = |flags: InterfaceFlags| {
        !flags.contains(InterfaceFlags::IFF_UP) || flags.contains(InterfaceFlags::IFF_RUNNING)
    };
    let all_work = host.enter(|| {
        wait_until(LINKS_WITHIN, || {
            getifaddrs().is_ok_and(|mut entries| entries.all(|entry| works(entry.flags)))
        })
    })?;
    ensure!(all_work, "an interface does not come up within {LINKS_WITHIN:?}");
    Ok(())
}

/// Does it to every host at once.
fn each<'a>(
    hosts: impl IntoIterator<Item = &'a Host>,
    act: impl Fn(&Host) -> Result<()> + Sync,
) -> Result<()> {
    let act = &act;
    thread::scope(|scope| {
        let workers: Vec<_> = hosts
            .into_iter()
            .map(|host| {
                scope.spawn(move || {
                    act(host).with_context(|| format!("cannot set up {}", host.name))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_| anyhow!("a set-up thread panicked"))?
        })
    })
}

fn sysctls(lab: &Lab, host: &Host) -> Result<()> {
    for scope in ["all", "default"] {
        // No waiting for duplicate addresses, no asking for routers: addresses work at once.
        write_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        write_sysctl(&format!("net/ipv6/conf/{scope}/dad_transmits"), "0")?;
        write_sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), "0")?;
        write_sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    let is_node = lab.nodes().contains(host);
    if is_node || *host == lab.router {
        write_sysctl("net/ipv4/ip_forward", "1")?;
        write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        write_sysctl("net/ipv6/conf/default/forwarding", "1")?;
    }
    if is_node {
        write_sysctl("net/ipv4/conf/default/rp_filter", &lab.options.rp_filter.to_string())?;
    }
    // Kubernetes nodes let iptables see bridged frames; the switch must not.
    let on = if is_node { "1" } else { "0" };
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if Path::new("/proc/sys").join(key).exists() {
            write_sysctl(key, on)?;
        }
    }
    Ok(())
}

/// The cables: on the LAN's side each is named like the machine, at a pod's node `veth<k>`.
fn links(lab: &Lab) -> String {
    let lan = &lab.lan.netns;
    let mut batch = String::new();
    let on_lan = lab.nodes().iter().chain([&lab.outside, &lab.router]);
    for (host, interface) in on_lan.map(|host| (host, lan_interface(lab, host))) {
        let mac = Lab::lan_mac(host).map(|byte| format!("{byte:02x}")).join(":");
        let _ = writeln!(
            batch,
            "link add {interface} netns {} address {mac} type veth peer name {} netns {lan}",
            host.netns, host.name
        );
    }
    let mut cable = |netns: &str, name: &str, far_netns: &str, far_name: &str, mtu: u16| {
        let _ = writeln!(
            batch,
            "link add {name} netns {netns} mtu {mtu} type veth \
             peer name {far_name} netns {far_netns} mtu {mtu}"
        );
    };
    cable(&lab.far.netns, "eth0", &lab.router.netns, "far", 1500);
    for (node, pods) in lab.nodes().iter().zip(&lab.pods) {
        for (pod, number) in pods.iter().zip(1..) {
            cable(&pod.netns, "eth0", &node.netns, &format!("veth{number}"), POD_MTU);
        }
    }
    batch
}

fn lan_interface(lab: &Lab, host: &Host) -> &'static str {
    if *host == lab.router { "lan" } else { "eth0" }
}

/// The `ip` batch of one machine.
fn set_up(lab: &Lab, host: &Host) -> String {
    let Host { v4, v6, .. } = host;
    let mut batch = "link set lo up\n".to_owned();
    let out = &mut batch;
    if *host == lab.lan {
        let _ = writeln!(out, "link add br0 type bridge {BRIDGE}\nlink set br0 up");
        let machines = lab.nodes().iter().map(|node| node.name.as_str());
        for port in machines.chain(["outside", "router"]) {
            let _ = writeln!(out, "link set {port} up master br0");
        }
    } else if *host == lab.router {
        up(out, "lan", &format!("{v4}/24"), &format!("{v6}/64"));
        up(out, "far", "203.0.113.1/24", "fd00:203::1/64");
    } else {
        up(out, "eth0", &format!("{v4}/24"), &format!("{v6}/64"));
        if let Some(number) = lab.nodes().iter().position(|node| node == host) {
            node(out, lab, number + 1);
        }
        let (gateway4, gateway6) = gateways(lab, host);
        let _ = writeln!(out, "route add default via {gateway4}\nroute add default via {gateway6}");
    }
    batch
}

fn up(out: &mut String, interface: &str, v4: &str, v6: &str) {
    let _ = writeln!(
        out,
        "link set {interface} up\naddr add {v4} dev {interface}\naddr add {v6} dev {interface} nodad"
    );
}

fn gateways(lab: &Lab, host: &Host) -> (String, String) {
    let node_of_pod = lab.pods.iter().position(|pods| pods.contains(host));
    if let Some(node) = node_of_pod {
        (format!("10.244.{}.1", node + 1), format!("fd00:244:{}::1", node + 1))
    } else if *host == lab.far {
        ("203.0.113.1".to_owned(), "fd00:203::1".to_owned())
    } else {
        (lab.router.v4.to_string(), lab.router.v6.to_string())
    }
}

fn vxlan_mac(node: usize) -> String {
    format!("06:00:0a:f4:00:{node:02x}")
}

fn node(out: &mut String, lab: &Lab, number: usize) {
    let _ = writeln!(out, "link add cni0 mtu {POD_MTU} type bridge {BRIDGE}");
    up(out, "cni0", &format!("10.244.{number}.1/24"), &format!("fd00:244:{number}::1/64"));
    for veth in 1..=lab.options.pods_per_node {
        let _ = writeln!(out, "link set veth{veth} up master cni0");
        let _ = writeln!(out, "link set veth{veth} type bridge_slave hairpin on");
    }
    let _ = writeln!(
        out,
        "link add flannel.1 address {} mtu {POD_MTU} type vxlan id 1 local {} dev eth0 \
         dstport 8472 nolearning",
        vxlan_mac(number),
        lab.node(number).v4,
    );
    up(out, "flannel.1", &format!("10.244.{number}.0/32"), &format!("fd00:244:{number}::/128"));
    for other in (1..=lab.nodes().len()).filter(|other| *other != number) {
        let mac = vxlan_mac(other);
        for (base, subnet) in [
            (format!("10.244.{other}.0"), format!("10.244.{other}.0/24")),
            (format!("fd00:244:{other}::"), format!("fd00:244:{other}::/64")),
        ] {
            let _ = writeln!(out, "neigh add {base} lladdr {mac} dev flannel.1 nud permanent");
            let _ = writeln!(out, "route add {subnet} via {base} dev flannel.1 onlink");
        }
    }
}

fn vxlan_destinations(lab: &Lab, node: &Host) -> Result<()> {
    let batch: Vec<String> = (1..)
        .zip(lab.nodes())
        .filter(|(_, other)| *other != node)
        .map(|(number, other)| {
            let (mac, ip) = (vxlan_mac(number), other.ip(Family::V4));
            format!("fdb append {mac} dev flannel.1 dst {ip} self permanent")
        })
        .collect();
    node.run_with_input(&["bridge", "-batch", "-"], &batch.join("\n")).map(drop)
}
