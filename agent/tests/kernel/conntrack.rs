//! Connections: made by sockets over `lo`, marked by rules, witnessed by `conntrack -L`.

use std::collections::BTreeSet;
use std::io::ErrorKind::AddrInUse;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use agent::kernel::conntrack::{Conntrack, ConntrackError, Entry, MarkFilter};

use crate::namespace::{in_namespace, nft, run};

/// The destination port says the mark; port 1005 lies in a zone of its own.
pub(crate) const TRACKED: &str = "
table inet t {
  chain raw { type filter hook output priority raw;
    udp dport 1005 ct zone set 5
  }
  chain out { type filter hook output priority mangle;
    udp dport 1001 ct mark set 0x40
    udp dport 1002 ct mark set 0x1040
    udp dport 1003 ct mark set 0x8041
  }
}
";
const MASK: u32 = 0x10ff;

fn send(source: &str, destination: &str) {
    let source = SocketAddr::new(source.parse().unwrap(), 4000);
    // A program that another test is just starting may still have the socket before this one.
    let deadline = Instant::now() + Duration::from_secs(10);
    let socket = loop {
        match UdpSocket::bind(source) {
            Err(error) if error.kind() == AddrInUse && Instant::now() < deadline => yield_now(),
            socket => break socket.unwrap(),
        }
    };
    let destination: SocketAddr = destination.parse().unwrap();
    socket.send_to(b"x", destination).unwrap();
}

/// `protocol source destination-port mark` of each connection, as `conntrack` sees it.
fn witnessed() -> BTreeSet<String> {
    let mut lines = String::new();
    for family in ["ipv4", "ipv6"] {
        lines += &run("conntrack", &["-L", "-f", family]);
    }
    lines
        .lines()
        .map(|line| {
            let field = |name: &str| {
                let found = line.split(' ').find_map(|word| word.strip_prefix(name));
                found.unwrap_or("-").to_owned()
            };
            let protocol = line.split(' ').next().unwrap();
            let source: IpAddr = field("src=").parse().unwrap();
            format!("{protocol} {source} {} {}", field("dport="), field("mark="))
        })
        .collect()
}

/// The same as the agent sees it.
fn seen(conntrack: &mut Conntrack, filter: Option<MarkFilter>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    conntrack
        .entries(filter, |entry| {
            let (protocol, icmp) = match entry.protocol {
                1 => ("icmp", true),
                58 => ("icmpv6", true),
                6 => ("tcp", false),
                _ => ("udp", false),
            };
            let port = if icmp { "-".to_owned() } else { entry.destination_port.to_string() };
            seen.insert(format!("{protocol} {} {port} {}", entry.source, entry.mark));
            assert!(entry.id != 0 && entry.status != 0);
            assert_eq!(entry.zone, if entry.destination_port == 1005 { 5 } else { 0 });
        })
        .unwrap();
    seen
}

/// Pods `127.0.0.2`, `127.0.0.3`, `fd00::2`, `fd00::3` send to ports 1000 to 1005; the first of each
/// family also opens a TCP connection and pings.
fn traffic() -> Vec<TcpStream> {
    nft(TRACKED);
    for address in ["fd00::2/128", "fd00::3/128"] {
        run("ip", &["address", "add", address, "dev", "lo", "nodad"]);
    }
    for port in 1000..=1005 {
        for pod in ["127.0.0.2", "127.0.0.3"] {
            send(pod, &format!("127.0.0.1:{port}"));
        }
        for pod in ["fd00::2", "fd00::3"] {
            send(pod, &format!("[::1]:{port}"));
        }
    }
    // Until one answer came: the kernel adds the routes of new IPv6 addresses behind the request's back.
    for (pod, to) in [("127.0.0.2", "127.0.0.1"), ("fd00::2", "::1")] {
        run("ping", &["-c1", "-i0.2", "-w10", "-I", pod, to]);
    }
    let listeners = ["127.0.0.2:80", "[fd00::2]:80"].map(|at| TcpListener::bind(at).unwrap());
    listeners.iter().map(|at| TcpStream::connect(at.local_addr().unwrap()).unwrap()).collect()
}

fn without(all: &BTreeSet<String>, gone: impl Fn(&str) -> bool) -> BTreeSet<String> {
    all.iter().filter(|line| !gone(line)).cloned().collect()
}

fn sessionless(entry: &Entry<'_>) -> bool {
    !entry.has_sessions()
}

fn pods<const N: usize>(pods: [&str; N]) -> BTreeSet<IpAddr> {
    pods.map(|pod| pod.parse().unwrap()).into()
}

#[test]
fn the_agent_sees_what_conntrack_sees() {
    in_namespace(|| {
        let _open = traffic();
        let mut conntrack = Conntrack::open().unwrap();
        let all = witnessed();
        assert_eq!(all.len(), 6 * 4 + 2 + 2, "{all:#?}");
        assert_eq!(seen(&mut conntrack, None), all);
        let marked = seen(&mut conntrack, Some(MarkFilter { value: 0x40, mask: MASK }));
        assert_eq!(marked, without(&all, |line| !line.ends_with(" 64")));
        let marked = seen(&mut conntrack, Some(MarkFilter { value: 0, mask: MASK }));
        assert_eq!(marked, without(&all, |line| !line.ends_with(" 0")));
    });
}

#[test]
fn a_flush_by_mark_hits_both_families_and_no_other_mark() {
    in_namespace(|| {
        let _open = traffic();
        let mut conntrack = Conntrack::open().unwrap();
        let all = witnessed();
        assert!(matches!(conntrack.flush_mark(0, MASK), Err(ConntrackError::Unmarked { .. })));
        assert!(matches!(conntrack.flush_mark(0x40, 0), Err(ConntrackError::Unmarked { .. })));
        conntrack.flush_mark(0x77, MASK).unwrap();
        assert_eq!(witnessed(), all);
        conntrack.flush_mark(0x41, MASK).unwrap(); // 0x8041 has a stranger's bit, too
        let left = without(&all, |line| line.ends_with(" 32833"));
        assert_eq!(all.len() - left.len(), 4);
        assert_eq!(witnessed(), left);
        conntrack.flush_mark(0x1040, MASK).unwrap();
        let left = without(&left, |line| line.ends_with(" 4160"));
        assert_eq!(witnessed(), left);
        assert!(left.contains("udp 127.0.0.2 1001 64") && left.contains("udp fd00::2 1001 64"));
    });
}

#[test]
fn pods_are_forgotten_but_for_their_tcp_connections() {
    for others in 0..2 {
        in_namespace(move || {
            let _open = traffic();
            let mut conntrack = Conntrack::open().unwrap();
            let all = witnessed();
            // With many pods the kernel is not asked to filter.
            let many: BTreeSet<IpAddr> =
                (0..others * 20).map(|n| IpAddr::from([10, 0, 0, n])).collect();
            assert_eq!(conntrack.delete_of(&many, sessionless).unwrap(), 0);
            assert_eq!(conntrack.delete_of(&pods(["127.0.0.1", "::1"]), sessionless).unwrap(), 0);
            assert_eq!(witnessed(), all);

            let mut doomed = pods(["127.0.0.2"]);
            doomed.extend(&many);
            assert_eq!(conntrack.delete_of(&doomed, sessionless).unwrap(), 7);
            let left =
                without(&all, |line| line.contains(" 127.0.0.2 ") && !line.starts_with("tcp"));
            assert_eq!(witnessed(), left);

            let mut doomed = pods(["fd00::2", "127.0.0.3", "127.0.0.2"]);
            doomed.extend(&many);
            assert_eq!(conntrack.delete_of(&doomed, sessionless).unwrap(), 7 + 6);
            let left = without(&left, |line| {
                (line.contains(" fd00::2 ") || line.contains(" 127.0.0.3 "))
                    && !line.starts_with("tcp")
            });
            assert_eq!(witnessed(), left);
            assert_eq!(left.len(), 6 + 2);
        });
    }
}

#[test]
fn connections_are_deleted_one_by_one_or_by_predicate() {
    in_namespace(|| {
        let _open = traffic();
        let mut conntrack = Conntrack::open().unwrap();
        let all = witnessed();
        let bound_wrong = |mark: u32| matches!(mark & MASK, 0x40 | 0x41);
        assert_eq!(conntrack.delete_where(|entry| bound_wrong(entry.mark)).unwrap(), 8);
        let left = without(&all, |line| line.ends_with(" 64") || line.ends_with(" 32833"));
        assert_eq!(witnessed(), left);

        let mut zoned = Vec::new();
        conntrack
            .entries(None, |entry| {
                if entry.zone == 5 {
                    zoned.push(entry.into_owned());
                }
            })
            .unwrap();
        assert_eq!(zoned.len(), 4);
        for entry in &zoned {
            conntrack.delete(entry).unwrap();
            conntrack.delete(entry).unwrap(); // is gone
        }
        assert_eq!(witnessed(), without(&left, |line| line.contains(" 1005 ")));

        // The id tells a connection from a later one with the same addresses and ports.
        send("127.0.0.2", "127.0.0.1:1005");
        conntrack.delete(zoned.iter().find(|entry| entry.source.is_ipv4()).unwrap()).unwrap();
        assert!(witnessed().contains("udp 127.0.0.2 1005 0"));

        assert_eq!(conntrack.delete_where(|_| true).unwrap(), left.len() - 4 + 1);
        assert!(witnessed().is_empty());
    });
}

#[test]
fn thousands_of_connections_are_deleted_at_once() {
    in_namespace(|| {
        nft(TRACKED);
        let socket = UdpSocket::bind("127.0.0.2:0").unwrap();
        for port in 20_000..25_000 {
            socket.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.delete_of(&pods(["127.0.0.2"]), sessionless).unwrap(), 5_000);
        assert_eq!(run("conntrack", &["-C"]).trim(), "0");
    });
}
