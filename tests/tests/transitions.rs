//! Agents start, stop and die, and mappings change, while traffic runs.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use tests::{
    Capture, Cluster, EchoLoop, Family, Flow, Lab, NewFlows, Traffic, UdpProbe, eventually,
    seen_as, vip, wait_until, whoami,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);
const PODS: &str = "podip-vip-mappings";
const VIPS: &str = "vip-routeid-mappings";

fn key(address: IpAddr) -> String {
    address.to_string().replace(':', "-")
}

/// Node 1 holds both VIPs; nothing is mapped, no agent runs.
fn held_by_node_1() -> Result<Cluster> {
    let mut cluster = Cluster::new(Lab::builder().pods_per_node(1).build()?, PORT)?;
    for (family, route_id) in [(Family::V4, 64), (Family::V6, 65)] {
        cluster.mappings.set_vip(vip(family, 222), route_id)?;
        cluster.lab.hold_vip(1, vip(family, 222))?;
    }
    Ok(cluster)
}

/// As [`held_by_node_1`], the pods of nodes 1 and 2 are mapped, and agents run.
fn mapped() -> Result<Cluster> {
    let mut cluster = held_by_node_1()?;
    map_pods(&mut cluster)?;
    cluster.start_agents()?;
    Ok(cluster)
}

fn map_pods(cluster: &mut Cluster) -> Result<()> {
    let Cluster { lab, mappings, .. } = cluster;
    for family in Family::ALL {
        for node in 1..=2 {
            mappings.map(lab.pod(node, 1).ip(family), vip(family, 222))?;
        }
    }
    Ok(())
}

/// Traffic of both mapped pods to `outside`, in both families.
fn traffic(cluster: &Cluster, per_second: u32) -> Result<Vec<Traffic>> {
    let pods = [cluster.lab.pod(1, 1), cluster.lab.pod(2, 1)];
    let outside = cluster.lab.outside();
    let start = |family: Family| {
        Traffic::start(&pods, SocketAddr::new(outside.ip(family), PORT), per_second)
    };
    Family::ALL.into_iter().map(start).collect()
}

/// Waits until all of it has sent that many packets more and still flows.
fn goes_on(traffic: &[Traffic], packets: u64) -> Result<()> {
    for one in traffic {
        let sent = one.udp_sent();
        eventually(SOON, || one.udp_sent() >= sent + packets);
        one.flows_within(SOON)?;
    }
    Ok(())
}

/// Nothing was lost, no session broke, and `outside` saw nothing but the VIP.
fn nothing_happened(traffic: Vec<Traffic>, capture: &Capture, lab: &Lab) -> Result<()> {
    for (one, family) in traffic.into_iter().zip(Family::ALL) {
        let sent = one.udp_sent();
        for report in one.stop()? {
            assert_eq!(
                (report.udp.lost, report.udp.refused),
                (0, 0),
                "{report}; {:?}",
                report.udp.first_lost
            );
        }
        capture.assert_only_source(vip(family, 222), lab.outside().ip(family), sent);
    }
    Ok(())
}

#[test]
fn nothing_is_lost_or_rewritten_while_an_agent_stops_dies_and_starts_again() -> Result<()> {
    let mut cluster = mapped()?;
    let capture = Capture::start(&cluster.lab)?;
    let traffic = traffic(&cluster, 500)?;
    let before = [cluster.kernel(1, true)?, cluster.kernel(2, true)?];
    for how in [Signal::SIGTERM, Signal::SIGKILL] {
        for node in [1, 2] {
            let agent = cluster.agent(node)?;
            if how == Signal::SIGTERM {
                agent.stop()?;
            } else {
                agent.kill(how)?;
                agent.wait()?;
            }
            goes_on(&traffic, 100)?;
            assert_eq!(cluster.kernel(node, true)?, before[node - 1], "{how}: the rules stay");
        }
        for node in [1, 2] {
            cluster.start_agent(node)?;
            goes_on(&traffic, 100)?;
            assert_eq!(cluster.kernel(node, true)?, before[node - 1], "nothing is rewritten");
        }
    }
    nothing_happened(traffic, &capture, &cluster.lab)
}

/// Node 1 is the holder. A pod's node that sends to a holder without agent gets that node's address
/// from the masquerade there: no rule of ours is involved yet. So the holder's agent goes first, or
/// at the same time as others; in whatever order, no other address than the nodes' is seen before
/// the VIP, and the VIP is the end of it.
#[test]
fn the_first_agents_under_traffic_turn_nodes_addresses_into_the_vip_and_nothing_else() -> Result<()>
{
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
        let mut cluster = held_by_node_1()?;
        map_pods(&mut cluster)?;
        let capture = Capture::start(&cluster.lab)?;
        let traffic = traffic(&cluster, 300)?;
        order.into_iter().try_for_each(|node| cluster.start_agent(node))?;
        let lab = &cluster.lab;
        for family in Family::ALL {
            for node in 1..=2 {
                let server = SocketAddr::new(lab.outside().ip(family), PORT);
                assert_eq!(seen_as(lab.pod(node, 1), server)?, [vip(family, 222)]);
                assert_eq!(whoami(lab.pod(node, 1), server, SOON)?, vip(family, 222));
            }
        }
        goes_on(&traffic, 100)?;
        for (one, family) in traffic.into_iter().zip(Family::ALL) {
            let [holder, other] = [1, 2].map(|node| lab.node(node).ip(family));
            for (report, own) in one.stop()?.into_iter().zip([holder, other]) {
                println!("agents started in the order {order:?}: {report}");
                let mut seen: Vec<IpAddr> =
                    report.udp.changes.iter().map(|change| change.1).collect();
                let holder_is_late = order[0] != 1 && own == other;
                if holder_is_late {
                    seen.retain(|source| *source != holder);
                }
                assert_eq!(seen, [own, vip(family, 222)], "{}", report.pod);
            }
            let sources = capture.sources_towards(lab.outside().ip(family))?;
            let expected = [holder, other, vip(family, 222)];
            assert!(sources.keys().all(|source| expected.contains(source)), "{}", capture.text());
        }
    }
    Ok(())
}

/// First and last time that UDP came from each source to `outside`.
fn udp_times(capture: &Capture, to: IpAddr) -> Result<BTreeMap<IpAddr, (Instant, Instant)>> {
    let mut times = BTreeMap::new();
    for (flow, seen) in capture.flows()? {
        let Flow { source, destination, protocol, .. } = flow;
        if destination == to && protocol == 17 {
            let (first, last) = times.entry(source).or_insert((seen.first, seen.last));
            *first = seen.first.min(*first);
            *last = seen.last.max(*last);
        }
    }
    Ok(times)
}

/// What a pod sends while its mapping changes: UDP switches at one moment, TCP keeps what it had.
fn switches(
    cluster: &mut Cluster,
    family: Family,
    node: usize,
    [old, new]: [IpAddr; 2],
    change: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let capture = Capture::start(&cluster.lab)?;
    let pod = cluster.lab.pod(node, 1).clone();
    let outside = cluster.lab.outside().ip(family);
    let server = SocketAddr::new(outside, PORT);
    let probe = UdpProbe::start(&pod, server, 500)?;
    let flows = NewFlows::start(&pod, server, 200)?;
    let session = EchoLoop::start(&pod, server)?;
    eventually(SOON, || probe.received() > 50 && session.report().exchanges > 10);
    assert_eq!(probe.seen_as(), Some(old));
    let peers = cluster.servers[0].1.peers().len();
    change(cluster)?;
    let switched = wait_until(SOON, || probe.seen_as() == Some(new));
    let sources = capture.sources_towards(outside)?;
    assert!(switched, "not from {old} to {new}: {sources:?}");
    assert_eq!(whoami(&pod, server, SOON)?, new, "TCP that begins now");
    let (received, exchanges) = (probe.received(), session.report().exchanges);
    eventually(SOON, || {
        probe.received() > received + 50 && session.report().exchanges > exchanges + 20
    });
    drop(flows);
    let report = probe.stop()?;
    let seen: Vec<IpAddr> = report.changes.iter().map(|change| change.1).collect();
    assert_eq!(seen, [old, new], "the old address is not seen again: {report:?}");
    println!("{} from {old} to {new}: {} UDP packets lost", pod.name, report.lost);
    assert_eq!(session.report().error, None);
    let begun_before = &cluster.servers[0].1.peers()[..peers];
    assert!(begun_before.last().is_some_and(|peer| peer.ip() == old), "{begun_before:?}");
    drop(session);

    let times = udp_times(&capture, outside)?;
    assert_eq!(times.len(), 2, "{}", capture.text());
    // The mapping changes first, then what was running is forgotten: new flows may be a moment
    // ahead of old ones, none of which goes back.
    let both = times[&old].1.saturating_duration_since(times[&new].0);
    println!("both addresses were seen for {} ms", both.as_millis());
    assert!(both < Duration::from_millis(500), "{times:?}");
    Ok(())
}

#[test]
fn a_changed_mapping_switches_udp_at_once_and_leaves_tcp_sessions_alone() -> Result<()> {
    let mut cluster = mapped()?;
    for (family, route_id) in [(Family::V4, 7), (Family::V6, 8)] {
        // The other VIP has the same holder for one pod, and another for the other.
        let other = vip(family, 223);
        cluster.mappings.set_vip(other, route_id)?;
        cluster.lab.hold_vip(2, other)?;
        for node in 1..=2 {
            let pod = cluster.lab.pod(node, 1).ip(family);
            let own_node = cluster.lab.node(node).ip(family);
            let (first, second) = (vip(family, 222), other);
            let remap = |to: Option<IpAddr>| {
                move |cluster: &mut Cluster| match to {
                    Some(vip) => cluster.mappings.map(pod, vip),
                    None => cluster.mappings.unmap(pod),
                }
            };
            switches(&mut cluster, family, node, [first, second], remap(Some(second)))?;
            switches(&mut cluster, family, node, [second, first], remap(Some(first)))?;
            switches(&mut cluster, family, node, [first, own_node], remap(None))?;
            switches(&mut cluster, family, node, [own_node, second], remap(Some(second)))?;
        }
    }
    Ok(())
}

#[test]
fn held_pods_are_silent_and_a_vip_that_is_removed_in_use_holds_its_pods() -> Result<()> {
    let mut cluster = mapped()?;
    let capture = Capture::start(&cluster.lab)?;
    for family in Family::ALL {
        let outside = cluster.lab.outside().ip(family);
        let server = SocketAddr::new(outside, PORT);
        let pods = [1, 2].map(|node| cluster.lab.pod(node, 1).clone());
        let probes: Vec<UdpProbe> =
            pods.iter().map(|pod| UdpProbe::start(pod, server, 500)).collect::<Result<_>>()?;
        let flows: Vec<NewFlows> =
            pods.iter().map(|pod| NewFlows::start(pod, server, 100)).collect::<Result<_>>()?;
        let all_answered = |more: u64| {
            let before: Vec<u64> = probes.iter().map(UdpProbe::received).collect();
            eventually(SOON, || {
                probes.iter().zip(&before).all(|(probe, before)| probe.received() > before + more)
            });
        };
        let all_silent = || {
            // Changes reach the two nodes one after the other; then a while of nothing.
            eventually(SOON, || {
                capture.clear();
                let sent = probes[1].sent();
                eventually(SOON, || probes[1].sent() >= sent + 50);
                capture.sources_towards(outside).is_ok_and(|sources| sources.is_empty())
            });
            let sent = probes[1].sent();
            eventually(SOON, || probes[1].sent() >= sent + 150);
            capture.assert_silent(outside);
        };
        all_answered(50);
        for pod in &pods {
            cluster.mappings.hold(pod.ip(family))?;
        }
        capture.assert_only_source(vip(family, 222), outside, 100);
        all_silent();
        for pod in &pods {
            cluster.mappings.map(pod.ip(family), vip(family, 222))?;
        }
        all_answered(50);
        // The VIP itself goes, and comes back with another route id.
        cluster.mappings.remove_vip(vip(family, 222))?;
        capture.assert_only_source(vip(family, 222), outside, 100);
        all_silent();
        cluster.mappings.set_vip(vip(family, 222), if family == Family::V4 { 100 } else { 101 })?;
        all_answered(50);
        capture.assert_only_source(vip(family, 222), outside, 100);
        drop(flows);
        for probe in probes {
            let report = probe.stop()?;
            assert_eq!(report.sources.into_keys().collect::<Vec<_>>(), [vip(family, 222)]);
        }
    }
    Ok(())
}

#[test]
fn half_a_directory_changes_nothing() -> Result<()> {
    let mut cluster = mapped()?;
    let capture = Capture::start(&cluster.lab)?;
    let traffic = traffic(&cluster, 500)?;
    let before = [cluster.kernel(1, true)?, cluster.kernel(2, true)?];
    let root = cluster.mappings.path().to_owned();
    let (pods, vips) = (root.join(PODS), root.join(VIPS));
    let unchanged = |cluster: &Cluster, what: &str| -> Result<()> {
        goes_on(&traffic, 150)?;
        for node in [1, 2] {
            assert_eq!(cluster.kernel(node, true)?, before[node - 1], "{what}");
        }
        Ok(())
    };

    // Half written: nothing, then the beginning of an address, in a file that is still open.
    let mut half = File::create(pods.join(key(cluster.lab.pod(1, 1).v4.into())))?;
    unchanged(&cluster, "an empty file that is open")?;
    half.write_all(b"192.168.")?;
    unchanged(&cluster, "half an address")?;
    half.write_all(b"122.222")?;
    drop(half);
    unchanged(&cluster, "the value again")?;

    // An object goes, then all of them, then all come back at once.
    fs::rename(&pods, root.join(".pods"))?;
    unchanged(&cluster, "pods are gone")?;
    fs::rename(&vips, root.join(".vips"))?;
    unchanged(&cluster, "pods and VIPs are gone")?;
    fs::rename(root.join(".pods"), &pods)?;
    unchanged(&cluster, "VIPs are gone")?;
    fs::rename(root.join(".vips"), &vips)?;
    unchanged(&cluster, "all is back")?;

    // The whole directory is replaced by one that is filled only afterwards.
    let aside = root.with_extension("aside");
    fs::rename(&root, &aside)?;
    unchanged(&cluster, "the directory is gone")?;
    fs::create_dir(&root)?;
    unchanged(&cluster, "the directory is empty")?;
    fs::remove_dir(&root)?;
    fs::rename(&aside, &root)?;
    unchanged(&cluster, "the directory is back")?;

    nothing_happened(traffic, &capture, &cluster.lab)?;
    // And it is read again.
    let third = cluster.lab.pod(3, 1).v4.into();
    cluster.mappings.map(third, vip(Family::V4, 222))?;
    cluster.await_mapping(third, Some(vip(Family::V4, 222)))
}

#[test]
fn every_route_id_at_once_disturbs_nobody() -> Result<()> {
    let mut cluster = mapped()?;
    let capture = Capture::start(&cluster.lab)?;
    let traffic = traffic(&cluster, 500)?;
    // 64 and 65 are taken: 250 more, of both families, with a pod each.
    let entries: Vec<(IpAddr, u8)> = (1..=252)
        .filter(|id| ![64, 65].contains(id))
        .map(|id| (format!("192.168.123.{id}").parse().map(IpAddr::V4), id))
        .map(|(vip, id)| vip.map(|vip| (vip, id)))
        .collect::<Result<_, _>>()?;
    for (vip, id) in &entries {
        cluster.mappings.set_vip(*vip, *id)?;
        cluster.mappings.map(IpAddr::from([10, 244, 200, *id]), *vip)?;
    }
    let (last, _) = entries[entries.len() - 1];
    cluster.await_mapping(IpAddr::from([10, 244, 200, 252]), Some(last))?;
    for node in 1..=3 {
        eventually(SOON, || {
            cluster.kernel(node, false).is_ok_and(|kernel| {
                kernel.rules.lines().filter(|line| line.contains("lookup 10")).count() == 252
            })
        });
    }
    goes_on(&traffic, 300)?;
    // All of them go again.
    for (vip, id) in &entries {
        cluster.mappings.unmap(IpAddr::from([10, 244, 200, *id]))?;
        cluster.mappings.remove_vip(*vip)?;
    }
    for node in 1..=3 {
        eventually(SOON, || {
            cluster.kernel(node, false).is_ok_and(|kernel| {
                kernel.rules.lines().filter(|line| line.contains("lookup 10")).count() == 2
            })
        });
    }
    goes_on(&traffic, 300)?;
    nothing_happened(traffic, &capture, &cluster.lab)
}
