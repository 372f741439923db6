//! What the direct path adds to both tables: connections of this node's own pods are translated here,
//! with ports of the VIP that are this node's, and leave as if the VIP were.

use std::collections::BTreeSet;

use shared::block::HOLDERS_PORTS;
use shared::{Block, RouteId, Vip};

use super::super::parts::{
    Choice, Expr, Part, accept, address, choose, count, ct_mark, ct_original_saddr, daddr, decimal,
    dport, drop, echo_id, goes_to, goto, icmp_type, iifname, is, is_not, is_not_zero, l4proto, map,
    masked, more_than, number, port_range, quoted, random_below, saddr, set, snat_to,
    snat_to_ports, sport, state_in, together, word, write, write_bits,
};
use super::super::{BURST_SECONDS, Chain, Declared, DeclaredKind, Input, Rule};
use super::{View, plain, suffixed, via_holder, when};
use crate::direct::{self, DirectVip};
use crate::port_use::{Destination, TCP};
use crate::routing::Family;

const fn echo(family: Family) -> &'static str {
    suffixed(family, "icmp", "ipv6-icmp")
}

impl View<'_> {
    /// VIPs of which nodes have blocks.
    fn direct(&self) -> impl Iterator<Item = (Vip, RouteId, &DirectVip)> {
        self.vips().filter_map(|(vip, id)| Some((vip, id, self.input.direct.get(&vip)?)))
    }

    /// Of which this node has some.
    fn owned(&self) -> impl Iterator<Item = (Vip, RouteId, u32, &DirectVip)> {
        self.direct()
            .filter(|(.., direct)| !direct.own.is_empty())
            .filter_map(|(vip, id, direct)| Some((vip, id, self.input.mask.direct(id)?, direct)))
    }

    /// Whose new connections get ports here.
    fn open(&self) -> impl Iterator<Item = (Vip, RouteId, u32, &DirectVip)> {
        self.owned().filter(|(.., direct)| !direct.open.is_empty())
    }

    fn local(&self) -> Option<Part> {
        let names: Vec<_> = self.input.uplinks.iter().map(|name| quoted(name)).collect();
        (!names.is_empty()).then(|| is_not(iifname(), set(names)))
    }
}

/// The marks of connections with the direct path, each with the chain that gives its packets theirs:
/// that of a packet whose VIP is here, for both go the way that every other packet goes.
pub(super) fn bound(view: &View) -> Vec<(Expr, Expr)> {
    view.owned()
        .map(|(_, id, mark, _)| (number(mark), goes_to(&format!("mark_here_{id}"))))
        .collect()
}

/// Not to where nearly all ports of a VIP's blocks here are in use.
fn has_ports_left(view: &View) -> Option<Part> {
    let full: Vec<_> = view.owned().flat_map(|(.., direct)| &direct.full).collect();
    let protocol = |number| word(if number == TCP { "tcp" } else { "udp" });
    let element = |to: &&Destination| {
        let Destination { vip, protocol: number, addr, port } = **to;
        together([address(vip), protocol(number), address(addr), decimal(port.into())])
    };
    let key = [saddr(view.family), l4proto(), daddr(view.family), dport()];
    (!full.is_empty()).then(|| is_not(together(key), set(full.iter().map(element))))
}

/// Which new connections take the direct path: whatever says in its packets which block it is of, from
/// pods here.
pub(super) fn decision(view: &View) -> Vec<Rule> {
    let family = view.family;
    let entries = |prefix: &str| {
        let goes = |id| goes_to(&format!("{prefix}_{id}"));
        let entries: Vec<_> = view.open().map(|(vip, id, ..)| (address(vip), goes(id))).collect();
        (!entries.is_empty()).then(|| choose(saddr(family), map(entries)))
    };
    let ports = is(l4proto(), set(["tcp", "udp"].map(word)));
    let ping = is(icmp_type(family), word("echo-request"));
    let ports = match has_ports_left(view) {
        Some(left) => {
            when("a block of ours", [view.local(), Some(ports), Some(left), entries("burst")])
        }
        None => when("a block of ours", [view.local(), Some(ports), entries("burst")]),
    };
    let pings = when("a block of ours, echo", [view.local(), Some(ping), entries("direct")]);
    ports.into_iter().chain(pings).collect()
}

/// The chains of the VIPs of one family.
pub(super) fn chains(view: &View) -> Vec<(String, Chain)> {
    let mut chains = Vec::new();
    for (vip, id, direct) in view.direct() {
        chains.push((format!("holder_{id}"), plain(as_holder(view.family, vip))));
        let Some(mark) = view.input.mask.direct(id) else { continue };
        if !direct.open.is_empty() {
            chains.push((format!("burst_{id}"), burst(view.family, vip, id, direct)));
            chains.push((format!("direct_{id}"), deciding(view.input, vip, id, mark)));
            chains.extend(with_ports(view.family, vip, id, direct));
        }
    }
    chains
}

/// Of new connections to one destination (protocol, address, port) so many may come at once for each
/// block. One that finds no port is dropped, and its sender waits for a second before it tries again.
const AT_ONCE: u32 = Block::SIZE as u32 * 80 / 100;
/// And so many a second after that: even if all connections stay, there are ports until connections
/// were looked at the next time, and destinations of which none are left are no more chosen.
const A_SECOND: u32 = 10;
/// No more destinations at a time are looked at.
const MOST_DESTINATIONS: u32 = 1 << 14;

const _: () =
    assert!(AT_ONCE + 17 * A_SECOND < Block::SIZE as u32, "a look is due each 15 seconds");
const _: () = assert!(A_SECOND * BURST_SECONDS >= AT_ONCE, "what is forgotten may come at once");

/// Another set for another number of blocks, for the elements of a set keep their limits.
fn burst_set(id: RouteId, direct: &DirectVip) -> String {
    format!("bursts_{id}_{}", direct.open.len())
}

/// The sets of what new connections are for.
pub(super) fn bursts(view: &View) -> Vec<(String, Declared)> {
    let (kind, size) = (DeclaredKind::Bursts, MOST_DESTINATIONS);
    let declared = Declared { kind, family: view.family, size };
    view.open().map(|(_, id, _, direct)| (burst_set(id, direct), declared)).collect()
}

/// What is more than the ports can serve goes via the holder.
fn burst(family: Family, vip: Vip, id: RouteId, direct: &DirectVip) -> Chain {
    let blocks = u32::try_from(direct.open.len()).unwrap_or(u32::MAX);
    let key = together([l4proto(), daddr(family), dport()]);
    let (rate, at_once) = (A_SECOND * blocks, AT_ONCE * blocks);
    let more = more_than(&burst_set(id, direct), key, rate, at_once);
    plain(vec![
        Rule::new("more than there may be ports for", [more, goto(via_holder(family))]),
        Rule::new(&format!("VIP {vip}"), [goto(&format!("direct_{id}"))]),
    ])
}

fn deciding(input: &Input, vip: Vip, id: RouteId, mark: u32) -> Chain {
    let family = Family::of(vip.addr());
    plain(vec![
        Rule::new("the pod again", [write(saddr(family), ct_original_saddr(family))]),
        Rule::new(&format!("VIP {vip}"), [write_bits(&ct_mark(), input.mask.mask(), mark)]),
        Rule::new("every packet", [goto(&format!("mark_here_{id}"))]),
    ])
}

/// Where connections get their source, by their marks.
pub(super) fn translations(view: &View) -> Vec<(Expr, Expr)> {
    let mask = view.input.mask;
    let here =
        view.direct().map(|(_, id, _)| (number(mask.here(id)), goes_to(&format!("holder_{id}"))));
    let direct =
        view.open().map(|(_, id, mark, _)| (number(mark), goes_to(&format!("ports_{id}"))));
    here.chain(direct).collect()
}

/// Clear of all blocks; what has no ports cannot be taken for anybody else's.
fn as_holder(family: Family, vip: Vip) -> Vec<Rule> {
    let ports = snat_to_ports(family, &address(vip), &HOLDERS_PORTS, Choice::Own);
    vec![
        Rule::new("with ports of no node", [with_blocks(family), ports]),
        Rule::new("with the VIP", [snat_to(family, address(vip))]),
    ]
}

fn with_blocks(family: Family) -> Part {
    is(l4proto(), set(["tcp", "udp", echo(family)].map(word)))
}

/// Each block as often as any other.
fn with_ports(family: Family, vip: Vip, id: RouteId, direct: &DirectVip) -> Vec<(String, Chain)> {
    let ranges = direct.ranges();
    let why = format!("VIP {vip}, new connections, blocks {}", list(&direct.open));
    let translate = |ports| {
        let snat = snat_to_ports(family, &address(vip), ports, Choice::Random);
        plain(vec![Rule::new(&why, [with_blocks(family), snat])])
    };
    if let [ports] = ranges.as_slice() {
        return vec![(format!("ports_{id}"), translate(ports))];
    }
    let range_of = |block: &Block| {
        let first = *block.ports().start();
        ranges.iter().position(|ports| ports.contains(&first)).unwrap_or_default()
    };
    let name = |range: usize| format!("ports_{id}_{}", range + 1);
    let entries = (0..).zip(&direct.open);
    let entries: Vec<_> =
        entries.map(|(n, block)| (decimal(n), goes_to(&name(range_of(block))))).collect();
    let number = u32::try_from(direct.open.len()).unwrap_or(u32::MAX);
    let choice = Rule::new(&why, [choose(random_below(number), map(entries))]);
    let mut chains = vec![(format!("ports_{id}"), plain(vec![choice]))];
    chains.extend(ranges.iter().enumerate().map(|(n, ports)| (name(n), translate(ports))));
    chains
}

/// In the guard: only with the VIP, and a port or echo id of a block of this node.
pub(super) fn guarded(views: &[View], input: &Input) -> Vec<(String, Chain)> {
    let Some(_) = input.mask.direct_bit() else { return Vec::new() };
    let mut rules: Vec<_> = views.iter().map(super::no_egress).collect();
    rules.push(Rule::new("no block of ours", [count("guard"), drop()]));
    let mut chains = vec![("direct".to_owned(), plain(rules))];
    for view in views {
        for (vip, id, _, direct) in view.owned() {
            chains.push((format!("direct_{id}"), plain(own_ports(view, vip, direct))));
        }
    }
    chains
}

fn own_ports(view: &View, vip: Vip, direct: &DirectVip) -> Vec<Rule> {
    let family = view.family;
    let firsts = || set(direct.own.iter().map(|block| decimal(u32::from(*block.ports().start()))));
    let of_block = |field| is(masked(field, BLOCK_BITS), firsts());
    // Nearly all packets meet this: a range takes no look-up.
    let of_blocks = match direct::ranges(&direct.own).as_slice() {
        [ports] => is(sport(), port_range(ports)),
        _ => of_block(sport()),
    };
    let from_vip = || is(saddr(family), address(vip));
    let why = format!("VIP {vip}, blocks {}", list(&direct.own));
    let ping = is(icmp_type(family), word("echo-request"));
    let ports = is(l4proto(), set(["tcp", "udp"].map(word)));
    vec![
        Rule::new(&why, [from_vip(), ports, of_blocks, accept()]),
        Rule::new("echo", [from_vip(), ping, of_block(echo_id(family)), accept()]),
        // What is said of a packet that came for one of our ports; it quotes that packet.
        Rule::new(
            "errors",
            [from_vip(), state_in(&["related"]), super::is_error(family), accept()],
        ),
        super::no_egress(view),
        Rule::new("no port of ours", [count("guard"), drop()]),
    ]
}

/// In the guard's first chain, by mark: what takes the direct path with blocks of this node.
pub(super) fn guards<'a>(views: &'a [View<'a>]) -> impl Iterator<Item = (Expr, Expr)> {
    let owned = views.iter().flat_map(View::owned);
    owned.map(|(_, id, mark, _)| (number(mark), goes_to(&format!("direct_{id}"))))
}

/// In the guard's first chain: what takes the direct path with others.
pub(super) fn to_guard(input: &Input) -> Option<Rule> {
    let bit = input.mask.direct_bit()?;
    Some(Rule::new("decided", [is_not_zero(masked(ct_mark(), bit)), goto("direct")]))
}

/// Which bits of a port or echo id say which block it is in.
const BLOCK_BITS: u32 = 0xffff & !(Block::SIZE as u32 - 1);

fn list(blocks: &BTreeSet<Block>) -> String {
    blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
