//! A model of a node's kernel: takes steps one by one as the real one would, refusing what that
//! would refuse, and tells what becomes of packets.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::{Block, PodIp, RouteId, Vip};

use super::packet::{Connection, PODS_PORT, Packet};
use super::table::ModelTable;
use super::words::{Surroundings, Verdict, verdict};
use crate::desired::Place;
use crate::kernel_state::{LoadedDigests, Observed, SeenHook};
use crate::plan::{IngressChange, Step, TableChange, TablesChange};
use crate::pod_tables::{PodChanges, PodTables};
use crate::routing::{
    Action, Family, Foreign, MarkMask, ObservedRouting, PolicyRule, Route, RouteKind, Stray,
};
use crate::ruleset::{HookKind, HookPoint, Ruleset};

pub(super) const NODE: [&str; 2] = ["192.168.122.11", "fd00:122::11"];
const GATEWAY: [&str; 2] = ["192.168.122.1", "fd00:122::1"];
pub(super) const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

fn of_family(v4: bool, addresses: [&str; 2]) -> IpAddr {
    addresses[usize::from(!v4)].parse().unwrap()
}

/// What becomes of a packet to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Dropped,
    ToHolder(Vip),
    /// With that port.
    LeavesWith(Vip, u16),
    NodeAddress,
    PodAddress,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) rules: BTreeSet<PolicyRule>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) strays: BTreeSet<Stray>,
    pub(super) foreign: BTreeSet<Foreign>,
    pub(super) main: Option<ModelTable>,
    pub(super) guard: Option<ModelTable>,
    pub(super) ingress: Option<ModelTable>,
    pub(super) pods: PodTables,
    pub(super) strict: BTreeSet<String>,
    pub(super) connections: Vec<Connection>,
    /// Every address of the node, VIPs included.
    pub(super) local: BTreeSet<IpAddr>,
    pub(super) marks: MarkMask,
    /// What the agent remembers, as `sync` does.
    pub(super) places: Option<BTreeMap<RouteId, Place>>,
    pub(super) loaded: [LoadedDigests; 3],
    /// What comes out where rules ask for a number by chance.
    pub(super) chance: Cell<u32>,
}

impl Kernel {
    pub(super) fn observed(&self) -> Observed {
        Observed {
            routing: ObservedRouting {
                rules: self.rules.clone(),
                routes: self.routes.clone(),
                strays: self.strays.clone(),
                foreign: self.foreign.clone(),
            },
            main: self.main.as_ref().map(ModelTable::seen),
            guard: self.guard.as_ref().map(ModelTable::seen),
            ingress: self.ingress.as_ref().map(ModelTable::seen),
            pods: self.pods.clone(),
            strict: self.strict.clone(),
            places: self.places.clone(),
        }
    }

    /// The tables are exactly these.
    pub(super) fn has_tables_of(&self, ruleset: &Ruleset) -> bool {
        let Ruleset { main, guard, ingress } = ruleset;
        let wanted = [Some(main), Some(guard), ingress.as_ref()];
        let seen = [&self.main, &self.guard, &self.ingress];
        seen.into_iter().zip(wanted).all(|(seen, wanted)| {
            let made = wanted.map(|wanted| {
                let mut made = ModelTable::default();
                made.fill(wanted);
                made
            });
            *seen == made
        })
    }

    /// Another agent comes, which knows nothing of what the one before did.
    pub(super) fn restart(&mut self) {
        self.loaded = Default::default();
        self.places = None;
    }

    /// Takes a step wholly, or says why the kernel would refuse it and changes nothing.
    pub(super) fn apply(&mut self, step: &Step) -> Result<(), String> {
        let must = |there: bool| there.then_some(()).ok_or_else(|| format!("refused: {step}"));
        match step {
            Step::Loosen(interface) => must(self.strict.remove(interface)),
            Step::AddRoute(route) => {
                if let RouteKind::ViaHolder { vip, .. } = &route.kind {
                    must(!self.local.contains(&vip.addr()))?;
                }
                self.routes.retain(|old| {
                    (old.family, old.table, old.is_unreachable())
                        != (route.family, route.table, route.is_unreachable())
                });
                must(self.routes.insert(route.clone()))
            }
            Step::AddRule(rule) => must(self.rules.insert(*rule)),
            Step::ChangeTables(change) => self.change_tables(change),
            Step::ChangeIngress(change) => self.change_ingress(change),
            Step::ChangePods(changes) => self.change_pods(changes),
            Step::ForgetPods(pods) => {
                self.connections.retain(|c| c.session || !pods.contains(&c.pod));
                Ok(())
            }
            // Who holds a VIP elsewhere is none of this model's knowledge.
            Step::ForgetHolder { .. } => Ok(()),
            Step::ForgetUndecided { pods, sessions } => {
                let mask = self.marks.mask();
                self.connections.retain(|c| {
                    (c.session && !sessions) || c.mark & mask != 0 || !pods.contains(&c.pod)
                });
                Ok(())
            }
            Step::Rebind { wrong, blocks, places } => {
                let mask = self.marks.mask();
                self.connections.retain(|c| {
                    let block = c.port.and_then(Block::of_port);
                    let gone = blocks
                        .get(&(c.mark & mask))
                        .is_some_and(|of_mark| block.is_none_or(|block| !of_mark.contains(&block)));
                    !gone && !wrong.contains(&(c.mark & mask))
                });
                self.places = Some(places.clone());
                Ok(())
            }
            // Who keeps a connection made before is seen on a real kernel.
            Step::Keep(_) => must(self.ingress.is_some()),
            Step::DeleteRule(rule) => must(self.rules.remove(rule)),
            Step::DeleteRoute(route) => must(self.routes.remove(route)),
            Step::DeleteStray(stray) => must(self.strays.remove(stray)),
        }
    }

    fn change_tables(&mut self, change: &TablesChange) -> Result<(), String> {
        let TablesChange { main, guard } = change;
        let changed = |seen: &Option<ModelTable>, change: &Option<TableChange>| {
            change.as_ref().map(|change| ModelTable::changed(seen.as_ref(), change)).transpose()
        };
        let new = [changed(&self.main, main)?, changed(&self.guard, guard)?];
        if matches!(main, Some(TableChange::Replace(_))) {
            self.pods.vips.clear();
            self.pods.known.clear();
            self.pods.unsure = Default::default();
            self.pods.strays.retain(|stray| !stray.set.is_main());
        }
        if matches!(guard, Some(TableChange::Replace(_))) {
            self.pods.guarded.clear();
            self.pods.strays.retain(|stray| stray.set.is_main());
        }
        for (index, new) in new.into_iter().enumerate() {
            if let Some(new) = new {
                self.loaded[index] = LoadedDigests::of(&new.seen());
                *[&mut self.main, &mut self.guard][index] = Some(new);
            }
        }
        Ok(())
    }

    fn change_ingress(&mut self, change: &IngressChange) -> Result<(), String> {
        self.ingress = match change {
            IngressChange::Remove => {
                self.ingress.as_ref().ok_or("no such table")?;
                None
            }
            IngressChange::Make(change) => {
                Some(ModelTable::changed(self.ingress.as_ref(), change)?)
            }
        };
        let seen = self.ingress.as_ref().map(ModelTable::seen);
        self.loaded[2] = seen.as_ref().map(LoadedDigests::of).unwrap_or_default();
        Ok(())
    }

    /// To whom a packet is passed on that comes for that port; `None`: to nobody, it is for this node.
    pub(super) fn passed_on(&self, vip: Vip, port: u16) -> Option<IpAddr> {
        let table = self.ingress.as_ref().filter(|table| !table.dormant)?;
        let pod = of_family(vip.is_ipv4(), ["10.244.1.1", "fd00:244::1"]).try_into().unwrap();
        let around = Surroundings { pods: &self.pods, local: &self.local };
        let mut chains = table.chains.iter().filter(|(_, chain)| chain.hook != SeenHook::None);
        chains.find_map(|(name, _)| {
            let mut packet = Packet {
                saddr: of_family(vip.is_ipv4(), OUTSIDE),
                daddr: vip.addr(),
                iif: String::new(),
                mark: 0,
                nexthop: vip.addr(),
                connection: Connection::new(pod, true),
                new: true,
                chance: 0,
                dport: port,
            };
            match verdict(table, name, &mut packet, &around) {
                Verdict::PassedOn(via) => Some(via),
                _ => None,
            }
        })
    }

    fn change_pods(&mut self, changes: &PodChanges) -> Result<(), String> {
        let PodChanges { unmap, map, unguard, guard, disown, know, unsure, strays } = changes;
        let there = |table: &Option<ModelTable>, untouched: bool| untouched || table.is_some();
        let removable = unmap.iter().all(|pod| self.pods.vips.contains_key(pod))
            && unguard.iter().all(|pod| self.pods.guarded.contains(pod))
            && disown.iter().all(|pod| self.pods.known.contains(pod))
            && strays.iter().all(|stray| self.pods.strays.contains(stray));
        // An element that is there may be added again, but not with other data.
        let addable = map.iter().all(|(pod, vip)| {
            unmap.contains(pod) || self.pods.vips.get(pod).is_none_or(|seen| seen == vip)
        });
        let vouches = !disown.is_empty() || !know.is_empty() || unsure.is_some();
        if !there(&self.main, unmap.is_empty() && map.is_empty() && !vouches)
            || !there(&self.guard, unguard.is_empty() && guard.is_empty())
            || !removable
            || !addable
        {
            return Err(format!("refused: {changes}"));
        }
        self.pods.apply(changes);
        Ok(())
    }

    /// Another number each time, and the same ones in each run.
    fn by_chance(&self) -> u32 {
        let next = self.chance.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.chance.set(next);
        next >> 8
    }

    /// What becomes of the first packet of a pod to the outside. `iif` is where it comes from.
    pub(super) fn first_packet(&self, pod: PodIp, iif: &str) -> Fate {
        let connection = Connection::new(pod, true);
        self.send(connection, true, of_family(pod.is_ipv4(), OUTSIDE), iif).0
    }

    /// What becomes of one more packet of a connection.
    pub(super) fn next_packet(&self, connection: Connection) -> Fate {
        self.send(connection, false, of_family(connection.pod.is_ipv4(), OUTSIDE), "veth").0
    }

    /// Begins a connection to the outside; one whose first packet is dropped is none.
    pub(super) fn connect(&mut self, pod: PodIp, session: bool) {
        let connection = Connection::new(pod, session);
        let outside = of_family(pod.is_ipv4(), OUTSIDE);
        let (fate, connection) = self.send(connection, true, outside, "veth");
        if fate != Fate::Dropped {
            self.connections.push(connection);
        }
    }

    pub(super) fn send(
        &self,
        connection: Connection,
        new: bool,
        daddr: IpAddr,
        iif: &str,
    ) -> (Fate, Connection) {
        let pod = connection.pod.addr();
        let v4 = pod.is_ipv4();
        let mut packet = Packet {
            saddr: pod,
            daddr,
            iif: iif.to_owned(),
            mark: 0,
            nexthop: daddr,
            connection,
            new,
            chance: self.by_chance(),
            dport: 443,
        };
        let around = Surroundings { pods: &self.pods, local: &self.local };
        for (table, chain) in self.hooked(HookPoint::Prerouting, HookKind::Filter) {
            if verdict(table, chain, &mut packet, &around) == Verdict::Drop {
                return (Fate::Dropped, packet.connection);
            }
        }
        let Some(nexthop) = self.nexthop(&packet) else {
            return (Fate::Dropped, packet.connection);
        };
        packet.nexthop = nexthop;
        if packet.connection.source.is_none() {
            for (table, chain) in self.hooked(HookPoint::Postrouting, HookKind::Nat) {
                if let Verdict::Snat(source, ports) = verdict(table, chain, &mut packet, &around) {
                    packet.connection.source = Some(source);
                    let port = ports.map_or(PODS_PORT, |(first, last)| {
                        let number = u32::from(last - first) + 1;
                        first + u16::try_from(self.by_chance() % number).unwrap()
                    });
                    packet.connection.port = Some(port);
                    break;
                }
            }
        }
        // Nobody of ours has: the CNI masquerades.
        packet.saddr = *packet.connection.source.get_or_insert(of_family(v4, NODE));
        for (table, chain) in self.hooked(HookPoint::Postrouting, HookKind::Filter) {
            if verdict(table, chain, &mut packet, &around) == Verdict::Drop {
                return (Fate::Dropped, packet.connection);
            }
        }
        let fate = if packet.saddr == of_family(v4, NODE) {
            Fate::NodeAddress
        } else if packet.saddr != pod {
            let port = packet.connection.port.unwrap_or(PODS_PORT);
            Fate::LeavesWith(packet.saddr.try_into().unwrap(), port)
        } else if nexthop == of_family(v4, GATEWAY) {
            Fate::PodAddress
        } else {
            Fate::ToHolder(nexthop.try_into().unwrap())
        };
        (fate, packet.connection)
    }

    fn hooked(&self, point: HookPoint, kind: HookKind) -> Vec<(&ModelTable, &str)> {
        let tables = [&self.main, &self.guard].into_iter().flatten().filter(|table| !table.dormant);
        let mut chains: Vec<_> = tables
            .flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
            .filter_map(|(table, (name, chain))| match &chain.hook {
                SeenHook::Known(hook) if (hook.point, hook.kind) == (point, kind) => {
                    Some((hook.priority, table, name.as_str()))
                }
                _ => None,
            })
            .collect();
        chains.sort_by_key(|(priority, ..)| *priority);
        chains.into_iter().map(|(_, table, name)| (table, name)).collect()
    }

    /// Where policy routing leads; `None` is unreachable.
    fn nexthop(&self, packet: &Packet) -> Option<IpAddr> {
        let family = Family::of(packet.daddr);
        let mut rules: Vec<_> = self.rules.iter().filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        let mut from = 0;
        for rule in rules.iter().filter(|rule| packet.mark & rule.mask == rule.mark) {
            if rule.priority < from {
                continue;
            }
            let table = match rule.action {
                Action::Lookup(table) => table,
                Action::Goto(target) => {
                    if rules.iter().any(|rule| rule.priority == target) {
                        from = target;
                    }
                    continue;
                }
                Action::Nop => continue,
            };
            let in_table = |route: &&Route| (route.family, route.table) == (family, table);
            let mut unreachable = false;
            for route in self.routes.iter().filter(in_table) {
                match &route.kind {
                    RouteKind::ViaHolder { vip, .. } => return Some(vip.addr()),
                    RouteKind::Unreachable => unreachable = true,
                }
            }
            if unreachable {
                return None;
            }
        }
        Some(of_family(packet.daddr.is_ipv4(), GATEWAY))
    }
}
