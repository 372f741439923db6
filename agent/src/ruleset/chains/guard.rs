//! The guard table's chains: what would leave with another address is dropped.

use std::collections::BTreeMap;

use nftables::expr::FibFlag;

use super::super::parts::{
    accept, choose, count, ct_direction, ct_mark, ct_original_saddr, daddr, declared, drop,
    fib_type, goes_to, goto, icmp_type, is, is_not_zero, is_zero, map, masked, nexthop, number,
    saddr, state_in, status_bit, tcp_syn_and_ack, word,
};
use super::super::{Chain, HookKind, HookPoint, Input, Rule, leaving_set, mapped_set};
use super::{AFTER_SNAT, View, base, by_family, direct, no_egress, plain, suffixed, when};
use crate::routing::Family;

pub(in crate::ruleset) fn guard(input: &Input) -> BTreeMap<String, Chain> {
    let views = Family::ALL.map(|family| View { input, family });
    let mask = input.mask.mask();
    // The decision is the connection's. A packet's own mark may be anybody's: of a program on the
    // node, of a stranger's rule, or of nobody (the kernel keeps a length there while it writes
    // multicast reports).
    let mut rules =
        vec![Rule::new("answers of pods", [is(ct_direction(), word("reply")), accept()])];
    let (here, away) = (|id| number(input.mask.here(id)), |id| number(input.mask.away(id)));
    let vips = input.vips.values().flat_map(|id| [here(*id), away(*id)]);
    let known: Vec<_> =
        vips.map(|mark| (mark, goes_to("decided"))).chain(direct::guards(&views)).collect();
    if !known.is_empty() {
        rules.push(Rule::new("decided", [choose(masked(ct_mark(), mask), map(known))]));
    }
    // Of a VIP that this table does not know any more, what is on its way to the holder still has
    // the pod's own address.
    let away = is_not_zero(masked(ct_mark(), input.mask.away_bit()));
    rules.push(Rule::new("decided", [away, goto("decided")]));
    rules.extend(direct::to_guard(input));
    rules.extend([
        Rule::new("began before the mapping", [state_in(&["established", "related"]), accept()]),
        Rule::new("by family", [by_family("undecided4", "undecided6")]),
    ]);
    let mut decided: Vec<_> = views.iter().flat_map(right_way).collect();
    decided.extend(views.iter().map(no_egress));
    decided.push(Rule::new("any other address", [count("guard"), drop()]));
    let mut chains = BTreeMap::from([
        ("guard".to_owned(), base(HookKind::Filter, HookPoint::Postrouting, AFTER_SNAT, rules)),
        ("decided".to_owned(), plain(decided)),
    ]);
    chains.extend(direct::guarded(&views, input));
    for view in &views {
        let name = suffixed(view.family, "undecided4", "undecided6");
        chains.insert(name.to_owned(), plain(undecided(view)));
        let name = suffixed(view.family, "to_pod4", "to_pod6");
        chains.insert(name.to_owned(), plain(to_pod(view)));
    }
    chains
}

/// Either it leaves with a VIP that is on this node, or it is on its way to the holder untouched.
fn right_way(view: &View) -> Vec<Rule> {
    let family = view.family;
    [
        when(
            "leaves with a VIP",
            [
                view.is_vip(saddr(family)),
                Some(is(fib_type(FibFlag::Saddr), word("local"))),
                Some(accept()),
            ],
        ),
        when(
            "to the holder",
            [Some(is_zero(status_bit("snat"))), view.is_vip(nexthop(family)), Some(accept())],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// New connections that the main table let pass. A packet dropped here does not become a
/// connection, so none is made while the main table is missing.
fn undecided(view: &View) -> Vec<Rule> {
    let family = view.family;
    let mapped = || declared(mapped_set(family));
    let counted = || count("undecided");
    let to_pod = suffixed(family, "to_pod4", "to_pod6");
    vec![
        Rule::new(
            "a mapped pod's",
            [
                is(ct_original_saddr(family), mapped()),
                view.outside(daddr(family)),
                counted(),
                drop(),
            ],
        ),
        Rule::new(
            "a mapped pod's, not tracked",
            [
                state_in(&["invalid", "untracked"]),
                is(saddr(family), mapped()),
                view.outside(daddr(family)),
                counted(),
                drop(),
            ],
        ),
        // Neighbour discovery is never tracked. What is not begins no connection.
        Rule::new("begins nothing", [state_in(&["invalid", "untracked"]), accept()]),
        Rule::new("to a mapped pod", [is(daddr(family), mapped()), goto(to_pod)]),
        Rule::new(
            "to one that was",
            [is(daddr(family), declared(leaving_set(family))), goto(to_pod)],
        ),
    ]
}

/// From outside to a pod that is mapped or was until a moment ago: only what begins a connection
/// may. Anything else is an answer whose connection was forgotten; were it tracked as a new one,
/// the pod's packets would be its answers, and leave as they are.
fn to_pod(view: &View) -> Vec<Rule> {
    let family = view.family;
    vec![
        Rule::new("from inside", [view.inside(ct_original_saddr(family)), accept()]),
        Rule::new("through a Service", [is_not_zero(status_bit("dnat")), accept()]),
        Rule::new("opens a connection", [is(tcp_syn_and_ack(), word("syn")), accept()]),
        Rule::new("pings", [is(icmp_type(family), word("echo-request")), accept()]),
        Rule::new("an answer to nobody", [count("unasked"), drop()]),
    ]
}
