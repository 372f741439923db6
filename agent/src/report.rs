//! What `--dump-rules` says: the kernel's state, put together again by VIP, for a person or a
//! program.
//!
//! Pure: from what was seen to what is worth knowing. Nothing of it comes from mappings, so it is
//! the truth of the node even when the agent does not run.

mod blocks;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use serde::Serialize;
use shared::{PodIp, RouteId, Vip};

use crate::kernel_state::{Observed, SeenHook, SeenTable};
use crate::node_facts::NodeFacts;
use crate::pod_tables::PodTables;
use crate::routing::{Family, Ownership, RouteKind};
use crate::ruleset::{GUARD_COUNTERS, MAIN_COUNTERS, TableNames};
use crate::unsure::Unsure;

/// The whole of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The tables that there should be, and whether they are.
    pub tables: Vec<TableReport>,
    /// By VIP, ascending.
    pub vips: Vec<VipReport>,
    /// Pods whose external traffic is dropped because they have no VIP of the family.
    pub held: Vec<String>,
    /// What becomes of other pods of this node.
    pub unknown: UnknownReport,
    /// Packets dropped since the tables were made.
    pub dropped: Vec<CounterReport>,
    /// What is missing or strange; empty on a healthy node.
    pub notes: Vec<String>,
}

/// A table of ours.
#[derive(Debug, Serialize)]
pub struct TableReport {
    /// Its family.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// It exists.
    pub present: bool,
    /// How many chains it has.
    pub chains: usize,
}

/// What is there for a VIP.
#[derive(Debug, Serialize)]
pub struct VipReport {
    /// The address.
    pub vip: String,
    /// Its route id; `null` for an address that pods are mapped to and that is no VIP here.
    pub route_id: Option<u8>,
    /// Whether it is an address of this node.
    pub here: bool,
    /// The routing table that leads to its holder.
    pub table: Option<u32>,
    /// Policy rules, as `ip rule` prints them.
    pub rules: Vec<String>,
    /// Routes, as `ip route` prints them.
    pub routes: Vec<String>,
    /// Blocks of its ports that packets of this node may leave with, separated by commas; left out if
    /// there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_blocks: Option<String>,
    /// Those of them that new connections get; left out if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_blocks: Option<String>,
    /// To how many nodes what comes for their blocks is passed on; left out if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub passed_on_to: usize,
    /// Pods that leave with it.
    pub pods: Vec<String>,
}

/// Pods of this node that are not mapped.
#[derive(Debug, Serialize)]
pub struct UnknownReport {
    /// New connections to outside are dropped, but for those of known addresses.
    pub held: bool,
    /// For how much longer, in seconds; `null` if that does not end by itself.
    pub seconds: Option<f64>,
    /// Addresses that are known.
    pub known: Vec<String>,
}

impl UnknownReport {
    fn of(pods: &PodTables, now: Instant) -> Self {
        let seconds = pods.unsure.iter().filter_map(|unsure| match unsure.at(now) {
            Unsure::Until(end) => Some(end.saturating_duration_since(now).as_secs_f64()),
            Unsure::No | Unsure::Always => None,
        });
        Self {
            held: pods.unsure.iter().any(|unsure| unsure.at(now) != Unsure::No),
            seconds: seconds.reduce(f64::max),
            known: pods.known.iter().map(ToString::to_string).collect(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A counter of dropped packets.
#[derive(Debug, Serialize)]
pub struct CounterReport {
    /// The table it is in.
    pub table: String,
    /// Its name there.
    pub name: String,
    /// What it counts.
    pub what: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Settings of the kernel that decide whether traffic can flow at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `net.ipv4.ip_forward`.
    pub forwards_v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwards_v6: bool,
    /// `net.netfilter.nf_conntrack_tcp_loose`; `None` when connection tracking is not loaded.
    pub tcp_loose: Option<bool>,
}

/// Puts together what was seen.
pub fn report(
    observed: &Observed,
    facts: &NodeFacts,
    switches: &Switches,
    names: &TableNames,
    ownership: &Ownership,
    now: Instant,
) -> Report {
    let ids = route_ids(observed, ownership);
    let mut pods: BTreeMap<Vip, Vec<String>> = BTreeMap::new();
    let mut held = Vec::new();
    for (pod, vip) in &observed.pods.vips {
        match vip {
            Some(vip) => pods.entry(*vip).or_default().push(pod.to_string()),
            None => held.push(pod.to_string()),
        }
    }
    let every_vip: BTreeSet<Vip> = ids.keys().chain(pods.keys()).copied().collect();
    let vips: Vec<_> = every_vip
        .into_iter()
        .map(|vip| {
            let id = ids.get(&vip).copied();
            let table = id.map(|id| ownership.table(id));
            let of_table = |wanted: u32| Some(wanted) == table;
            let family = Family::of(vip.addr());
            VipReport {
                vip: vip.to_string(),
                route_id: id.map(RouteId::number),
                here: facts.holds(vip),
                table,
                rules: observed
                    .routing
                    .rules
                    .iter()
                    .filter(|rule| rule.table().is_some_and(of_table) && rule.family == family)
                    .map(ToString::to_string)
                    .collect(),
                routes: observed
                    .routing
                    .routes
                    .iter()
                    .filter(|route| of_table(route.table) && route.family == family)
                    .map(ToString::to_string)
                    .collect(),
                own_blocks: id.and_then(|id| blocks::own(observed, id)),
                open_blocks: id.and_then(|id| blocks::open(observed, id)),
                passed_on_to: id.map_or(0, |id| blocks::passed_on_to(observed, id)),
                pods: pods.remove(&vip).unwrap_or_default(),
            }
        })
        .collect();
    Report {
        tables: [(&names.main, &observed.main), (&names.guard, &observed.guard)]
            .map(|(name, seen)| table_report("inet", name, seen.as_ref()))
            .into_iter()
            // Not every node needs one.
            .chain(
                observed
                    .ingress
                    .as_ref()
                    .map(|seen| table_report("netdev", names.ingress(), Some(seen))),
            )
            .collect(),
        notes: [notes(observed, &vips, switches, names), of_no_vip(observed, &ids, ownership)]
            .concat(),
        vips,
        held,
        unknown: UnknownReport::of(&observed.pods, now),
        dropped: counters(&names.main, observed.main.as_ref(), &MAIN_COUNTERS)
            .chain(counters(&names.guard, observed.guard.as_ref(), &GUARD_COUNTERS))
            .collect(),
    }
}

fn table_report(family: &'static str, name: &str, seen: Option<&SeenTable>) -> TableReport {
    TableReport {
        family,
        name: name.to_owned(),
        present: seen.is_some(),
        chains: seen.map_or(0, |table| table.chains.len()),
    }
}

/// Which VIP has which route id: chains are called by the id, and their rules name the VIP. While
/// there are none, routes to holders say both.
fn route_ids(observed: &Observed, ownership: &Ownership) -> BTreeMap<Vip, RouteId> {
    let Some(main) = &observed.main else {
        let id_of = |table| RouteId::all().find(|id| ownership.table(*id) == table);
        let holders = observed.routing.routes.iter().filter_map(|route| match &route.kind {
            RouteKind::ViaHolder { vip, .. } => Some((*vip, id_of(route.table)?)),
            RouteKind::Unreachable => None,
        });
        return holders.collect();
    };
    main.chains
        .iter()
        .filter_map(|(name, chain)| {
            let id: RouteId = name.strip_prefix("mark_here_")?.parse().ok()?;
            let comment = chain.rules.first()?.comment.as_deref()?;
            let vip = comment.strip_prefix("VIP ")?.split_whitespace().next()?;
            Some((vip.parse().ok()?, id))
        })
        .collect()
}

fn counters(
    name: &str,
    table: Option<&SeenTable>,
    known: &'static [(&'static str, &'static str)],
) -> impl Iterator<Item = CounterReport> {
    known.iter().filter_map(move |(counter, what)| {
        let count = table?.counters.get(*counter)?;
        Some(CounterReport {
            table: name.to_owned(),
            name: (*counter).to_owned(),
            what,
            packets: count.packets,
            bytes: count.bytes,
        })
    })
}

fn notes(
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
fn of_no_vip(
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
