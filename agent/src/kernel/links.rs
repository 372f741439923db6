//! Reads a node's devices, addresses and on-link networks. Touches nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use nix::errno::Errno;

use super::route_socket::{RequestError, RouteSocket};
use super::routing::wire::{device_of, metric_of, routes_in_table, wire_family};
use crate::node_facts::{Gateway, Link, LocalAddress, NodeFacts, OnLink, Routed, is_link_local};
use crate::routing::{Device, Family};

/// The routing table of the addresses that are this machine's.
const TABLE_LOCAL: u32 = 255;

/// What could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error("cannot read network interfaces")]
    Links(#[source] RequestError),
    #[error("cannot read addresses")]
    Addresses(#[source] RequestError),
    #[error("cannot read the routes of tables main and local")]
    Routes(#[source] RequestError),
}

/// Reads the facts, in six dumps: not one moment for all of them, so
/// subscribe to notifications first.
pub async fn read_node_facts(socket: &RouteSocket) -> Result<NodeFacts, FactsError> {
    let mut facts = NodeFacts::default();

    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let question = RouteNetlinkMessage::GetLink(question);
    for message in socket.dump(question).await.map_err(FactsError::Links)? {
        if let RouteNetlinkMessage::NewLink(message) = message {
            facts.links.extend(link(message).map(|link| (link.device.index, link)));
        }
    }

    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in socket.dump(question).await.map_err(FactsError::Addresses)? {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            facts.addresses.extend(local_address(&message));
        }
    }

    // An address is told of before it is in force, by the time it takes somebody else's turn on the
    // processor: what is decided in between is decided as before.
    let in_force = local_routes(socket).await?;
    facts.addresses = std::mem::take(&mut facts.addresses)
        .into_iter()
        .map(|address| LocalAddress {
            usable: address.usable && in_force.contains(&address.addr),
            ..address
        })
        .collect();

    for family in Family::ALL {
        let question =
            routes_in_table(family, RouteHeader::RT_TABLE_MAIN.into(), RouteType::Unicast);
        for message in routes(socket, question).await? {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                facts.gateways.extend(gateways(family, &message));
                match way(family, &message) {
                    Some(Way::OnLink(route)) => drop(facts.on_link.insert(route)),
                    Some(Way::Routed(route)) => drop(facts.routed.insert(route)),
                    None => {}
                }
            }
        }
    }
    Ok(facts)
}

/// The addresses that the kernel's look-up takes for its own.
async fn local_routes(socket: &RouteSocket) -> Result<BTreeSet<IpAddr>, FactsError> {
    let mut addresses = BTreeSet::new();
    for family in Family::ALL {
        let question = routes_in_table(family, TABLE_LOCAL, RouteType::Local);
        for message in routes(socket, question).await? {
            let RouteNetlinkMessage::NewRoute(message) = message else { continue };
            addresses.extend(message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::from(*addr)),
                RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::from(*addr)),
                _ => None,
            }));
        }
    }
    Ok(addresses)
}

/// None where there is no route in the table yet, or the kernel lacks IPv6.
async fn routes(
    socket: &RouteSocket,
    question: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, FactsError> {
    match socket.dump(question).await {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        other => other.map_err(FactsError::Routes),
    }
}

fn is_absent(error: &RequestError) -> bool {
    [Errno::ENOENT, Errno::EAFNOSUPPORT].iter().any(|absent| error.errno() == Some(*absent as i32))
}

fn link(message: LinkMessage) -> Option<Link> {
    let index = message.header.index;
    let flags = message.header.flags;
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some(Link {
        device: Device { index, name },
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
    })
}

fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(LocalAddress {
        // point to point: `Address` is the other end's
        addr: local.or(address)?,
        device: message.header.index,
        usable: is_usable(flags.bits()),
    })
}

/// Whether the kernel takes an address with these `IFA_F_*` flags for its own.
pub(super) const fn is_usable(flags: u32) -> bool {
    let flags = AddressFlags::from_bits_retain(flags);
    !flags.contains(AddressFlags::Dadfailed)
        && (!flags.contains(AddressFlags::Tentative) || flags.contains(AddressFlags::Optimistic))
}

/// A route of table `main`, as far as it says by which device a network is reached.
enum Way {
    OnLink(OnLink),
    Routed(Routed),
}

fn way(family: Family, message: &RouteMessage) -> Option<Way> {
    let prefix_len = message.header.destination_prefix_length;
    if message.header.address_family != wire_family(family) {
        return None;
    }
    let (mut destination, mut gateway) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => {
                destination = Some(IpAddr::V4(*addr));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => {
                destination = Some(IpAddr::V6(*addr));
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            RouteAttribute::MultiPath(_) | RouteAttribute::EncapType(_) => return None,
            _ => {}
        }
    }
    let network = IpNet::new(destination?, prefix_len).ok()?;
    let device = device_of(message)?;
    if gateway {
        return Some(Way::Routed(Routed { network, device }));
    }
    // a single address says nothing of a network; a VIP that is here makes such a route
    (!is_link_local(network.addr()) && network.prefix_len() < network.max_prefix_len())
        .then(|| Way::OnLink(OnLink { network, device, metric: metric_of(message) }))
}

/// Whom a default route leads to: several, if it balances.
fn gateways(family: Family, message: &RouteMessage) -> Vec<Gateway> {
    let is_default = message.header.destination_prefix_length == 0
        && message.header.address_family == wire_family(family);
    if !is_default {
        return Vec::new();
    }
    let metric = metric_of(message);
    let to = |device, attributes: &[RouteAttribute]| {
        let addr = attributes.iter().find_map(next_hop)?;
        Some(Gateway { family, metric, device, addr })
    };
    let hops = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match hops {
        Some(hops) => {
            let hop = |hop: &RouteNextHop| to(hop.interface_index, &hop.attributes);
            hops.iter().filter_map(hop).collect()
        }
        None => device_of(message)
            .and_then(|device| to(device, &message.attributes))
            .into_iter()
            .collect(),
    }
}

fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(addr))
        | RouteAttribute::Via(RouteVia::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Gateway(RouteAddress::Inet6(addr))
        | RouteAttribute::Via(RouteVia::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::kernel::scratch_netns::{attempt, in_scratch_netns, json, run};

    fn addresses_of_ip() -> Vec<(String, u64)> {
        let links = json("ip -j addr show");
        let mut all: Vec<_> = links
            .iter()
            .flat_map(|link| {
                let index = link["ifindex"].as_u64().unwrap();
                let addresses = link["addr_info"].as_array().unwrap();
                addresses
                    .iter()
                    .map(move |address| (address["local"].as_str().unwrap().to_owned(), index))
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_facts_are_those_that_ip_lists() {
        in_scratch_netns(|| async {
            run("ip link set lo up");
            run("ip link add left type veth peer name right");
            run("ip link add br0 type bridge; ip link set br0 up");
            run("ip link set left up; ip link set right up");
            run("ip addr add 192.0.2.10/24 dev left; ip addr add 192.0.2.77/32 dev left");
            run("ip addr add 10.1.1.1 peer 10.1.1.2 dev left");
            run("ip addr add 198.51.100.1/24 dev br0");
            run(
                "ip -6 addr add fd00::10/64 dev left nodad; ip -6 addr add fd00::77 dev left nodad",
            );
            run("ip -6 addr add fd01::1 peer fd01::2 dev left nodad");
            run("ip -6 addr add fd00::99/128 dev br0"); // no carrier: stays tentative
            run("ip route add 203.0.113.0/24 via 192.0.2.1; ip route add default via 192.0.2.1");
            run(
                "ip route add 100.64.0.0/16 dev left metric 9; ip route add blackhole 100.65.0.0/16",
            );
            run("ip route add 100.66.0.0/16 dev left table 77");
            let facts = read_node_facts(&RouteSocket::open().unwrap()).await.unwrap();

            let names: Vec<_> =
                facts.links.values().map(|link| (link.device.name.as_str(), link.up)).collect();
            let mut listed: Vec<_> = json("ip -j link show")
                .into_iter()
                .map(|link| {
                    let up = link["flags"].as_array().unwrap().contains(&Value::from("UP"));
                    (link["ifindex"].as_u64(), link["ifname"].as_str().unwrap().to_owned(), up)
                })
                .collect();
            listed.sort();
            let listed: Vec<_> = listed.iter().map(|(_, name, up)| (name.as_str(), *up)).collect();
            assert_eq!(names, listed);

            let mut addresses: Vec<_> = facts
                .addresses
                .iter()
                .map(|address| (address.addr.to_string(), u64::from(address.device)))
                .collect();
            addresses.sort();
            assert_eq!(addresses, addresses_of_ip());

            let networks: Vec<_> =
                facts.on_link.iter().map(|route| route.network.to_string()).collect();
            let routed: Vec<_> =
                facts.routed.iter().map(|route| route.network.to_string()).collect();
            assert_eq!(routed, ["203.0.113.0/24"]);
            for want in ["192.0.2.0/24", "198.51.100.0/24", "100.64.0.0/16", "fd00::/64"] {
                assert!(networks.iter().any(|network| network == want), "{want} in {networks:?}");
            }
            let v4 = facts.on_link.iter().filter(|route| route.network.addr().is_ipv4()).count();
            assert_eq!(v4, 3, "{networks:?}");

            let vip = |text: &str| text.parse().unwrap();
            assert_eq!(facts.uplink_for(vip("192.0.2.222"), None).unwrap().name, "left");
            assert_eq!(facts.uplink_for(vip("198.51.100.9"), None).unwrap().name, "br0");
            assert_eq!(facts.uplink_for(vip("fd00::222"), None).unwrap().name, "left");
            assert!(facts.uplink_for(vip("203.0.113.9"), None).is_err());
            for held in ["192.0.2.77", "fd00::77", "10.1.1.1", "fd01::1"] {
                assert_eq!(facts.holding(vip(held)).unwrap().name, "left", "{held}");
            }
            for other in ["fd00::99", "10.1.1.2", "fd01::2"] {
                assert_eq!(facts.holding(vip(other)), None, "{other}");
            }
        });
    }

    #[test]
    fn a_vip_is_here_when_the_kernel_has_it_as_local() {
        in_scratch_netns(|| async {
            run("ip link add left type veth peer name right; ip link set right up");
            let socket = RouteSocket::open().unwrap();
            let vip = "192.0.2.77".parse().unwrap();
            for (change, here) in [
                ("link set right up", false),
                ("addr add 192.0.2.77/32 dev left", true),
                ("link set left up", true),
                ("link set left down", true),
                ("addr del 192.0.2.77/32 dev left", false),
            ] {
                run(&format!("ip {change}"));
                // fails while there is no such table
                let (_, table) = attempt("ip route show table local");
                assert_eq!(table.contains("local 192.0.2.77"), here, "{change}");
                let facts = read_node_facts(&socket).await.unwrap();
                assert_eq!(facts.holding(vip).is_some(), here, "{change}");
            }
        });
    }

    #[test]
    fn default_routes_lead_to_gateways() {
        in_scratch_netns(|| async {
            run("ip link add left type veth peer name right; ip link set right up");
            run("ip link set left up; ip addr add 192.0.2.10/24 dev left");
            run("ip -6 addr add fd00::10/64 dev left nodad");
            run("ip route add default via 192.0.2.1 metric 100");
            run("ip route add default metric 50 nexthop via 192.0.2.2 nexthop via 192.0.2.3");
            run("ip -4 route add default via inet6 fe80::9 dev left metric 20");
            run("ip route add default dev right metric 5");
            run("ip -6 route add default via fe80::1 dev left metric 1024");
            let facts = read_node_facts(&RouteSocket::open().unwrap()).await.unwrap();
            let gateways: Vec<_> = facts
                .gateways
                .iter()
                .map(|Gateway { family, metric, device, addr }| {
                    format!("{family:?} {metric} {} {addr}", facts.links[device].device)
                })
                .collect();
            let expected = [
                "V4 20 left fe80::9",
                "V4 50 left 192.0.2.2",
                "V4 50 left 192.0.2.3",
                "V4 100 left 192.0.2.1",
                "V6 1024 left fe80::1",
            ];
            assert_eq!(gateways, expected);
        });
    }

    #[test]
    fn an_empty_namespace_has_no_networks() {
        in_scratch_netns(|| async {
            let facts = read_node_facts(&RouteSocket::open().unwrap()).await.unwrap();
            assert_eq!(facts.links.len(), 1);
            assert!(facts.links.values().all(|link| link.loopback && !link.up));
            assert!(facts.addresses.is_empty() && facts.on_link.is_empty());
        });
    }
}
