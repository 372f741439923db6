//! What is missing or strange, in sentences for an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::{PodIp, RouteId, Vip};

use super::{Switches, VipReport};
use crate::kernel_state::{Observed, SeenHook, SeenTable};
use crate::routing::{Family, Ownership};
use crate::ruleset::TableNames;

/// By what there should be.
pub(super) fn notes(
    observed: &Observed,
    vips: &[VipReport],
    switches: &Switches,
    names: &TableNames,
) -> Vec<String> {
    let mut notes = Vec::new();
    if observed.main.is_none() && observed.guard.is_none() {
        notes.push("neither table exists: no agent has run here, or everything was removed".into());
    } else {
        for (name, seen) in [(&names.main, &observed.main), (&names.guard, &observed.guard)] {
            match seen {
                None => {
                    notes.push(format!("table {name} is missing; a running agent puts it back"));
                }
                Some(table) => notes.extend(of_table(name, table)),
            }
        }
    }
    notes.extend(observed.ingress.iter().flat_map(|table| of_table(names.ingress(), table)));
    for vip in vips {
        notes.extend(of_vip(vip));
    }
    if observed.main.is_some() && observed.guard.is_some() {
        notes.extend(one_sided(observed));
    }
    for stray in &observed.routing.strays {
        notes.push(format!("{stray}: carries our protocol number, but is none of our forms"));
    }
    for foreign in observed.routing.foreign.iter().filter(|foreign| foreign.overrides_ours) {
        notes.push(format!("{foreign}: somebody else's, and it is asked before ours"));
    }
    let translates_v4 = vips.iter().any(|vip| !vip.vip.contains(':'));
    for interface in observed.strict.iter().filter(|_| translates_v4) {
        notes.push(format!(
            "net.ipv4.conf.{interface}.rp_filter is strict: packets of other nodes' pods, or \
             answers to pods here, may be dropped; set it to 2"
        ));
    }
    if !switches.forwards_v4 {
        notes.push("net.ipv4.ip_forward is 0: nothing of pods is forwarded".into());
    }
    if !switches.forwards_v6 && vips.iter().any(|vip| vip.vip.contains(':')) {
        notes.push("net.ipv6.conf.all.forwarding is 0: no IPv6 of pods is forwarded".into());
    }
    if switches.tcp_loose == Some(false) {
        notes.push(
            "net.netfilter.nf_conntrack_tcp_loose is 0: TCP sessions end when a VIP moves".into(),
        );
    }
    notes
}

fn of_table(name: &str, table: &SeenTable) -> Vec<String> {
    let mut notes = Vec::new();
    if table.dormant {
        notes.push(format!("table {name} is dormant: none of its chains is asked"));
    }
    for (chain, seen) in &table.chains {
        let foreign = seen.rules.iter().filter(|rule| !is_ours(rule.comment.as_deref())).count();
        if foreign > 0 {
            notes.push(format!("chain {chain} of table {name}: {foreign} of its rules not ours"));
        }
        if seen.hook == SeenHook::Other {
            notes.push(format!("chain {chain} of table {name}: not hooked in where ours are"));
        }
    }
    notes
}

/// Comments of ours end with a digest: `why #0123abcd`.
fn is_ours(comment: Option<&str>) -> bool {
    comment
        .and_then(|comment| comment.rsplit_once('#'))
        .is_some_and(|(_, digest)| digest.len() == 8 && u32::from_str_radix(digest, 16).is_ok())
}

fn of_vip(vip: &VipReport) -> Vec<String> {
    let VipReport { vip: name, route_id, here, rules, routes, pods, .. } = vip;
    let Some(id) = route_id else {
        return vec![format!(
            "VIP {name} has no route id here, so external traffic is dropped for {}",
            some(pods.iter())
        )];
    };
    let mut notes = Vec::new();
    if rules.is_empty() {
        notes.push(format!(
            "VIP {name} (route id {id}): no policy rule leads to its table; a running agent adds it"
        ));
    }
    if !routes.iter().any(|route| route.starts_with("unreachable")) {
        notes.push(format!(
            "VIP {name} (route id {id}): its table has no unreachable backstop; a running agent \
             adds it"
        ));
    }
    if !here && !routes.iter().any(|route| !route.starts_with("unreachable")) {
        notes.push(format!("VIP {name} (route id {id}): no way to its holder; its pods are held"));
    }
    notes
}

/// Rules and routes that are ours by number, and that no VIP has.
pub(super) fn of_no_vip(
    observed: &Observed,
    ids: &BTreeMap<Vip, RouteId>,
    ownership: &Ownership,
) -> Vec<String> {
    if observed.main.is_none() {
        // Which VIPs there are is not known.
        return Vec::new();
    }
    let of_vips: BTreeSet<_> =
        ids.iter().map(|(vip, id)| ownership.rule(Family::of(vip.addr()), *id)).collect();
    let tables: BTreeSet<_> =
        of_vips.iter().filter_map(|rule| Some((rule.family, rule.table()?))).collect();
    let shortcuts = Family::ALL.map(|family| {
        let of_family = ids.iter().filter(|(vip, _)| Family::of(vip.addr()) == family);
        ownership.shortcuts(family, of_family.map(|(_, id)| *id))
    });
    let of_vips: BTreeSet<_> = of_vips.into_iter().chain(shortcuts.into_iter().flatten()).collect();
    let rules = observed.routing.rules.difference(&of_vips).map(ToString::to_string);
    let routes = observed
        .routing
        .routes
        .iter()
        .filter(|route| !tables.contains(&(route.family, route.table)))
        .map(ToString::to_string);
    rules
        .chain(routes)
        .map(|text| format!("{text}: carries our protocol number, but no VIP here has it"))
        .collect()
}

/// Pods that are in one table and not in the other, and elements that are no pods.
fn one_sided(observed: &Observed) -> Vec<String> {
    let pods = &observed.pods;
    let unguarded = |pod: &&PodIp| !pods.guarded.contains(*pod);
    let unmapped = |pod: &&PodIp| !pods.vips.contains_key(*pod);
    let mut notes = Vec::new();
    if pods.vips.keys().any(|pod| unguarded(&pod)) {
        let unguarded = some(pods.vips.keys().filter(unguarded));
        notes.push(format!("mapped, but not in the guard table: {unguarded}"));
    }
    if pods.guarded.iter().any(|pod| unmapped(&pod)) {
        let unmapped = some(pods.guarded.iter().filter(unmapped));
        notes.push(format!("in the guard table, but not mapped: {unmapped}"));
    }
    if !pods.strays.is_empty() {
        let strays = pods.strays.len();
        notes.push(format!("elements in the maps of pods that agents do not make: {strays}"));
    }
    notes
}

/// The first few of them, and how many there are beyond.
fn some<T: fmt::Display>(mut pods: impl Iterator<Item = T>) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = pods.by_ref().take(SHOWN).map(|pod| pod.to_string()).collect();
    match pods.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
