use std::time::Duration;

use netlink_packet_core::NlaBuffer;
use tokio::time::timeout;

use super::*;
use crate::kernel::route_socket::RouteSocket;
use crate::kernel::routing::Routing;
use crate::kernel::scratch_netns::{in_scratch_netns, json, run};
use crate::routing::{Family, Ownership};

const TABLES: &str = "table inet egress { map pods { type ipv4_addr : ipv4_addr; }; \
                      set mapped { type ipv4_addr; }; chain c { }; }";

fn interest() -> Interest {
    Interest {
        owned: Ownership::default(),
        tables: ["egress".to_owned(), "egress_guard".to_owned()].into(),
        own_ports: OwnPorts::default(),
    }
}

fn subscribe() -> Notifications {
    subscribe_to(interest())
}

fn subscribe_to(interest: Interest) -> Notifications {
    let mut notifications = Notifications::subscribe(interest).unwrap();
    notifications.hear_tables().unwrap();
    notifications
}

fn index_of(name: &str) -> u32 {
    let links = json(&format!("ip -j link show {name}"));
    links[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
}

/// `left` and `right` are joined and up, and what that tells has been read.
fn joined(notifications: &mut Notifications) -> u32 {
    run("ip link add left type veth peer name right; ip link set right up; ip link set left up");
    notifications.drain().unwrap();
    index_of("left")
}

/// What a command makes us hear at once.
fn heard(notifications: &mut Notifications, line: &str) -> Vec<Notice> {
    run(line);
    notifications.drain().unwrap().into_iter().collect()
}

/// Waits until a notice is heard; IPv6 tells of its addresses a little later.
async fn awaited(notifications: &mut Notifications, notice: &Notice) {
    let heard = async { while notifications.next().await.unwrap() != *notice {} };
    timeout(Duration::from_secs(10), heard).await.unwrap_or_else(|_| panic!("no {notice:?}"));
}

fn nftables() -> Vec<Notice> {
    vec![Notice::Nftables { table: "egress".to_owned() }]
}

fn elements() -> Vec<Notice> {
    vec![Notice::Elements { table: "egress".to_owned() }]
}

#[derive(Clone, Copy, PartialEq)]
enum Told {
    Schema,
    Elements,
    Both,
}

#[test]
fn addresses_are_heard_as_they_come_and_go() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        for (addr, nodad) in [("192.0.2.77", ""), ("fd00::77", "nodad")] {
            let notice = |usable| Notice::Address { addr: addr.parse().unwrap(), device, usable };
            run(&format!("ip addr add {addr} dev left {nodad}"));
            awaited(&mut notifications, &notice(true)).await;
            notifications.drain().unwrap();
            run(&format!("ip addr del {addr} dev left"));
            awaited(&mut notifications, &notice(false)).await;
            // Once when it is told of, once when that is in force.
            assert_eq!(notifications.drain().unwrap(), BTreeSet::from([notice(false)]));
        }
        let peer = heard(&mut notifications, "ip addr add 10.1.1.1 peer 10.1.1.2 dev left");
        let addr = "10.1.1.1".parse().unwrap();
        assert_eq!(peer, [Notice::Address { addr, device, usable: true }]);
    });
}

#[test]
fn an_ipv6_address_is_usable_once_it_is_known_to_be_free() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        run("ip -6 addr add fd00::77/128 dev left");
        let addr = "fd00::77".parse().unwrap();
        let usable = Notice::Address { addr, device, usable: true };
        awaited(&mut notifications, &usable).await;
        assert!(run("ip -6 route show table local").contains("local fd00::77"));
    });
}

#[test]
fn links_are_heard_when_they_are_switched_and_not_whenever_they_blink() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let index = joined(&mut notifications);
        let link = |up| Notice::Link { index, name: "left".to_owned(), up };
        assert!(heard(&mut notifications, "ip link set left down").contains(&link(false)));
        assert!(heard(&mut notifications, "ip link set left up").contains(&link(true)));
        let quiet =
            "ip link set left mtu 1400; ip link set left alias x; ip link set left promisc on";
        assert_eq!(heard(&mut notifications, quiet), []);
        let gone = heard(&mut notifications, "ip link del left");
        assert!(gone.contains(&Notice::LinkGone { index }), "{gone:?}");
    });
}

#[test]
fn rules_and_routes_are_heard_only_when_they_can_concern_us() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        run("ip addr add 192.0.2.10/24 dev left; ip -6 addr add fd00::10/64 dev left nodad");
        let addr = "fd00::10".parse().unwrap();
        awaited(&mut notifications, &Notice::Address { addr, device, usable: true }).await;
        notifications.drain().unwrap();
        let routing = [
            "ip rule add pref 1064 fwmark 1 lookup 9",
            "ip rule del pref 1064",
            "ip -6 rule add pref 1252 fwmark 1 lookup 9",
            "ip -6 rule del pref 1252",
            "ip rule add pref 77 fwmark 1 lookup 9 proto 69",
            "ip route add default via 192.0.2.1 dev left table 10064",
            "ip route del default table 10064",
            "ip -6 route add default via fd00::1 dev left table 10064",
            "ip -6 route del default table 10064",
            "ip route add 203.0.113.0/24 via 192.0.2.1 table 77 proto 69",
        ];
        for line in routing {
            assert_eq!(heard(&mut notifications, line), [Notice::Routing], "{line}");
        }
        let networks = [
            "ip route add 198.51.100.0/24 dev left",
            "ip route del 198.51.100.0/24 dev left",
            "ip -6 route add fd01::/64 dev left",
            "ip route add default via 192.0.2.1",
            "ip route del default",
        ];
        for line in networks {
            assert_eq!(heard(&mut notifications, line), [Notice::Networks], "{line}");
        }
        let first = heard(&mut notifications, "ip route add 10.244.2.0/24 via 192.0.2.1");
        assert_eq!(first, [Notice::Routed { device }]);
        let quiet = [
            "ip rule add pref 999 fwmark 1 lookup 9",
            "ip -6 rule add pref 1254 fwmark 1 lookup 9",
            "ip route add 10.244.1.7 dev left",
            "ip route add 10.244.4.0/24 via 192.0.2.1; ip route del 10.244.4.0/24",
            "ip route add 10.244.2.0/24 dev left table 77",
            "ip route add blackhole 10.244.3.0/24",
            "ip -6 route add fd02::/64 via fd00::1",
        ];
        for line in quiet {
            assert_eq!(heard(&mut notifications, line), [], "{line}");
        }
    });
}

#[test]
fn our_own_rules_and_routes_are_passed_over() {
    in_scratch_netns(|| async {
        let interest = interest();
        let mut notifications = subscribe_to(interest.clone());
        let socket = RouteSocket::open().unwrap();
        interest.own_ports.add_route(socket.port());
        let routing = Routing::new(socket, interest.owned);
        let id = shared::RouteId::MIN;
        for family in Family::ALL {
            routing.add_rule(&interest.owned.rule(family, id)).await.unwrap();
            routing.add_route(&interest.owned.unreachable(family, id)).await.unwrap();
            routing.del_rule(&interest.owned.rule(family, id)).await.unwrap();
            routing.del_route(&interest.owned.unreachable(family, id)).await.unwrap();
        }
        assert_eq!(notifications.drain().unwrap(), BTreeSet::new());

        let stranger = Routing::new(RouteSocket::open().unwrap(), interest.owned);
        stranger.add_rule(&interest.owned.rule(Family::V4, id)).await.unwrap();
        assert_eq!(notifications.drain().unwrap(), [Notice::Routing].into());
    });
}

#[test]
fn settings_are_heard_of_the_interface_they_are_set_on() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        for (name, device) in [("left", Some(device)), ("all", None)] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
            std::fs::write(path, "1").unwrap();
            assert_eq!(notifications.drain().unwrap(), [Notice::NetConf { device }].into());
        }
        std::fs::write("/proc/sys/net/ipv4/conf/left/send_redirects", "0").unwrap();
        assert_eq!(notifications.drain().unwrap(), BTreeSet::new());
    });
}

#[test]
fn our_nft_tables_are_heard_of_and_no_others() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let changes = [
            (TABLES, Told::Schema),
            ("add element inet egress pods { 10.244.1.2 : 192.0.2.77 }", Told::Elements),
            ("delete element inet egress pods { 10.244.1.2 }", Told::Elements),
            ("add element inet egress mapped { 10.244.1.2 }", Told::Elements),
            ("flush set inet egress mapped", Told::Elements),
            ("add rule inet egress c counter", Told::Schema),
            ("flush chain inet egress c", Told::Schema),
            ("add set inet egress more { type ipv4_addr; elements = { 10.0.0.1 }; }", Told::Both),
            ("delete set inet egress more", Told::Both),
            ("flush ruleset", Told::Both),
        ];
        for (change, told) in changes {
            let mut expected = if told == Told::Elements { Vec::new() } else { nftables() };
            expected.extend(if told == Told::Schema { Vec::new() } else { elements() });
            let line = format!("nft '{change}'");
            assert_eq!(heard(&mut notifications, &line), expected, "{change}");
        }
        let others = TABLES.replace("egress", "kube-proxy");
        assert_eq!(heard(&mut notifications, &format!("nft '{others}'")), []);
        assert_eq!(heard(&mut notifications, "nft flush ruleset"), []);
    });
}

#[test]
fn a_pod_that_comes_and_goes_is_heard_of_as_a_link_and_no_more() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        joined(&mut notifications);
        run("ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0");
        run("ip link set cni0 up; ip link add first type veth peer name other master cni0");
        run("ip link set first up; ip link set other up");
        // the bridge has its carrier now, and with it a link-local address
        run("i=0; until ip -6 route show dev cni0 | grep -q fe80 || [ $((i += 1)) -gt 50 ]; \
             do sleep 0.1; done");
        notifications.drain().unwrap();
        let story = "ip link add pod type veth peer name eth9; ip link set pod master cni0; \
                     ip link set pod up; ip link set eth9 up; ip route add 10.244.1.5 dev cni0; \
                     ip -6 addr show dev pod | grep -q fe80; \
                     ip route del 10.244.1.5 dev cni0; ip link del pod";
        let notices = heard(&mut notifications, story);
        let of_links =
            |notice: &Notice| matches!(notice, Notice::Link { .. } | Notice::LinkGone { .. });
        assert!(!notices.is_empty() && notices.iter().all(of_links), "{notices:#?}");
    });
}

/// An attribute of a kind, as its bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; (value.len() + 4).next_multiple_of(4)];
    let mut buffer = NlaBuffer::new(bytes.as_mut_slice());
    buffer.set_kind(kind);
    buffer.set_length(u16::try_from(value.len() + 4).unwrap());
    bytes[4..4 + value.len()].copy_from_slice(value);
    bytes
}

/// A message to netfilter: `struct nlmsghdr`, `struct nfgenmsg` of `inet`, and attributes.
fn message(kind: u16, flags: u16, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | 1).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// One transaction that puts 10.244.9.9 into set `mapped`, or takes it out (`NFT_MSG_*SETELEM`).
fn change_element(socket: &netlink_sys::Socket, kind: u16, flags: u16) {
    const NESTED: u16 = 0x8000;
    let value = attribute(1, &[10, 244, 9, 9]);
    let key = attribute(1 | NESTED, &value);
    let elements = attribute(3 | NESTED, &attribute(1 | NESTED, &key));
    let body = [attribute(1, b"egress\0"), attribute(2, b"mapped\0"), elements].concat();
    let batch = [
        message(16, 0, 10, &[]),
        message(0x0a00 | kind, flags | 4, 0, &body), // acknowledged
        message(17, 0, 10, &[]),
    ];
    socket.send_to(&batch.concat(), &SocketAddr::new(0, 0), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    assert_eq!(answer[16..20], [0; 4], "the kernel refused");
}

#[test]
fn our_own_elements_are_passed_over_and_a_strangers_are_not() {
    in_scratch_netns(|| async {
        let interest = interest();
        run(&format!("nft '{TABLES}'"));
        let mut notifications = subscribe_to(interest.clone());
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER).unwrap();
        let port = socket.bind_auto().unwrap().port_number();

        change_element(&socket, 12, 0x400);
        assert!(run("nft list set inet egress mapped").contains("10.244.9.9"));
        assert_eq!(Vec::from_iter(notifications.drain().unwrap()), elements());

        interest.own_ports.add_netfilter(port);
        change_element(&socket, 14, 0);
        assert!(!run("nft list set inet egress mapped").contains("10.244.9.9"));
        change_element(&socket, 12, 0x400);
        assert_eq!(notifications.drain().unwrap(), BTreeSet::new());

        let line = "nft delete element inet egress mapped { 10.244.9.9 }";
        assert_eq!(heard(&mut notifications, line), elements());
    });
}

#[test]
fn what_nft_did_for_us_is_passed_over_and_what_came_before_and_after_is_not() {
    in_scratch_netns(|| async {
        let interest = interest();
        run(&format!("nft '{TABLES}'"));
        let mut notifications = subscribe_to(interest.clone());
        let mut tables =
            crate::kernel::tables::Tables::open(crate::ruleset::TableNames::of("egress")).unwrap();
        let add = |pod: &str| run(&format!("nft add element inet egress mapped {{ {pod} }}"));
        let told = |notices: BTreeSet<Notice>| Vec::from_iter(notices);

        run("nft add rule inet egress c counter");
        add("10.0.0.1");
        interest.own_ports.add_generation(tables.generation().unwrap());
        assert_eq!(told(notifications.drain().unwrap()), nftables());

        add("10.0.0.2");
        interest.own_ports.add_generation(tables.generation().unwrap());
        run("nft add rule inet egress c counter");
        assert_eq!(told(notifications.drain().unwrap()), nftables());
        // Heard of to its end: its number is no longer known.
        assert!(interest.own_ports.own().generations.is_empty());
    });
}

#[test]
fn a_flood_is_an_overrun_and_not_the_end() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        setsockopt(notifications.route.socket_ref(), sockopt::RcvBufForce, &4096).unwrap();
        run("for i in $(seq 1 60); do echo addr add 10.9.0.$i/32 dev left; done | ip -b -");
        assert!(notifications.drain().unwrap().contains(&Notice::Overrun));
        let notice = heard(&mut notifications, "ip addr add 192.0.2.77/32 dev left");
        let addr = "192.0.2.77".parse().unwrap();
        assert_eq!(notice, [Notice::Address { addr, device, usable: true }]);
    });
}

#[test]
fn the_next_notice_is_awaited_from_both_sockets() {
    in_scratch_netns(|| async {
        let mut notifications = subscribe();
        let device = joined(&mut notifications);
        run("ip addr add 192.0.2.77/32 dev left; nft 'add table inet egress'");
        let first = timeout(Duration::from_secs(10), notifications.next()).await;
        let addr = "192.0.2.77".parse().unwrap();
        let address = Notice::Address { addr, device, usable: true };
        assert_eq!(first.expect("no news in 10 s").unwrap(), address);
        let in_force = timeout(Duration::from_secs(10), notifications.next()).await;
        assert_eq!(in_force.expect("no news in 10 s").unwrap(), address);
        let second = timeout(Duration::from_secs(10), notifications.next()).await;
        assert_eq!(vec![second.expect("no news in 10 s").unwrap()], nftables());
    });
}
