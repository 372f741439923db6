//! What a node is like, as far as it decides what is programmed: which VIPs are here, and which
//! device leads to a VIP that is not.
//!
//! Pure; `kernel::links` reads the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use shared::Vip;

use crate::routing::{Device, Family};

/// The devices, addresses and neighbourhoods of a node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every device, by index.
    pub links: BTreeMap<u32, Link>,
    /// Every address of every device.
    pub addresses: BTreeSet<LocalAddress>,
    /// The networks that can be reached without a gateway; not those of a single address,
    /// nor the link-local one.
    pub on_link: BTreeSet<OnLink>,
    /// The networks that are reached through a gateway: pods of other nodes are, by an overlay or
    /// by the nodes themselves.
    pub routed: BTreeSet<Routed>,
    /// The ways to everywhere else.
    pub gateways: BTreeSet<Gateway>,
}

/// A default route of table `main`; the lowest metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Whose packets go this way.
    pub family: Family,
    pub metric: u32,
    /// The index of its device.
    pub device: u32,
    /// Who takes them; may be of the other family.
    pub addr: IpAddr,
}

/// A route of table `main` that leads through a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Routed {
    pub network: IpNet,
    /// The index of its device.
    pub device: u32,
}

/// A network device and its state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub device: Device,
    /// Switched on by its administrator; it may lack a carrier.
    pub up: bool,
    pub loopback: bool,
}

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    pub addr: IpAddr,
    /// The index of its device.
    pub device: u32,
    /// The kernel takes it for its own: IPv6 has made sure that nobody else on the link has it.
    pub usable: bool,
}

/// A route of table `main` to a network on the link of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnLink {
    pub network: IpNet,
    /// The index of its device.
    pub device: u32,
    pub metric: u32,
}

/// There is no device by which a VIP can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NoUplink {
    #[error("no interface of this node is in the network of {vip}; name one with --interface")]
    NotOnLink { vip: Vip },
    #[error("this node has no interface {name:?}")]
    NoSuchInterface { name: String },
    #[error("interface {name:?} is down")]
    InterfaceDown { name: String },
}

impl NodeFacts {
    /// The device that has the VIP, when this node holds it: just as the kernel's own look-up
    /// (`fib saddr type local`) answers, which does not mind a device that is down.
    pub fn holding(&self, vip: Vip) -> Option<&Device> {
        self.addresses
            .iter()
            .filter(|address| address.addr == vip.addr() && address.usable)
            .find_map(|address| self.links.get(&address.device).map(|link| &link.device))
    }

    /// Whether the kernel takes the address for this node's own.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.addr == addr && address.usable)
    }

    /// Whether it is an address of this device.
    pub fn has_on(&self, addr: IpAddr, device: &Device) -> bool {
        let is_it = |address: &LocalAddress| {
            (address.addr, address.device, address.usable) == (addr, device.index, true)
        };
        self.addresses.iter().any(is_it)
    }

    /// Whether the device has an address or leads to a network: pods' devices need neither, but
    /// for the link-local address that all devices have.
    pub fn is_used(&self, device: u32) -> bool {
        self.addresses.iter().any(|own| own.device == device && !is_link_local(own.addr))
            || self.on_link.iter().any(|route| route.device == device)
            || self.routed.iter().any(|route| route.device == device)
            || self.gateways.iter().any(|gateway| gateway.device == device)
    }

    /// Those of `vips` that this node holds.
    pub fn held(&self, vips: impl IntoIterator<Item = Vip>) -> BTreeSet<Vip> {
        vips.into_iter().filter(|vip| self.holding(*vip).is_some()).collect()
    }

    /// The device by which a VIP is reached: the `forced` one or, without, the one whose network
    /// contains the VIP. The narrowest network wins, then the lowest metric, then the lowest index.
    pub fn uplink_for(&self, vip: Vip, forced: Option<&str>) -> Result<Device, NoUplink> {
        if let Some(name) = forced {
            return self.named(name);
        }
        self.link_of(vip.addr()).cloned().ok_or(NoUplink::NotOnLink { vip })
    }

    /// Whether this node holds the VIP: see [`holding`](Self::holding).
    pub fn holds(&self, vip: Vip) -> bool {
        self.holding(vip).is_some()
    }

    /// The interfaces by which other nodes' pods are reached, given where pods live. Answers from
    /// outside come back over them when the holder of a VIP is another node.
    pub fn overlays(&self, pod_subnets: &[IpNet]) -> BTreeSet<String> {
        self.routed
            .iter()
            .filter(|route| pod_subnets.iter().any(|subnet| subnet.contains(&route.network)))
            .filter_map(|route| self.links.get(&route.device))
            .map(|link| link.device.name.clone())
            .collect()
    }

    /// The interfaces with a gateway behind them: packets of other nodes' pods, and answers to
    /// pods here, may come over them although their sources have their route elsewhere.
    pub fn gatewayed(&self) -> BTreeSet<String> {
        self.routed
            .iter()
            .filter_map(|route| self.links.get(&route.device))
            .map(|link| link.device.name.clone())
            .collect()
    }

    /// The default gateway, and the device that leads to it.
    pub fn gateway(&self, family: Family) -> Option<(&Device, IpAddr)> {
        let of_family = self.gateways.iter().filter(|gateway| gateway.family == family);
        let mut up = of_family.filter_map(|gateway| {
            let link = self.links.get(&gateway.device)?;
            link.up.then_some((&link.device, gateway.addr))
        });
        up.next()
    }

    /// The device on whose link an address is, if it is on any: the narrowest network wins.
    pub fn link_of(&self, addr: IpAddr) -> Option<&Device> {
        let networks = self.on_link.iter().filter(|route| route.network.contains(&addr));
        let up = networks.filter_map(|route| {
            let link = self.links.get(&route.device)?;
            (link.up && !link.loopback).then_some((route, &link.device))
        });
        let narrowest = up.min_by_key(|(route, device)| {
            (std::cmp::Reverse(route.network.prefix_len()), route.metric, device.index)
        });
        narrowest.map(|(_, device)| device)
    }

    /// Whether there is an interface of this name, up or not.
    pub fn exists(&self, name: &str) -> Result<(), NoUplink> {
        match self.named(name) {
            Err(missing @ NoUplink::NoSuchInterface { .. }) => Err(missing),
            _ => Ok(()),
        }
    }

    fn named(&self, name: &str) -> Result<Device, NoUplink> {
        match self.links.values().find(|link| link.device.name == name) {
            None => Err(NoUplink::NoSuchInterface { name: name.to_owned() }),
            Some(link) if !link.up => Err(NoUplink::InterfaceDown { name: name.to_owned() }),
            Some(link) => Ok(link.device.clone()),
        }
    }
}

/// Whether the address is one of `fe80::/10`: no VIP is, and every device has one.
pub(crate) const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn vip(text: &str) -> Vip {
        text.parse().unwrap()
    }

    /// 1 lo, 2 eth0, 3 eth1, 4 eth2 (down), 5 vrrp.64
    fn facts() -> NodeFacts {
        let links =
            [("lo", true), ("eth0", true), ("eth1", true), ("eth2", false), ("vrrp.64", true)];
        let on_link = [
            ("0.0.0.0/1", 1, 0),
            ("192.0.0.0/16", 2, 100),
            ("192.0.2.0/24", 3, 200),
            ("192.0.2.0/24", 5, 300),
            ("192.0.2.64/26", 4, 0),
            ("198.51.100.0/24", 3, 50),
            ("198.51.100.0/24", 2, 100),
            ("fd00::/64", 2, 256),
        ];
        let addresses = [
            ("192.0.2.7", 3, true),
            ("192.0.2.222", 5, true),
            ("192.0.2.70", 4, true),
            ("fd00::77", 2, true),
            ("fd00::88", 2, false),
        ];
        NodeFacts {
            links: (1..)
                .zip(links)
                .map(|(index, (name, up))| {
                    let device = Device { index, name: name.to_owned() };
                    (index, Link { device, up, loopback: index == 1 })
                })
                .collect(),
            addresses: addresses
                .into_iter()
                .map(|(addr, device, usable)| LocalAddress {
                    addr: addr.parse().unwrap(),
                    device,
                    usable,
                })
                .collect(),
            on_link: on_link
                .into_iter()
                .map(|(network, device, metric)| OnLink {
                    network: network.parse().unwrap(),
                    device,
                    metric,
                })
                .collect(),
            routed: [("10.244.2.0/24", 5), ("198.51.100.128/25", 3), ("fd00:244:2::/64", 5)]
                .map(|(network, device)| Routed { network: network.parse().unwrap(), device })
                .into(),
            gateways: [
                (Family::V4, 100, 2, "192.0.2.1"),
                (Family::V4, 50, 4, "192.0.2.65"),
                (Family::V4, 200, 3, "198.51.100.1"),
                (Family::V6, 1024, 2, "fe80::1"),
            ]
            .map(|(family, metric, device, addr)| {
                let addr = addr.parse().unwrap();
                Gateway { family, metric, device, addr }
            })
            .into(),
        }
    }

    #[test]
    fn other_nodes_pods_are_reached_where_their_subnets_are_routed() {
        let subnets = ["10.244.0.0/16", "fd00:244::/56"].map(|net| net.parse().unwrap());
        assert_eq!(facts().overlays(&subnets), BTreeSet::from(["vrrp.64".to_owned()]));
        assert_eq!(facts().overlays(&[]), BTreeSet::new());
    }

    #[rstest]
    #[case::narrowest_network("192.0.2.9", Some("eth1"))]
    #[case::wider_network("192.0.9.9", Some("eth0"))]
    #[case::a_device_that_is_down_is_passed_over("192.0.2.65", Some("eth1"))]
    #[case::lowest_metric("198.51.100.9", Some("eth1"))]
    #[case::ipv6("fd00::9", Some("eth0"))]
    #[case::never_lo("100.64.0.1", None)]
    #[case::elsewhere("203.0.113.9", None)]
    fn the_uplink_is_the_device_in_the_network_of_the_vip(
        #[case] addr: &str,
        #[case] name: Option<&str>,
    ) {
        let found = facts().uplink_for(vip(addr), None);
        match name {
            Some(name) => assert_eq!(found.unwrap().name, name),
            None => assert_eq!(found, Err(NoUplink::NotOnLink { vip: vip(addr) })),
        }
    }

    #[test]
    fn the_gateway_is_that_of_the_lowest_metric_whose_device_is_up() {
        let facts = facts();
        let gateway = |family| {
            let (device, addr) = facts.gateway(family).unwrap();
            format!("{addr} {device}")
        };
        assert_eq!(gateway(Family::V4), "192.0.2.1 eth0");
        assert_eq!(gateway(Family::V6), "fe80::1 eth0");
        assert_eq!(NodeFacts::default().gateway(Family::V4), None);
    }

    #[test]
    fn a_forced_interface_is_taken_for_every_vip_or_named_as_missing() {
        let facts = facts();
        let any = vip("203.0.113.9");
        assert_eq!(facts.uplink_for(any, Some("eth0")).unwrap().index, 2);
        let missing = NoUplink::NoSuchInterface { name: "eth9".to_owned() };
        assert_eq!(facts.uplink_for(any, Some("eth9")), Err(missing));
        let down = NoUplink::InterfaceDown { name: "eth2".to_owned() };
        assert_eq!(facts.uplink_for(any, Some("eth2")), Err(down));
    }

    #[rstest]
    #[case("192.0.2.222", Some("vrrp.64"))]
    #[case("192.0.2.223", None)]
    #[case::its_device_is_down("192.0.2.70", Some("eth2"))]
    #[case("fd00::77", Some("eth0"))]
    #[case::not_known_to_be_free_yet("fd00::88", None)]
    fn a_vip_is_here_when_a_device_of_this_node_has_it(
        #[case] addr: &str,
        #[case] name: Option<&str>,
    ) {
        let facts = facts();
        assert_eq!(facts.holding(vip(addr)).map(|device| device.name.as_str()), name);
        assert_eq!(facts.held([vip(addr)]).len(), usize::from(name.is_some()));
    }
}
