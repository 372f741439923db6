//! Ports in use, of connections that rules marked and translated, on a real connection tracking.

use std::io::ErrorKind::PermissionDenied;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use agent::kernel::conntrack::Conntrack;
use agent::kernel::port_counting::{PortCounter, Wanted};
use agent::port_use::{Destination, Found, OwnBlocks};
use agent::routing::MarkMask;
use shared::Vip;
use tokio::time::timeout;

use crate::namespace::{in_namespace, nft, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ports 9 and 10 take the direct path of a VIP with route id 64: with block 3, with block 5.
const RULES: &str = "
table inet t {
  chain marks { type filter hook output priority mangle;
    udp dport { 9, 10 } ct mark set 0x2040
  }
  chain translate { type nat hook postrouting priority srcnat;
    meta nfproto ipv4 udp dport 9 snat ip to 192.0.2.222:3072-4095
    meta nfproto ipv4 udp dport 10 snat ip to 192.0.2.222:5120-6143
    meta nfproto ipv6 udp dport 9 snat ip6 to [fd00::222]:3072-4095
  }
}
";

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

/// Sends from so many ports, from `first` on. When most of the VIP's ports are in use the kernel gives up
/// the search for a free one now and then, and refuses to send: then from the next.
fn send(destination: &str, first: u16, sockets: usize) {
    let destination: SocketAddr = destination.parse().unwrap();
    let any: IpAddr = if destination.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let sent = (first..first + 2000).filter(|port| {
        let outcome = UdpSocket::bind((any, *port)).unwrap().send_to(b"x", destination);
        match outcome {
            Err(error) if error.kind() == PermissionDenied => false,
            sent => sent.unwrap() == 1,
        }
    });
    assert_eq!(sent.take(sockets).count(), sockets);
}

fn until(counter: &mut PortCounter, wanted: impl Fn(&Found) -> bool) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wait = async {
        while !wanted(&counter.found()) {
            counter.changed().await;
        }
    };
    let outcome = runtime.block_on(async { timeout(PATIENCE, wait).await });
    assert!(outcome.is_ok(), "{:?}", counter.found());
    counter.found()
}

#[test]
fn ports_are_counted_as_the_kernel_has_them() {
    in_namespace(|| {
        run(
            "sh",
            &[
                "-ec",
                "ip link add eth0 type veth peer name peer; ip link set peer up; \
             ip link set eth0 up; ip addr add 192.0.2.11/24 dev eth0; \
             ip addr add fd00::11/64 dev eth0 nodad; \
             ip neigh add 192.0.2.64 lladdr 02:00:00:00:00:01 dev eth0; \
             ip neigh add 192.0.2.65 lladdr 02:00:00:00:00:01 dev eth0; \
             ip neigh add fd00::64 lladdr 02:00:00:00:00:01 dev eth0",
            ],
        );
        nft(RULES);
        // Nothing is forgotten meanwhile, however slow the machine.
        run("sysctl", &["-qw", "net.netfilter.nf_conntrack_udp_timeout=600"]);
        send("192.0.2.64:9", 20_000, 950);
        send("192.0.2.65:9", 22_000, 30);
        send("192.0.2.64:10", 24_000, 1);
        send("192.0.2.64:11", 26_000, 40);
        send("[fd00::64]:9", 28_000, 7);

        let (v4, v6) = (vip("192.0.2.222"), vip("fd00::222"));
        let blocks = |numbers: &[u32]| numbers.iter().map(|n| (*n).try_into().unwrap()).collect();
        let own = |open: &[u32], draining: &[u32]| OwnBlocks {
            open: blocks(open),
            draining: blocks(draining),
        };
        let conntrack = Conntrack::open().unwrap();
        let mut counter = PortCounter::start(conntrack, MarkMask::default()).unwrap();
        let id = |number: u32| number.try_into().unwrap();
        let of = |vip, blocks: OwnBlocks| Wanted {
            own: [(vip, blocks)].into(),
            vips: [(id(64), vip)].into(),
        };
        counter.want(of(v4, own(&[3], &[5, 6])));
        let found = until(&mut counter, |found| found.looks >= 2).ports;
        assert_eq!(found.used, [(v4, 950)].into());
        let addr = "192.0.2.64".parse().unwrap();
        let full = Destination { vip: v4, protocol: 17, addr, port: 9 };
        assert_eq!(found.full, [full].into());
        assert_eq!(found.drained_by, [(v4, 5.try_into().unwrap())].into());

        run("conntrack", &["-D", "-p", "udp", "--orig-port-dst", "10"]);
        until(&mut counter, |found| found.looks >= 3 && found.ports.drained_by.is_empty());
        counter.want(of(v6, own(&[3], &[])));
        until(&mut counter, |found| found.own.contains_key(&v6) && found.ports.used[&v6] == 7);
        counter.want(Wanted::default());
        until(&mut counter, |found| found.own.is_empty());
    });
}
