//! The laboratory itself: what it promises without any of our programs.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{
    CLUSTER_IP_PORT, Capture, Family, Host, Lab, Masquerade, MoveOrder, NODE_PORT,
    SERVICE_TARGET_PORT, TcpServer, TcpSession, TcpTransfer, TrafficPolicy, UdpProbe, UdpServer,
    connect_rate, eventually, leftovers_of, load_reference_rules, ping, sweep, wait_until, whoami,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(5);

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 168, 122, 222]),
        Family::V6 => IpAddr::from([0xfd00, 0x122, 0, 0, 0, 0, 0, 0x222]),
    }
}

/// Sends until three packets are answered and says as whom the server saw them.
fn seen_as(client: &Host, server: IpAddr, port: u16) -> Result<Vec<IpAddr>> {
    let probe = UdpProbe::start(client, SocketAddr::new(server, port), 500)?;
    eventually(SOON, || probe.received() >= 3);
    Ok(probe.stop()?.sources.into_keys().collect())
}

fn pods_leave_with_their_nodes_address(masquerade: Masquerade) -> Result<()> {
    let lab = Lab::builder().masquerade(masquerade).build()?;
    let capture = Capture::start(&lab)?;
    for server in [lab.outside(), lab.far()] {
        let _udp = UdpServer::start(server, PORT)?;
        let _tcp = TcpServer::start(server, PORT)?;
        for family in Family::ALL {
            capture.clear();
            let (node, server) = (lab.node(1).ip(family), server.ip(family));
            assert_eq!(seen_as(lab.pod(1, 1), server, PORT)?, [node]);
            assert_eq!(whoami(lab.pod(1, 1), SocketAddr::new(server, PORT), SOON)?, node);
            assert_eq!(ping(lab.pod(1, 1), server, 2)?, 2);
            capture.assert_only_source(node, server, 3 + 4 + 2);
        }
    }
    Ok(())
}

#[test]
fn pods_leave_with_their_nodes_address_by_iptables_nft() -> Result<()> {
    pods_leave_with_their_nodes_address(Masquerade::IptablesNft)
}

#[test]
fn pods_leave_with_their_nodes_address_by_iptables_legacy() -> Result<()> {
    pods_leave_with_their_nodes_address(Masquerade::IptablesLegacy)
}

#[test]
fn pods_leave_with_their_nodes_address_by_native_nft() -> Result<()> {
    pods_leave_with_their_nodes_address(Masquerade::Nft)
}

#[test]
fn without_masquerade_the_capture_sees_the_pods_own_address() -> Result<()> {
    let lab = Lab::builder().masquerade(Masquerade::None).build()?;
    let capture = Capture::start(&lab)?;
    let pod = lab.pod(1, 1);
    for family in Family::ALL {
        for server in [lab.outside().ip(family), lab.far().ip(family)] {
            assert_eq!(ping(pod, server, 1)?, 0, "there is no way back");
            let sources = capture.sources_towards(server)?;
            assert_eq!(sources.into_keys().collect::<Vec<_>>(), [pod.ip(family)]);
        }
    }
    Ok(())
}

#[test]
fn pods_reach_each_other_and_nodes_without_translation() -> Result<()> {
    let lab = Lab::builder().build()?;
    let capture = Capture::start(&lab)?;
    let _servers = [UdpServer::start(lab.pod(2, 1), PORT)?, UdpServer::start(lab.pod(1, 2), PORT)?];
    for family in Family::ALL {
        let pod = lab.pod(1, 1);
        for other in [lab.pod(2, 1), lab.pod(1, 2)] {
            assert_eq!(seen_as(pod, other.ip(family), PORT)?, [pod.ip(family)]);
        }
        assert_eq!(ping(pod, lab.node(3).ip(family), 1)?, 1);
        for outside in [lab.outside(), lab.far()] {
            capture.assert_silent(outside.ip(family));
        }
    }
    Ok(())
}

/// The `ClusterIP` from pods on three nodes and from a node, the node port from outside.
fn service(masquerade: Masquerade, policy: TrafficPolicy) -> Result<()> {
    let lab = Lab::builder().masquerade(masquerade).traffic_policy(policy).build()?;
    let pod = lab.service_pod().context("the laboratory has a Service")?;
    let _servers = UdpServer::start(pod, SERVICE_TARGET_PORT)?;
    let _server = TcpServer::start(pod, SERVICE_TARGET_PORT)?;
    for family in Family::ALL {
        let cluster_ip = SocketAddr::new(lab.cluster_ip(family), CLUSTER_IP_PORT);
        for client in [lab.pod(1, 1), lab.pod(2, 2)] {
            assert_eq!(whoami(client, cluster_ip, SOON)?, client.ip(family));
            assert_eq!(seen_as(client, cluster_ip.ip(), CLUSTER_IP_PORT)?, [client.ip(family)]);
        }
        // Itself through the Service: back by the bridge, with another address.
        assert_ne!(whoami(pod, cluster_ip, SOON)?, pod.ip(family));
        whoami(lab.node(1), cluster_ip, SOON)?;

        let outside = lab.outside().ip(family);
        let other_node = SocketAddr::new(lab.node(1).ip(family), NODE_PORT);
        let pods_node = SocketAddr::new(lab.node(2).ip(family), NODE_PORT);
        match policy {
            TrafficPolicy::Cluster => {
                assert_ne!(whoami(lab.outside(), other_node, SOON)?, outside);
                assert_ne!(whoami(lab.far(), other_node, SOON)?, lab.far().ip(family));
                assert_ne!(whoami(lab.outside(), pods_node, SOON)?, outside);
            }
            TrafficPolicy::Local => {
                assert_eq!(whoami(lab.outside(), pods_node, SOON)?, outside);
                assert_eq!(whoami(lab.far(), pods_node, SOON)?, lab.far().ip(family));
                let short = Duration::from_millis(100);
                assert!(whoami(lab.outside(), other_node, short).is_err(), "its pod is elsewhere");
            }
        }
    }
    Ok(())
}

#[test]
fn service_by_iptables_nft() -> Result<()> {
    service(Masquerade::IptablesNft, TrafficPolicy::Cluster)
}

#[test]
fn service_by_iptables_legacy_with_local_policy() -> Result<()> {
    service(Masquerade::IptablesLegacy, TrafficPolicy::Local)
}

#[test]
fn service_by_native_nft() -> Result<()> {
    service(Masquerade::Nft, TrafficPolicy::Cluster)
}

#[test]
fn service_by_native_nft_with_local_policy() -> Result<()> {
    service(Masquerade::Nft, TrafficPolicy::Local)
}

/// The MAC address that a host's neighbour table has for an address.
fn neighbour(host: &Host, address: IpAddr) -> Result<String> {
    let text = host.sh(&format!("ip neigh show {address} dev eth0"))?;
    let mac = text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    mac.map(str::to_owned).with_context(|| format!("no MAC address in {text:?}"))
}

fn mac_of(host: &Host) -> Result<String> {
    let text = host.sh("ip -o link show dev eth0")?;
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    mac.map(str::to_owned).with_context(|| format!("no MAC address in {text:?}"))
}

#[test]
fn a_moved_vip_is_learned_by_others_without_asking() -> Result<()> {
    let lab = Lab::builder().pods_per_node(0).build()?;
    for family in Family::ALL {
        let vip = vip(family);
        lab.hold_vip(1, vip)?;
        eventually(SOON, || ping(lab.outside(), vip, 1).is_ok_and(|answers| answers == 1));
        assert_eq!(neighbour(lab.outside(), vip)?, mac_of(lab.node(1))?);
        for (from, to, order) in
            [(1, 2, MoveOrder::MakeBeforeBreak), (2, 3, MoveOrder::BreakBeforeMake)]
        {
            lab.move_vip(from, to, vip, order)?;
            let new = mac_of(lab.node(to))?;
            assert!(wait_until(SOON, || neighbour(lab.outside(), vip).is_ok_and(|mac| mac == new)));
            eventually(SOON, || ping(lab.outside(), vip, 1).is_ok_and(|answers| answers == 1));
        }
        lab.drop_vip(3, vip)?;
        assert_eq!(ping(lab.outside(), vip, 1)?, 0);
    }
    Ok(())
}

#[test]
fn the_probe_measures_an_outage() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let server = UdpServer::start(lab.outside(), PORT)?;
    let address = SocketAddr::new(lab.outside().ip(Family::V4), PORT);
    let probe = UdpProbe::start(lab.pod(1, 1), address, 500)?;
    eventually(SOON, || probe.received() >= 20);
    lab.unplug(1)?;
    let outage = Instant::now();
    let before = probe.sent();
    eventually(SOON, || probe.sent() >= before + 100);
    lab.plug_in(1)?;
    let (received, down) = (probe.received(), outage.elapsed());
    eventually(SOON, || probe.received() > received + 20);
    let report = probe.stop()?;
    assert!(report.lost >= 100, "{report:?}");
    let tolerance = Duration::from_millis(20);
    assert!(report.longest_outage + tolerance >= down, "{down:?}: {report:?}");
    assert_eq!(report.sources.values().sum::<u64>(), report.received);
    assert_eq!(server.report().sources, report.sources);
    Ok(())
}

#[test]
fn transfers_are_checked_and_sessions_live_on() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let server = TcpServer::start(lab.far(), PORT)?;
    for family in Family::ALL {
        let (pod, address) = (lab.pod(1, 1), SocketAddr::new(lab.far().ip(family), PORT));
        let mut session = TcpSession::open(pod, address, SOON)?;
        let steady = TcpTransfer::upload(pod, address, Some(1_000_000))?;
        let (up, down) =
            (TcpTransfer::upload(pod, address, None)?, TcpTransfer::download(pod, address)?);
        for _ in 0..10 {
            session.exchange(SOON)?;
        }
        for transfer in [&up, &down, &steady] {
            eventually(SOON, || transfer.bytes() > 100_000);
        }
        for transfer in [up, down, steady] {
            let report = transfer.stop()?;
            assert_eq!(report.error, None, "{report:?}");
            assert!(report.bytes > 100_000, "{report:?}");
        }
        session.close()?;
        let rate = connect_rate(pod, address, 2, Duration::from_millis(200))?;
        assert!(rate.succeeded > 10 && rate.failed == 0, "{rate:?}");
    }
    let node = lab.node(1);
    assert!(
        server.peers().iter().all(|peer| [node.v4.into(), node.v6.into()].contains(&peer.ip()))
    );
    Ok(())
}

#[test]
fn with_the_reference_rules_local_and_remote_pods_leave_with_the_vip() -> Result<()> {
    for masquerade in Masquerade::MASQUERADING {
        let lab = Lab::builder().masquerade(masquerade).build()?;
        let servers = [UdpServer::start(lab.outside(), PORT)?, UdpServer::start(lab.far(), PORT)?];
        let capture = Capture::start(&lab)?;
        for family in Family::ALL {
            let vip = vip(family);
            let pods = [lab.pod(1, 1), lab.pod(2, 1)];
            load_reference_rules(&lab, vip, 64, &pods.map(|pod| pod.ip(family)))?;
            lab.hold_vip(1, vip)?;
            for server in [lab.outside().ip(family), lab.far().ip(family)] {
                for pod in pods {
                    assert_eq!(seen_as(pod, server, PORT)?, [vip], "{}", pod.name);
                }
                capture.assert_only_source(vip, server, 6);
                assert_eq!(seen_as(lab.pod(3, 1), server, PORT)?, [lab.node(3).ip(family)]);
            }
        }
        drop(servers);
    }
    Ok(())
}

/// Nothing is flushed here, so pods on the old and the new holder stay silent until somebody does; but
/// they do not leak, and pods elsewhere go on.
#[test]
fn with_the_reference_rules_nothing_leaks_while_the_vip_moves() -> Result<()> {
    for (family, order) in
        [(Family::V4, MoveOrder::MakeBeforeBreak), (Family::V6, MoveOrder::BreakBeforeMake)]
    {
        let lab = Lab::builder().build()?;
        let vip = vip(family);
        let pods = [lab.pod(1, 1), lab.pod(2, 1), lab.pod(3, 1)];
        load_reference_rules(&lab, vip, 64, &pods.map(|pod| pod.ip(family)))?;
        lab.hold_vip(1, vip)?;
        let outside = SocketAddr::new(lab.outside().ip(family), PORT);
        let _server = UdpServer::start(lab.outside(), PORT)?;
        let capture = Capture::start(&lab)?;
        let probes: Vec<UdpProbe> =
            pods.iter().map(|pod| UdpProbe::start(pod, outside, 200)).collect::<Result<_>>()?;
        eventually(SOON, || probes.iter().all(|probe| probe.received() > 20));
        lab.move_vip(1, 2, vip, order)?;
        let (sent, received) = (probes[2].sent(), probes[2].received());
        eventually(SOON, || probes.iter().all(|probe| probe.sent() > sent + 100));
        eventually(SOON, || probes[2].received() > received + 50);
        capture.assert_only_source(vip, outside.ip(), 160);
    }
    Ok(())
}

#[test]
fn everything_is_gone_after_drop_even_in_a_panic() -> Result<()> {
    let lab = Lab::builder().build()?;
    let prefix = lab.prefix().to_owned();
    assert_eq!(leftovers_of(&prefix).len(), 13);
    let mut sleeper = lab.pod(1, 1).spawn(Command::new("sleep").arg("60"))?;
    std::thread::spawn(move || {
        let _lab = lab;
        panic!("on purpose");
    })
    .join()
    .expect_err("it panics");
    assert_eq!(leftovers_of(&prefix), [""; 0]);
    eventually(SOON, || sleeper.try_wait().is_ok_and(|status| status.is_some()));
    Ok(())
}

#[test]
fn sweep_removes_what_dead_runs_left_and_nothing_else() -> Result<()> {
    let lab = Lab::builder().nodes(1).pods_per_node(0).build()?;
    let mut dead = Command::new("true").spawn()?;
    dead.wait()?;
    let left = format!("em{}x0-n1", dead.id());
    tests::run(&["ip", "netns", "add", &left])?;
    // Another test process may be quicker.
    sweep()?;
    assert_eq!(leftovers_of(&left), [""; 0]);
    assert_eq!(leftovers_of(lab.prefix()).len(), 5);
    Ok(())
}

#[test]
fn a_laboratory_is_built_quickly() -> Result<()> {
    let start = Instant::now();
    let lab = Lab::builder().build()?;
    let built = start.elapsed();
    let start = Instant::now();
    drop(lab);
    println!("built in {built:?}, removed in {:?}", start.elapsed());
    // Alone on the machine it takes a fifth of a second; this is for a crowded one.
    assert!(built < Duration::from_secs(10), "{built:?}");
    Ok(())
}
