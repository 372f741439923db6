//! The chains of both tables, rule by rule. Order within a chain is part of the meaning. Those of
//! the main table are here, the guard's in a room of their own.

mod direct;
mod guard;
mod view;

use std::borrow::Cow;
use std::collections::BTreeMap;

use nftables::expr::FibFlag;
use shared::{RouteId, Vip};

use super::parts::{
    Part, accept, address, choose, count, ct_direction, ct_mark, ct_original_saddr, daddr,
    declared, drop, fib_type, goes_to, goto, icmp_type, is, is_not_zero, is_zero, looked_up, map,
    masked, meta_mark, nfproto, number, saddr, set, snat_to, state_in, word, write, write_bits,
};
use super::{Chain, Declared, Hook, HookKind, HookPoint, Input, Rule, pod_map};
use crate::routing::Family;

pub(super) use guard::guard;
use view::View;

/// After connection tracking (-200), before anybody's DNAT (-100).
const AFTER_CONNTRACK: i32 = -150;
/// After DNAT, so that a Service's destination is the one that is really meant.
const AFTER_DNAT: i32 = -99;
/// Before `srcnat` (100), where CNIs masquerade: the first to translate a connection wins.
const BEFORE_MASQUERADE: i32 = 90;
/// After every translation: what is seen here is what leaves.
const AFTER_SNAT: i32 = 150;

fn base(kind: HookKind, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { hook: Some(Hook { kind, point, device: None, priority }), rules }
}

fn plain(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

const fn suffixed(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn by_family(v4: &'static str, v6: &'static str) -> Part {
    choose(nfproto(), map([(word("ipv4"), goes_to(v4)), (word("ipv6"), goes_to(v6))]))
}

/// A rule that stands only when every optional part of it has something to say.
fn when<const N: usize>(why: &str, parts: [Option<Part>; N]) -> Option<Rule> {
    let parts: Option<Vec<Part>> = parts.into_iter().collect();
    parts.map(|parts| Rule::new(why, parts))
}

/// The sets that rules of the main table fill.
pub(super) fn bursts(input: &Input) -> impl Iterator<Item = (Cow<'static, str>, Declared)> {
    let views = Family::ALL.map(|family| View { input, family });
    let sets = views.into_iter().flat_map(|view| direct::bursts(&view));
    sets.map(|(name, declared)| (name.into(), declared))
}

pub(super) fn main(input: &Input) -> BTreeMap<String, Chain> {
    let views = Family::ALL.map(|family| View { input, family });
    let mut chains = BTreeMap::new();
    let closed = views.iter().flat_map(vip_closed).collect();
    chains.insert(
        "vip_in".into(),
        base(HookKind::Filter, HookPoint::Prerouting, AFTER_CONNTRACK, closed),
    );
    chains.insert(
        "classify".into(),
        base(HookKind::Filter, HookPoint::Prerouting, AFTER_DNAT, classify(input, &views)),
    );
    // Asked of the connection: a packet's mark may be changed by others on its way.
    let mut translate =
        vec![Rule::new("not ours", [is_zero(masked(ct_mark(), input.mask.mask())), accept()])];
    translate.push(Rule::new("by family", [by_family("translate4", "translate6")]));
    chains.insert(
        "translate".into(),
        base(HookKind::Nat, HookPoint::Postrouting, BEFORE_MASQUERADE, translate),
    );
    chains.insert(
        "report".into(),
        base(
            HookKind::Route,
            HookPoint::Output,
            AFTER_CONNTRACK,
            views.iter().filter_map(report).collect(),
        ),
    );
    for view in &views {
        let family = view.family;
        let mut add = |v4, v6, rules| {
            chains.insert(suffixed(family, v4, v6).to_owned(), plain(rules));
        };
        add("established4", "established6", established(view));
        add("new4", "new6", new(view));
        add("egress4", "egress6", egress(view));
        if !direct::decision(view).is_empty() {
            add("via_holder4", "via_holder6", by_holder(view));
        }
        add("translate4", "translate6", translation(view));
    }
    for (vip, id) in &input.vips {
        chains.extend(decisions(input, *vip, *id));
    }
    chains.extend(views.iter().flat_map(direct::chains));
    chains
}

/// The holder's own ports are closed on the VIP, and strays of a connection that has just moved
/// here are swallowed: an RST or an ICMP error from this node would end it.
fn vip_closed(view: &View) -> Vec<Rule> {
    let to_vip = || view.is_vip(daddr(view.family));
    let mut rules = Vec::new();
    if view.family == Family::V6 {
        // Neighbour discovery is untracked, and a neighbour that checks an entry asks by unicast.
        let discovery = ["nd-neighbor-solicit", "nd-neighbor-advert"].map(word);
        rules.extend(when(
            "neighbours may ask",
            [to_vip(), Some(is(icmp_type(view.family), set(discovery))), Some(accept())],
        ));
    }
    rules.extend(when(
        "ports of a VIP are closed",
        [
            to_vip(),
            Some(state_in(&["new", "invalid", "untracked"])),
            Some(count("vip_closed")),
            Some(drop()),
        ],
    ));
    rules
}

fn classify(input: &Input, views: &[View]) -> Vec<Rule> {
    let mut rules =
        vec![Rule::new("answers of pods", [is(ct_direction(), word("reply")), accept()])];
    let mut bound: Vec<_> = input
        .vips
        .values()
        .flat_map(|id| {
            [
                (number(input.mask.here(*id)), goes_to(&format!("mark_here_{id}"))),
                (number(input.mask.away(*id)), goes_to(&format!("mark_away_{id}"))),
            ]
        })
        .collect();
    bound.extend(views.iter().flat_map(direct::bound));
    if !bound.is_empty() {
        let decision = masked(ct_mark(), input.mask.mask());
        rules.push(Rule::new("as the connection began", [choose(decision, map(bound))]));
    }
    rules.push(Rule::new(
        "began before the mapping",
        [state_in(&["established", "related"]), by_family("established4", "established6")],
    ));
    rules.push(Rule::new("by family", [by_family("new4", "new6")]));
    rules
}

/// Connections without a decision: from before the pod was mapped (they end as they began), of
/// unmapped pods, of the node; unless another node sent them here, or their VIP is gone.
fn established(view: &View) -> Vec<Rule> {
    let outside = || Some(view.outside(daddr(view.family)));
    let marked = is_not_zero(masked(ct_mark(), view.input.mask.mask()));
    [
        when(
            "sent here for a VIP",
            [
                view.over_uplink(),
                view.pods_as_source(),
                outside(),
                Some(count("uplink")),
                Some(drop()),
            ],
        ),
        when(
            "VIP is gone",
            [Some(marked), view.pods_as_source(), outside(), Some(count("stale")), Some(drop())],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn new(view: &View) -> Vec<Rule> {
    let family = view.family;
    let mut rules = vec![
        Rule::new("inside the cluster", [view.inside(daddr(family)), accept()]),
        Rule::new(
            "to the node itself",
            [
                is(fib_type(FibFlag::Daddr), set(["local", "broadcast", "multicast"].map(word))),
                accept(),
            ],
        ),
        // The VIP goes into the packet, to ask the kernel whether that address is on this node.
        Rule::new(
            "mapped pods",
            [
                write(saddr(family), looked_up(saddr(family), declared(pod_map(family)))),
                goto(suffixed(family, "egress4", "egress6")),
            ],
        ),
    ];
    rules.extend(when(
        "sent here, pod unknown here",
        [view.over_uplink(), view.pods_as_source(), Some(count("uplink")), Some(drop())],
    ));
    rules.extend(view.unknown_pods());
    rules
}

/// From here on the source is the VIP, until `here_N` or `away_N` puts the pod's back.
fn egress(view: &View) -> Vec<Rule> {
    let untracked = state_in(&["invalid", "untracked"]);
    let mut rules =
        vec![Rule::new("no translation without tracking", [untracked, count("invalid"), drop()])];
    let direct = direct::decision(view);
    if direct.is_empty() {
        rules.extend(by_holder(view));
    } else {
        rules.extend(direct);
        rules.push(Rule::new("any other way", [goto(via_holder(view.family))]));
    }
    rules
}

/// The chain of what takes the holder's path, where there is the other one, too.
const fn via_holder(family: Family) -> &'static str {
    suffixed(family, "via_holder4", "via_holder6")
}

fn by_holder(view: &View) -> Vec<Rule> {
    let otherwise = [
        when(
            "VIP is here",
            [Some(is(fib_type(FibFlag::Saddr), word("local"))), view.by_vip("here", |_| true)],
        ),
        when("VIP is not here", [view.over_uplink(), Some(count("not_holder")), Some(drop())]),
        when("VIP is away", [view.by_vip("away", |vip| view.input.reachable.contains(vip))]),
        when("no usable VIP", [Some(count("held")), Some(drop())]),
    ];
    otherwise.into_iter().flatten().collect()
}

/// A translation to the packet's own address takes the connection's slot, so that no masquerade
/// after us changes the source on its way to the holder; `accept` would not do that.
fn translation(view: &View) -> Vec<Rule> {
    let Input { mask, .. } = view.input;
    let family = view.family;
    let mut rules = vec![no_egress(view)];
    let decision = || masked(ct_mark(), mask.mask());
    let away: Vec<_> = view.vips().map(|(_, id)| number(mask.away(id))).collect();
    if !away.is_empty() {
        let parts = [is(decision(), set(away)), snat_to(family, saddr(family))];
        rules.push(Rule::new("the holder translates", parts));
    }
    let by_port = direct::translations(view);
    if !by_port.is_empty() {
        rules.push(Rule::new("by ports", [choose(decision(), map(by_port))]));
    }
    let whole = view.vips().filter(|(vip, _)| !view.input.direct.contains_key(vip));
    let vips: Vec<_> = whole.map(|(vip, id)| (number(mask.here(id)), address(vip))).collect();
    if !vips.is_empty() {
        let vip = looked_up(decision(), map(vips));
        rules.push(Rule::new("with the VIP", [snat_to(family, vip)]));
    }
    rules
}

/// A connection that the outside opens to a pod because of one that the pod has opened (active
/// FTP) inherits its mark.
fn no_egress(view: &View) -> Rule {
    Rule::new("no egress", [view.inside(daddr(view.family)), accept()])
}

/// What this node reports of a server's packets to a mapped pod (too large, a loop) has to tell of
/// the VIP, as that is all that the server knows: it goes by the holder, which translates it. Without
/// this, a server would never learn that the pods' network has a smaller MTU.
fn report(view: &View) -> Option<Rule> {
    let family = view.family;
    let mask = view.input.mask;
    let ways: Vec<_> = view
        .vips()
        .map(|(_, id)| (number(mask.away(id)), goes_to(&format!("mark_away_{id}"))))
        .collect();
    (!ways.is_empty()).then(|| {
        Rule::new(
            "by the holder",
            [
                is_error(family),
                is(ct_direction(), word("original")),
                choose(masked(ct_mark(), mask.mask()), map(ways)),
            ],
        )
    })
}

/// An ICMP message that quotes a packet.
fn is_error(family: Family) -> Part {
    let errors = match family {
        Family::V4 => &["destination-unreachable", "time-exceeded", "parameter-problem"][..],
        Family::V6 => {
            &["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"]
        }
    };
    is(icmp_type(family), set(errors.iter().copied().map(word)))
}

/// The four chains of a VIP: a decision is bound to the connection when it is made, and written
/// into each of its packets.
fn decisions(input: &Input, vip: Vip, id: RouteId) -> [(String, Chain); 4] {
    let family = Family::of(vip.addr());
    let mask = input.mask.mask();
    let marking = |mark| {
        let bits = input.mask.of_packets();
        plain(vec![Rule::new(&format!("VIP {vip}"), [write_bits(&meta_mark(), bits, mark)])])
    };
    let deciding = |mark, next: &str| {
        plain(vec![
            Rule::new("the pod again", [write(saddr(family), ct_original_saddr(family))]),
            Rule::new(&format!("VIP {vip}"), [write_bits(&ct_mark(), mask, mark)]),
            Rule::new("every packet", [goto(next)]),
        ])
    };
    let (here, away) = (input.mask.here(id), input.mask.away(id));
    [
        (format!("here_{id}"), deciding(here, &format!("mark_here_{id}"))),
        (format!("away_{id}"), deciding(away, &format!("mark_away_{id}"))),
        (format!("mark_here_{id}"), marking(here)),
        (format!("mark_away_{id}"), marking(away)),
    ]
}
