//! The ingress table: what comes for another node's block of a VIP's ports is passed on to that node
//! as soon as it is received, without connection state, by whoever is taken for the VIP's holder.
//!
//! Rules of this table are loaded as text: `nft` 1.0.6 does not read all of it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::{Block, RouteId, Vip};

use super::{
    Chain, Declared, DeclaredKind, Hook, HookKind, HookPoint, INGRESS_COUNTERS, Input, Rule, Table,
};
use crate::direct::{self, DirectVip};
use crate::routing::Family;

/// Whether a chain of the ingress table says what is passed on, and to whom; the others say what is
/// for this node itself.
pub fn passes_on(chain: &str) -> bool {
    chain.starts_with(OTHERS)
}

const OTHERS: &str = "others_";
/// Before everybody else's.
const PRIORITY: i32 = -10;
/// For one node at one moment: some thousand fragmented packets a second and sender are many.
const FRAGMENTED_PACKETS: u32 = 1 << 16;

/// Which bits of a port or echo id say which block it is in.
const BLOCK_BITS: u16 = !(Block::SIZE - 1);

/// What tells the fragments of one packet from all others.
pub(super) const fn fragment(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip saddr . ip daddr . ip id",
        Family::V6 => "ip6 saddr . ip6 daddr . frag id",
    }
}

/// What tells connections apart, by their answers.
pub(super) const fn connection(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip daddr . meta l4proto . th dport . ip saddr . th sport",
        Family::V6 => "ip6 daddr . meta l4proto . th dport . ip6 saddr . th sport",
    }
}

/// What tells pings apart, by their answers.
pub(super) const fn echo(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip daddr . icmp id . ip saddr",
        Family::V6 => "ip6 daddr . icmpv6 id . ip6 saddr",
    }
}

/// The set of connections that this node made with ports that are in blocks of others by now.
pub const fn kept_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "kept4",
        Family::V6 => "kept6",
    }
}

/// The same of ICMP echo.
pub const fn kept_echoes_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "kept_echoes4",
        Family::V6 => "kept_echoes6",
    }
}

/// `None` where nothing is to be passed on.
pub(super) fn ingress(input: &Input) -> Option<Table> {
    let mut table = Table {
        counters: INGRESS_COUNTERS.iter().map(|(name, _)| *name).collect(),
        ..Table::default()
    };
    let mut by_uplink: BTreeMap<&str, Vec<(Vip, RouteId)>> = BTreeMap::new();
    for (vip, direct) in &input.direct {
        let (Some(id), Some(uplink)) = (input.vips.get(vip), &direct.uplink) else { continue };
        if !direct.others.is_empty() {
            by_uplink.entry(uplink).or_default().push((*vip, *id));
        }
    }
    for (number, (device, vips)) in (1..).zip(by_uplink) {
        let uplink = Uplink { number, device };
        table.chains.insert(uplink.name(), uplink.chain(&vips));
        for (vip, id) in vips {
            let Some(direct) = input.direct.get(&vip) else { continue };
            let family = Family::of(vip.addr());
            table.chains.insert(format!("vip_{id}"), for_this_node(family, id, direct));
            table.chains.insert(format!("{OTHERS}{id}"), uplink.for_others(family, direct));
            table.chains.insert(later_fragments(id), uplink.later_fragments(family, direct));
            for via in direct.others.values() {
                table.chains.insert(uplink.way_to(*via), uplink.way(*via));
                let size = FRAGMENTED_PACKETS;
                let declared = Declared { kind: DeclaredKind::Fragments, family, size };
                table.declared.insert(uplink.fragments_for(*via).into(), declared);
            }
        }
    }
    for family in Family::ALL {
        let sets = [
            (kept_set(family), DeclaredKind::Connections),
            (kept_echoes_set(family), DeclaredKind::Echoes),
        ];
        let declared = |kind| Declared { kind, family, size: 0 };
        table.declared.extend(sets.map(|(name, kind)| (name.into(), declared(kind))));
    }
    (!table.chains.is_empty()).then_some(table)
}

/// A device over which VIPs are reached.
#[derive(Clone, Copy)]
struct Uplink<'a> {
    number: u32,
    device: &'a str,
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// An address as a part of names.
fn named(addr: IpAddr) -> String {
    addr.to_string().replace(':', "-")
}

impl Uplink<'_> {
    fn name(self) -> String {
        format!("uplink{}", self.number)
    }

    /// The chain that leads to a node.
    fn way_to(self, via: IpAddr) -> String {
        format!("to{}_{}", self.number, named(via))
    }

    fn fragments_for(self, via: IpAddr) -> String {
        format!("fragments{}_{}", self.number, named(via))
    }

    fn forward(self, via: IpAddr) -> String {
        let family = ip(Family::of(via));
        format!("counter name \"passed_on\" fwd {family} to {via} device \"{}\"", self.device)
    }

    fn chain(self, vips: &[(Vip, RouteId)]) -> Chain {
        let rules = Family::ALL.into_iter().filter_map(|family| {
            let entries: Vec<_> = vips
                .iter()
                .filter(|(vip, _)| Family::of(vip.addr()) == family)
                .map(|(vip, id)| format!("{vip} : goto vip_{id}"))
                .collect();
            // Not what a switch sends to everybody because it does not know where the holder is: each
            // node would pass on a copy.
            let to_vip = format!("meta pkttype host {} daddr", ip(family));
            let rule = format!("{to_vip} vmap {{ {} }}", entries.join(", "));
            (!entries.is_empty()).then(|| Rule::of_text("VIPs", rule))
        });
        let hook = Hook {
            kind: HookKind::Filter,
            point: HookPoint::Ingress,
            device: Some(self.device.to_owned()),
            priority: PRIORITY,
        };
        Chain { hook: Some(hook), rules: rules.collect() }
    }

    /// What is for other nodes.
    fn for_others(self, family: Family, direct: &DirectVip) -> Chain {
        let entries: Vec<_> = direct
            .others
            .iter()
            .map(|(block, via)| format!("{} : goto {}", block.ports().start(), self.way_to(*via)))
            .collect();
        let entries = entries.join(", ");
        let rules = by_block(family)
            .into_iter()
            .map(|(why, block)| Rule::of_text(why, format!("{block} vmap {{ {entries} }}")));
        Chain { hook: None, rules: rules.collect() }
    }

    /// Later fragments of what is for other nodes follow the first.
    fn later_fragments(self, family: Family, direct: &DirectVip) -> Chain {
        let vias: BTreeSet<IpAddr> = direct.others.values().copied().collect();
        let rules = vias.iter().map(|via| {
            let follows = format!("{} @{}", fragment(family), self.fragments_for(*via));
            Rule::of_text(&via.to_string(), format!("{follows} {}", self.forward(*via)))
        });
        Chain { hook: None, rules: rules.collect() }
    }

    fn way(self, via: IpAddr) -> Chain {
        let family = Family::of(via);
        let first = match family {
            Family::V4 => "ip frag-off & 0x2000 != 0",
            Family::V6 => "frag more-fragments 1",
        };
        let set = self.fragments_for(via);
        let remember = format!("{first} add @{set} {{ {} }}", fragment(family));
        let rules = vec![
            Rule::of_text("first fragment", remember),
            Rule::of_text("whose ports they are", self.forward(via)),
        ];
        Chain { hook: None, rules }
    }
}

/// The chain of the fragments after the first, of packets to a VIP: a rule for each node to which they
/// may be passed on.
pub fn later_fragments(id: RouteId) -> String {
    format!("{OTHERS}{id}_later")
}

/// What is for this node itself, then the rest.
fn for_this_node(family: Family, id: RouteId, direct: &DirectVip) -> Chain {
    let own: Vec<_> = direct.own.iter().map(|block| block.ports().start().to_string()).collect();
    let own = own.join(", ");
    let later = match family {
        Family::V4 => "ip frag-off & 0x1fff != 0",
        Family::V6 => "frag frag-off != 0",
    };
    // They have no ports, but the kernel reads some all the same: in IPv6 from the flow label.
    let later = format!("{later} goto {}", later_fragments(id));
    let mut rules = vec![Rule::of_text("later fragments", later)];
    if !direct.own.is_empty() {
        let [(ports, of_ports), others @ ..] =
            by_block(family).map(|(why, block)| (why, format!("{block} {{ {own} }} accept")));
        // Nearly all packets meet this: a range takes no look-up.
        let of_ports = match direct::ranges(&direct.own).as_slice() {
            [ports] => format!("{PORTS} {}-{} accept", ports.start(), ports.end()),
            _ => of_ports,
        };
        let own = [(ports, of_ports)].into_iter().chain(others);
        rules.extend(own.map(|(why, text)| Rule::of_text(&format!("own {why}"), text)));
    }
    let reply = match family {
        Family::V4 => "icmp type echo-reply",
        Family::V6 => "icmpv6 type echo-reply",
    };
    let (kept, echoes) = (kept_set(family), kept_echoes_set(family));
    rules.extend([
        Rule::of_text("made before", format!("{} @{kept} accept", connection(family))),
        Rule::of_text("echo, made before", format!("{reply} {} @{echoes} accept", echo(family))),
        Rule::of_text("others'", format!("goto {OTHERS}{id}")),
    ]);
    Chain { hook: None, rules }
}

const PORTS: &str = "meta l4proto { tcp, udp } th dport";

/// The ways in which a packet to a VIP says in which block it belongs: matches that end with that
/// block's first number. ICMP errors quote a packet that has left with the VIP.
fn by_block(family: Family) -> [(&'static str, String); 4] {
    let bits = format!("& {BLOCK_BITS:#x}");
    let (reply, errors) = match family {
        Family::V4 => (
            "icmp type echo-reply icmp id".to_owned(),
            // A header without options, as that of what we send.
            "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45",
        ),
        Family::V6 => (
            "icmpv6 type echo-reply icmpv6 id".to_owned(),
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, \
             parameter-problem }",
        ),
    };
    let (quoted_ports, quoted_id) = match family {
        Family::V4 => ("@th,136,8 { 6, 17 } @th,224,16", "@th,136,8 1 @th,224,8 8 @th,256,16"),
        Family::V6 => ("@th,112,8 { 6, 17 } @th,384,16", "@th,112,8 58 @th,384,8 128 @th,416,16"),
    };
    [
        ("ports", format!("{PORTS} {bits}")),
        ("echo ids", format!("{reply} {bits}")),
        ("errors, by port", format!("{errors} {quoted_ports} {bits}")),
        ("errors, by echo id", format!("{errors} {quoted_id} {bits}")),
    ]
}
