//! What there is to prove on this node, and by which way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::{Block, Mappings, Vip};

use crate::node_facts::{NoUplink, NodeFacts};
use crate::routing::{Device, Family};

/// How packets leave this node, and who there is asked to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Over which interface.
    pub device: Device,
    /// Who takes them on its link.
    pub next_hop: IpAddr,
    /// Who answers.
    pub target: IpAddr,
}

/// Why nobody can be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// This node could not get answers.
    #[error(transparent)]
    NoUplink(#[from] NoUplink),
    /// Answers would go to another node, or to none.
    #[error("answers are passed on to {via}, which is no address of this node")]
    NotOurs { via: IpAddr },
    /// Nobody is known to answer.
    #[error(
        "this node has no default gateway for {}; name an address that answers pings with \
         --prove-with",
        match family { Family::V4 => "IPv4", Family::V6 => "IPv6" }
    )]
    NoGateway { family: Family },
    /// The gateway has no address of the family.
    #[error(
        "the default gateway {gateway} has no address of this family; name one that answers pings \
         with --prove-with"
    )]
    OtherFamily { gateway: IpAddr },
    /// An answer from here would prove nothing.
    #[error("{target} is this node's own address; name another one with --prove-with")]
    TargetHere { target: IpAddr },
}

/// Open blocks of a VIP that are this node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Each is to be proven.
    pub open: BTreeSet<Block>,
    /// By which way.
    pub way: Result<Way, NoWay>,
}

/// All of a node.
pub type Claims = BTreeMap<Vip, Claim>;

/// What an operator chose for proofs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The uplink of every VIP, if it is given.
    pub interface: Option<&'a str>,
    /// Who is asked instead of the default gateway: the first of each family.
    pub targets: &'a [IpAddr],
}

/// What there is to prove for `node`.
pub fn claims(mappings: &Mappings, facts: &NodeFacts, node: &str, choice: &Choice<'_>) -> Claims {
    let with_route_id =
        mappings.blocks().iter().filter(|(vip, _)| mappings.vips().contains_key(vip));
    let own = with_route_id.filter_map(|(vip, nodes)| Some((*vip, nodes.get(node)?)));
    own.filter(|(_, blocks)| !blocks.open.is_empty())
        .map(|(vip, blocks)| {
            let way = way(vip, blocks.via, facts, choice);
            (vip, Claim { open: blocks.open.clone(), way })
        })
        .collect()
}

fn way(vip: Vip, via: IpAddr, facts: &NodeFacts, choice: &Choice<'_>) -> Result<Way, NoWay> {
    facts.uplink_for(vip, choice.interface)?;
    if !facts.has(via) {
        return Err(NoWay::NotOurs { via });
    }
    let family = Family::of(vip.addr());
    let given = choice.targets.iter().find(|target| Family::of(**target) == family).copied();
    if let Some(target) = given {
        if facts.has(target) {
            return Err(NoWay::TargetHere { target });
        }
        if let Some(device) = facts.link_of(target) {
            return Ok(Way { device: device.clone(), next_hop: target, target });
        }
    }
    let (device, gateway) = facts.gateway(family).ok_or(NoWay::NoGateway { family })?;
    let target = given.unwrap_or(gateway);
    if Family::of(target) != family {
        return Err(NoWay::OtherFamily { gateway });
    }
    Ok(Way { device: device.clone(), next_hop: gateway, target })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use shared::MappingsStore;
    use shared::mappings::{Change, Content};

    use super::*;
    use crate::node_facts::{Gateway, Link, LocalAddress, OnLink};

    const NODE: &str = "n1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mappings(vip: &str, blocks: &str) -> Mappings {
        let mut store = MappingsStore::default();
        let objects = [
            ("vip-routeid-mappings".to_owned(), vec![(vip.replace(':', "-"), "64")]),
            ("egress-networks".to_owned(), vec![]),
            ("podip-vip-mappings".to_owned(), vec![]),
            (format!("vip-blocks-{}", vip.replace(':', "-")), vec![(NODE.to_owned(), blocks)]),
        ];
        for (object, data) in objects {
            let data = data.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
            store.apply(Change { object, content: Content::Whole(data) });
        }
        store.mappings().unwrap().clone()
    }

    /// eth0 with both families, and a gateway of each.
    fn facts() -> NodeFacts {
        let device = Device { index: 2, name: "eth0".to_owned() };
        let on_link =
            |network: &str| OnLink { network: network.parse().unwrap(), device: 2, metric: 0 };
        let gateway = |family, addr| Gateway { family, metric: 0, device: 2, addr: ip(addr) };
        let local = |addr| LocalAddress { addr: ip(addr), device: 2, usable: true };
        NodeFacts {
            links: [(2, Link { device, up: true, loopback: false })].into(),
            addresses: [local("192.0.2.11"), local("fd00::11")].into(),
            on_link: [on_link("192.0.2.0/24"), on_link("fd00::/64")].into(),
            gateways: [gateway(Family::V4, "192.0.2.1"), gateway(Family::V6, "fe80::1")].into(),
            ..NodeFacts::default()
        }
    }

    fn told(vip: &str, blocks: &str, facts: &NodeFacts, targets: &[&str]) -> String {
        let targets: Vec<_> = targets.iter().map(|target| ip(target)).collect();
        let choice = Choice { interface: None, targets: &targets };
        let claims = claims(&mappings(vip, blocks), facts, NODE, &choice);
        match claims.get(&vip.parse().unwrap()) {
            None => "nothing to prove".to_owned(),
            Some(Claim { way: Ok(Way { device, next_hop, target }), open: _ }) => {
                format!("{target} via {next_hop} {device}")
            }
            Some(Claim { way: Err(why), open: _ }) => why.to_string(),
        }
    }

    #[rstest]
    #[case("192.0.2.222", "1 via 192.0.2.11", &[], "192.0.2.1 via 192.0.2.1 eth0")]
    #[case("fd00::222", "1 via fd00::11", &[], "fe80::1 via fe80::1 eth0")]
    #[case("192.0.2.222", "1 via 192.0.2.11", &["fd00::9"], "192.0.2.1 via 192.0.2.1 eth0")]
    #[case("192.0.2.222", "1 via 192.0.2.11", &["192.0.2.9"], "192.0.2.9 via 192.0.2.9 eth0")]
    #[case("192.0.2.222", "1 via 192.0.2.11", &["8.8.8.8"], "8.8.8.8 via 192.0.2.1 eth0")]
    #[case(
        "192.0.2.222", "1 via 192.0.2.12", &[],
        "answers are passed on to 192.0.2.12, which is no address of this node"
    )]
    #[case(
        "192.0.2.222", "1 via 192.0.2.11", &["192.0.2.11"],
        "192.0.2.11 is this node's own address; name another one with --prove-with"
    )]
    #[case(
        "203.0.113.222", "1 via 192.0.2.11", &[],
        "no interface of this node is in the network of 203.0.113.222; name one with --interface"
    )]
    #[case("192.0.2.222", "draining 1 via 192.0.2.11", &[], "nothing to prove")]
    fn the_gateway_is_asked_or_who_is_named(
        #[case] vip: &str,
        #[case] blocks: &str,
        #[case] targets: &[&str],
        #[case] expected: &str,
    ) {
        assert_eq!(told(vip, blocks, &facts(), targets), expected);
    }

    #[test]
    fn without_a_gateway_of_the_family_somebody_has_to_be_named() {
        let other = Gateway { family: Family::V4, metric: 0, device: 2, addr: ip("fe80::1") };
        let (vip, blocks) = ("192.0.2.222", "1 via 192.0.2.11");
        let with = |gateways| NodeFacts { gateways, ..facts() };
        let (none, other) = (with(BTreeSet::new()), with([other].into()));
        assert_eq!(
            told(vip, blocks, &none, &[]),
            "this node has no default gateway for IPv4; name an address that answers pings with \
             --prove-with"
        );
        assert_eq!(told(vip, blocks, &none, &["192.0.2.9"]), "192.0.2.9 via 192.0.2.9 eth0");
        assert_eq!(
            told(vip, blocks, &other, &[]),
            "the default gateway fe80::1 has no address of this family; name one that answers \
             pings with --prove-with"
        );
        assert_eq!(told(vip, blocks, &other, &["8.8.8.8"]), "8.8.8.8 via fe80::1 eth0");
    }
}
