//! What strangers and accidents do to a kernel, short of breaking both tables at once.

use proptest::prelude::*;
use proptest::sample::Index;
use shared::Vip;

use super::kernel::Kernel;
use super::table::{ModelRule, ModelTable};
use super::world::every_pod;
use crate::kernel_state::SeenHook;
use crate::pod_tables::{PodSet, PodStray};
use crate::routing::{ObjectKind, Stray};

/// One thing that happens to a table.
#[derive(Clone, Debug)]
pub(super) enum ToTable {
    Delete,
    Sleep,
    Empty(Index),
    EmptyAll,
    Accept(Index),
    /// In place of a rule of ours, with its comment: only its digest gives it away.
    Forge(Index),
    Append(Index),
    Hook(Index),
    AddChain,
    Undeclare,
    Declare,
    ForgetPod(Index),
    ChangePod(Index, Vip),
    AddPod(Index, Vip),
    FlushPods,
    AddStray,
}

/// One thing that happens to routing.
#[derive(Clone, Debug)]
pub(super) enum ToRouting {
    DeleteRule(Index),
    DeleteRules,
    DeleteRoute(Index),
    DeleteRoutes,
    DeleteWays,
    AddStray,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    /// To the guard rather than to the main table.
    to_guard: bool,
    tables: Vec<ToTable>,
    ingress: Vec<ToTable>,
    routing: Vec<ToRouting>,
    /// The agent has restarted: it has forgotten what it knew.
    restart: bool,
    /// The agent has been replaced by one whose tables are hooked in elsewhere: both work as they
    /// are, and both have to be made anew.
    upgrade: bool,
}

fn to_table() -> impl Strategy<Value = ToTable> {
    let vip = || Just("192.168.122.222".parse().unwrap());
    prop_oneof![
        Just(ToTable::Delete),
        Just(ToTable::Sleep),
        any::<Index>().prop_map(ToTable::Empty),
        Just(ToTable::EmptyAll),
        any::<Index>().prop_map(ToTable::Accept),
        any::<Index>().prop_map(ToTable::Forge),
        any::<Index>().prop_map(ToTable::Append),
        any::<Index>().prop_map(ToTable::Hook),
        Just(ToTable::AddChain),
        Just(ToTable::Undeclare),
        Just(ToTable::Declare),
        any::<Index>().prop_map(ToTable::ForgetPod),
        (any::<Index>(), vip()).prop_map(|(at, vip)| ToTable::ChangePod(at, vip)),
        (any::<Index>(), vip()).prop_map(|(at, vip)| ToTable::AddPod(at, vip)),
        Just(ToTable::FlushPods),
        Just(ToTable::AddStray),
    ]
}

fn to_routing() -> impl Strategy<Value = ToRouting> {
    prop_oneof![
        any::<Index>().prop_map(ToRouting::DeleteRule),
        Just(ToRouting::DeleteRules),
        any::<Index>().prop_map(ToRouting::DeleteRoute),
        Just(ToRouting::DeleteRoutes),
        Just(ToRouting::DeleteWays),
        Just(ToRouting::AddStray),
    ]
}

pub(super) fn damages() -> impl Strategy<Value = Damage> {
    let tables = proptest::collection::vec(to_table(), 0..3);
    let ingress = proptest::collection::vec(to_table(), 0..2);
    let routing = proptest::collection::vec(to_routing(), 0..2);
    let restart = proptest::sample::select(
        &[(false, false), (false, false), (true, false), (true, true)][..],
    );
    (any::<bool>(), tables, ingress, routing, restart).prop_map(
        |(to_guard, tables, ingress, routing, (restart, upgrade))| Damage {
            to_guard,
            tables,
            ingress,
            routing,
            restart,
            upgrade,
        },
    )
}

fn remove_nth<T: Ord + Clone>(set: &mut std::collections::BTreeSet<T>, at: Index) {
    if !set.is_empty() {
        let item = at.get(&set.iter().cloned().collect::<Vec<_>>()).clone();
        set.remove(&item);
    }
}

impl Damage {
    pub(super) fn strike(&self, kernel: &mut Kernel) {
        let Self { to_guard, tables, ingress, routing, restart, upgrade } = self;
        for damage in ingress {
            match (damage, &mut kernel.ingress) {
                // Without digests nobody can tell a rule with our comment from ours.
                (ToTable::Forge(_), _) if *restart => {}
                (ToTable::Delete, ingress) => *ingress = None,
                (damage, Some(table)) => strike_chains(table, damage),
                (_, None) => {}
            }
        }
        if *restart {
            kernel.restart();
        }
        if *upgrade {
            for chain in [&mut kernel.main, &mut kernel.guard]
                .into_iter()
                .flatten()
                .flat_map(|table| table.chains.values_mut())
            {
                if let SeenHook::Known(hook) = &mut chain.hook {
                    hook.priority -= 1;
                }
            }
        }
        for damage in tables {
            let felt = match damage {
                // Without digests nobody can tell a rule with our comment from ours.
                ToTable::Forge(_) => !restart,
                // A main table that is outdated and also broken looks just outdated.
                ToTable::Delete | ToTable::Sleep => true,
                _ => *to_guard || !upgrade,
            };
            if felt {
                strike_table(kernel, *to_guard, damage);
            }
        }
        for damage in routing {
            // What leads nowhere is caught by the guard, so that has to be whole.
            let harmless = matches!(damage, ToRouting::DeleteWays | ToRouting::AddStray);
            if harmless || !to_guard || tables.is_empty() {
                strike_routing(kernel, damage);
            }
        }
    }
}

fn strike_routing(kernel: &mut Kernel, damage: &ToRouting) {
    match damage {
        ToRouting::DeleteRule(at) => remove_nth(&mut kernel.rules, *at),
        ToRouting::DeleteRules => kernel.rules.clear(),
        ToRouting::DeleteRoute(at) => remove_nth(&mut kernel.routes, *at),
        ToRouting::DeleteRoutes => kernel.routes.clear(),
        ToRouting::DeleteWays => kernel.routes.retain(crate::routing::Route::is_unreachable),
        ToRouting::AddStray => {
            let text = "default dev lo table 10099".to_owned();
            kernel.strays.insert(Stray { kind: ObjectKind::Route, text, message: vec![9] });
        }
    }
}

fn strike_table(kernel: &mut Kernel, to_guard: bool, damage: &ToTable) {
    let pods = &mut kernel.pods;
    let pod = |at: &Index| *at.get(&every_pod().collect::<Vec<_>>());
    let place = if to_guard { &mut kernel.guard } else { &mut kernel.main };
    let Some(table) = place else { return };
    match damage {
        ToTable::Delete => {
            *place = None;
            flush_pods(pods, to_guard);
        }
        ToTable::Undeclare => {
            // The kernel lets go of a map only with all rules that name it.
            table.chains.clear();
            table.declared.clear();
            flush_pods(pods, to_guard);
        }
        ToTable::ForgetPod(at) if to_guard => drop(pods.guarded.remove(&pod(at))),
        ToTable::ForgetPod(at) => drop(pods.vips.remove(&pod(at))),
        ToTable::ChangePod(at, vip) if !to_guard => {
            let pod = pod(at);
            if pods.vips.contains_key(&pod) && pod.is_ipv4() {
                pods.vips.insert(pod, Some(*vip));
            }
        }
        ToTable::AddPod(at, _) | ToTable::ChangePod(at, _) if to_guard => {
            pods.guarded.insert(pod(at));
        }
        ToTable::AddPod(at, vip) => {
            let pod = pod(at);
            pods.vips.entry(pod).or_insert(pod.is_ipv4().then_some(*vip));
        }
        ToTable::FlushPods => flush_pods(pods, to_guard),
        ToTable::AddStray => {
            let set = if to_guard { PodSet::Mapped4 } else { PodSet::Vip4 };
            pods.strays.insert(PodStray { set, key: vec![0, 0, 0, 0] });
        }
        _ => strike_chains(table, damage),
    }
}

fn flush_pods(pods: &mut crate::pod_tables::PodTables, of_guard: bool) {
    if of_guard {
        pods.guarded.clear();
    } else {
        pods.vips.clear();
        pods.known.clear();
        pods.unsure = Default::default();
    }
    pods.strays.retain(|stray| stray.set.is_main() == of_guard);
}

/// Of the ingress table's chains: each has the number of an uplink and an address.
fn leads_to_a_node(chain: &str) -> bool {
    chain.strip_prefix("to").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn strike_chains(table: &mut ModelTable, damage: &ToTable) {
    let foreign = || ModelRule { text: "accept".into(), comment: None };
    match damage {
        ToTable::Sleep => table.dormant = true,
        ToTable::EmptyAll => table.chains.values_mut().for_each(|chain| chain.rules.clear()),
        ToTable::AddChain => drop(table.chains.entry("somebody".into()).or_default()),
        ToTable::Declare => drop(table.declared.insert("theirs".into(), None)),
        ToTable::Empty(at)
        | ToTable::Accept(at)
        | ToTable::Append(at)
        | ToTable::Forge(at)
        | ToTable::Hook(at)
            if !table.chains.is_empty() =>
        {
            let at = at.index(table.chains.len());
            let Some((name, chain)) = table.chains.iter_mut().nth(at) else { return };
            match damage {
                ToTable::Empty(_) => chain.rules.clear(),
                ToTable::Accept(_) => chain.rules.insert(0, foreign()),
                ToTable::Append(_) => chain.rules.push(foreign()),
                // Such a chain passes on whatever meets it: no order of steps undoes that in time.
                ToTable::Hook(_) if leads_to_a_node(name) => {}
                ToTable::Hook(_) => chain.hook = SeenHook::Other,
                _ => {
                    if let Some(rule) = chain.rules.first_mut() {
                        "accept".clone_into(&mut rule.text);
                    }
                }
            }
        }
        _ => {}
    }
}
