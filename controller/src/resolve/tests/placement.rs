//! Where VIPs are to be, which nodes are gateways, and what is said of both.

use k8s_openapi::jiff::Timestamp;
use rstest::rstest;
use shared::config_map::DRAIN_LABEL;
use shared::crd::egress_mapper::Rebalance;
use shared::crd::{EgressMapperSpec, LabelSelector};

use super::builders::*;
use crate::model::{Node, Observed};

const MINUTE: i64 = 60;

/// Nodes a, b and c, ready and in sync; an Egress uses the VIP that `holder` holds.
fn three(holder: &str, now: i64) -> Observed {
    let mut observed = cluster()
        .vip(vip("v", VIP))
        .egress(egress("e", VIP, "pod", "p"))
        .mapper(mapper("m", EgressMapperSpec::default()));
    for (name, address) in [("a", "10.1.0.1"), ("b", "10.1.0.2"), ("c", "10.1.0.3")] {
        observed = observed.node(node(name, address));
        observed.reports.entry(name.to_owned()).or_default().synced = true;
    }
    observed.now = at(now);
    observed.holds(holder, VIP, 0)
}

fn changed(mut observed: Observed, name: &str, change: impl Fn(&mut Node)) -> Observed {
    for node in &mut observed.nodes {
        if node.name == name {
            change(std::sync::Arc::make_mut(node));
        }
    }
    observed
}

fn preferring(mut observed: Observed, node: &str) -> Observed {
    observed.vips.clear();
    observed.vip(vip("v", VIP).with(|vip| vip.spec.preferred_node = Some(node.to_owned())))
}

fn drained(node: &mut Node) {
    node.labels = labels(&[(DRAIN_LABEL, "true")]);
}

fn cordoned(since: i64) -> impl Fn(&mut Node) {
    move |node| {
        node.unschedulable = true;
        node.cordoned = Some(at(since));
    }
}

/// The names of all candidates in order of name, the first one, and "Reason: message".
fn of(observed: &Observed) -> (String, String, String) {
    let outcome = outcome(observed);
    let list = outcome.0.candidates[&VIP.parse().unwrap()].clone();
    let first = list.first().cloned().unwrap_or_default();
    let mut names = list;
    names.sort();
    let placed = &outcome.vip("v").placed;
    (names.concat(), first, format!("{:?}: {}", placed.reason, placed.message))
}

#[rstest]
#[case::held(three("b", 9), "abc", "b", "Placed: it stays on Node b")]
#[case::drained(
    changed(three("b", 9), "b", drained),
    "ac",
    "",
    "Moving: it moves from Node b to Node FIRST, because Node b is being drained"
)]
#[case::not_drained(
    changed(three("b", 9), "b", |node| node.labels = labels(&[(DRAIN_LABEL, "false")])),
    "abc", "b", "Placed: it stays on Node b"
)]
#[case::another_drained(
    changed(three("b", 9), "a", drained),
    "bc",
    "b",
    "Placed: it stays on Node b"
)]
#[case::cordoned(changed(three("b", 9), "b", cordoned(0)), "abc", "", "Placed: it stays on Node b")]
#[case::cordoned_for_long(changed(three("b", 5 * MINUTE), "b", cordoned(0)), "ac", "",
    "Moving: it moves from Node b to Node FIRST, because Node b is cordoned for long")]
#[case::cordoned_almost_for_long(
    changed(three("b", 5 * MINUTE - 1), "b", cordoned(0)),
    "abc", "", "Placed: it stays on Node b"
)]
#[case::cordoned_nobody_knows_since_when(
    changed(three("b", 99 * MINUTE), "b", |node| node.unschedulable = true),
    "abc", "", "Placed: it stays on Node b"
)]
#[case::not_ready(changed(three("b", 9), "b", |node| node.ready = false), "abc", "",
    "Placed: it stays on Node b")]
#[case::preferred_elsewhere(
    preferring(three("b", 9), "c"),
    "c",
    "c",
    "Moving: it moves from Node b to Node c, which is preferred"
)]
#[case::preferred_here(preferring(three("b", 9), "b"), "abc", "b", "Placed: it stays on Node b")]
#[case::preferred_nowhere(
    preferring(three("b", 9), "z"),
    "abc",
    "b",
    "PreferredNodeNotFound: preferred Node z does not exist, so any gateway may hold it; correct \
     preferredNode or leave it out"
)]
#[case::preferred_not_ready(
    preferring(changed(three("b", 9), "c", |node| node.ready = false), "c"),
    "abc", "b",
    "PreferredNodeUnusable: preferred Node c is not ready; the VIP moves there when that is over"
)]
#[case::preferred_drained(
    preferring(changed(three("b", 9), "c", drained), "c"),
    "ab",
    "b",
    "PreferredNodeUnusable: preferred Node c is being drained; the VIP moves there when that is over"
)]
#[case::preferred_out_of_sync(
    preferring(three("b", 9).with(|all| all.reports.get_mut("c").unwrap().synced = false), "c"),
    "abc", "c",
    "PreferredNodeUnusable: preferred Node c has an agent that is not in sync; the VIP moves there \
     when that is over"
)]
#[case::all_drained(
    changed(changed(changed(three("b", 9), "a", drained), "b", drained), "c", drained),
    "abc",
    "",
    "Placed: it stays on Node b"
)]
#[case::held_by_no_gateway(three("b", 9).with(|all| all.nodes.retain(|node| node.name != "b")), "ac", "",
    "Placed: Node FIRST is the first to take it")]
fn a_vip_stays_where_it_is_fine_and_moves_where_it_is_wished(
    #[case] observed: Observed,
    #[case] listed: &str,
    #[case] first: &str,
    #[case] placed: &str,
) {
    let (names, is_first, says) = of(&observed);
    assert_eq!(says, placed.replace("FIRST", &is_first));
    assert_eq!(names, listed);
    assert!(first.is_empty() || first == is_first, "{is_first}");
}

#[test]
fn a_node_that_is_no_longer_selected_lets_go() {
    let gateway_selector = Some(LabelSelector {
        match_labels: labels(&[("gateway", "yes")]),
        ..LabelSelector::default()
    });
    let mut observed = three("b", 9);
    observed.mappers.clear();
    let spec = EgressMapperSpec { gateway_selector, ..EgressMapperSpec::default() };
    observed = observed.mapper(mapper("m", spec));
    assert!(of(&observed).2.starts_with("NoGateway: "));
    observed = changed(observed, "a", |node| node.labels = labels(&[("gateway", "yes")]));
    let expected = "Moving: it moves from Node b to Node a, because Node b is no gateway";
    assert_eq!(of(&observed), ("a".to_owned(), "a".to_owned(), expected.to_owned()));
    let of = outcome(&observed);
    assert_eq!((of.mapper("m").gateways, of.mapper("m").ready_gateways), (1, 1));
}

#[test]
fn gateways_that_take_vips_are_counted() {
    let observed = changed(three("b", 9), "b", drained);
    let observed = observed.with(|all| all.reports.get_mut("c").unwrap().synced = false);
    let outcome = outcome(&observed);
    assert_eq!((outcome.mapper("m").gateways, outcome.mapper("m").ready_gateways), (3, 1));
}

#[rstest]
#[case::used(true, None, &[])]
#[case::not_used(false, None, &["Moving"; 2])]
#[case::asked_for(true, Some(Rebalance::Always), &["Moving"; 2])]
#[case::not_asked_for(true, Some(Rebalance::Never), &[])]
fn vips_are_spread_anew_when_nobody_uses_them_or_when_asked_to(
    #[case] used: bool,
    #[case] rebalance: Option<Rebalance>,
    #[case] expected: &[&str],
) {
    let mut observed = three("b", 9);
    observed.mappers.clear();
    let spec = EgressMapperSpec { rebalance, ..EgressMapperSpec::default() };
    observed = observed.mapper(mapper("m", spec));
    for n in 1..=2 {
        let ip = format!("192.168.122.{n}");
        observed = observed.vip(vip(&format!("v{n}"), &ip)).holds("b", &ip, 0);
        observed = observed.egress(egress(&format!("e{n}"), &ip, "pod", "p"));
    }
    if !used {
        observed.egresses.clear();
    }
    let outcome = outcome(&observed);
    let moving: Vec<_> = outcome
        .0
        .vips
        .values()
        .map(|vip| format!("{:?}", vip.placed.reason))
        .filter(|reason| reason != "Placed")
        .collect();
    assert_eq!(moving, expected);
}

fn later(observed: Observed, minutes: i64) -> Observed {
    let now: Timestamp = at(minutes * MINUTE);
    Observed { now, ..observed }
}

#[test]
fn several_holders_are_told_when_it_lasts_and_a_ready_node_is_believed_first() {
    let held = |observed: &Observed| {
        let outcome = outcome(observed);
        let held = &outcome.vip("v").held;
        let holder = outcome.vip("v").holder.clone().unwrap();
        (holder, format!("{:?}: {}", held.reason, held.message))
    };
    let observed = three("b", 9).holds("c", VIP, 5);
    let one = |node: &str| (node.to_owned(), format!("Held: Node {node} holds 192.168.122.222"));
    assert_eq!(held(&observed), one("c"));
    let lasting = later(observed.clone(), 3);
    let both = "SeveralHolders: Node c holds 192.168.122.222, and so does b: they do not hear one \
                another's VRRP adverts, or somebody has added the address by hand";
    assert_eq!(held(&lasting), ("c".to_owned(), both.to_owned()));
    let one_away = changed(lasting, "c", |node| node.ready = false);
    assert_eq!(held(&one_away), one("b"), "what a node that is away said last does not count");
}

#[test]
fn what_nodes_saw_of_other_machines_is_said_of_the_vip() {
    let mut observed = three("b", 9);
    assert!(outcome(&observed).vip("v").unique.holds());
    for (node, seen) in [("b", "00:11:22:33:44:55 answers for it"), ("a", "192.168.1.7 sends id 1")]
    {
        let report = observed.reports.get_mut(node).unwrap();
        report.conflicts.insert(VIP.parse().unwrap(), seen.to_owned());
    }
    let outcome = outcome(&observed);
    let unique = &outcome.vip("v").unique;
    assert_eq!(
        format!("{:?}: {}", unique.reason, unique.message),
        "Conflict: other machines use 192.168.122.222 or VRRP id 1: Node a: 192.168.1.7 sends id 1, \
         Node b: 00:11:22:33:44:55 answers for it"
    );
    assert!(!unique.holds());
}
