//! What `--dump-rules` says: the kernel's state, put together again by VIP, for a person or a
//! program.
//!
//! Pure: from what was seen to what is worth knowing. Nothing of it comes from mappings, so it is
//! the truth of the node even when the agent does not run.

mod blocks;
mod notes;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Serialize;
use shared::{RouteId, Vip};

use crate::kernel_state::{Observed, SeenTable};
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
        notes: [
            notes::notes(observed, &vips, switches, names),
            notes::of_no_vip(observed, &ids, ownership),
        ]
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
