//! The laboratory itself: what it promises without any of our programs.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tests::{
    Capture, Family, Host, Lab, Masquerade, UdpProbe, UdpServer, eventually, leftovers_of,
};

const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(3);

/// Sends until `count` packets are answered and says as whom the server saw them.
fn seen_as(client: &Host, server: IpAddr, port: u16, count: u64) -> Vec<IpAddr> {
    let probe = UdpProbe::start(client, SocketAddr::new(server, port), 500).unwrap();
    eventually(SOON, || probe.received() >= count);
    let report = probe.stop().unwrap();
    report.sources.into_keys().collect()
}

fn pods_leave_with_their_nodes_address(masquerade: Masquerade) {
    let lab = Lab::builder().masquerade(masquerade).build().unwrap();
    let capture = Capture::start(&lab).unwrap();
    for server in [lab.outside(), lab.far()] {
        let _server = UdpServer::start(server, PORT).unwrap();
        for family in Family::ALL {
            capture.clear();
            let node = lab.node(1).ip(family);
            assert_eq!(seen_as(lab.pod(1, 1), server.ip(family), PORT, 3), [node]);
            capture.assert_only_source(node, server.ip(family), 3);
        }
    }
}

#[test]
fn pods_leave_with_their_nodes_address_by_iptables_nft() {
    pods_leave_with_their_nodes_address(Masquerade::IptablesNft);
}

#[test]
fn pods_leave_with_their_nodes_address_by_iptables_legacy() {
    pods_leave_with_their_nodes_address(Masquerade::IptablesLegacy);
}

#[test]
fn pods_leave_with_their_nodes_address_by_native_nft() {
    pods_leave_with_their_nodes_address(Masquerade::Nft);
}

#[test]
fn everything_is_gone_after_drop() {
    let start = Instant::now();
    let lab = Lab::builder().build().unwrap();
    println!("built in {:?}", start.elapsed());
    let prefix = lab.prefix().to_owned();
    assert_eq!(leftovers_of(&prefix).len(), 13);
    let mut sleeper = lab.pod(1, 1).spawn(std::process::Command::new("sleep").arg("60")).unwrap();
    let start = Instant::now();
    drop(lab);
    println!("removed in {:?}", start.elapsed());
    assert_eq!(leftovers_of(&prefix), [""; 0]);
    eventually(SOON, || sleeper.try_wait().unwrap().is_some());
}
