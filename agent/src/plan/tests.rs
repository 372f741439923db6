//! Whatever a node's kernel holds and whatever it should hold: no step of a plan opens a leak,
//! whichever step fails, and the plan gets there.

mod damage;
mod kernel;
mod packet;
mod shortcuts;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use shared::block::HOLDERS_PORTS;
use shared::{Block, PodIp, Vip};

use self::damage::{Damage, damages};
use self::kernel::{Fate, Kernel};
use self::packet::{Connection, PODS_PORT};
use self::world::{IN_CLUSTER, World, changes, every_pod, in_pod_subnet, worlds};
use super::{Step, plan};
use crate::routing::{Action, Decision, Family, PolicyRule, Route};
use crate::unsure::{Unsure, Vouched};

const LOCAL: &str = "veth";
const UPLINK: &str = "eth0";

fn planned(kernel: &Kernel, world: &World) -> Vec<Step> {
    let ruleset = world.ruleset();
    let marks = world.settings.ownership.marks();
    plan(&world.desired(&ruleset), &kernel.observed(), None, &kernel.loaded, marks)
}

/// The kernel of a node that has been told of `world` and nothing else.
fn settled(world: &World) -> Kernel {
    let mut kernel = Kernel { local: world.local(), ..Kernel::default() };
    for step in planned(&kernel, world) {
        kernel.apply(&step).unwrap();
    }
    kernel
}

/// What may become of packets between two worlds.
struct Tolerance<'a> {
    old: Option<&'a World>,
    new: &'a World,
    /// What the maps said before the plan: strangers may have changed it.
    start: BTreeMap<PodIp, Option<Vip>>,
    /// The agent has not restarted since the old world.
    remembers: bool,
    /// No step fails, so that what comes for a connection here is never passed on to another node.
    answers: bool,
}

impl<'a> Tolerance<'a> {
    /// `start` is the kernel before the plan.
    fn between(old: &'a World, new: &'a World, start: &Kernel) -> Self {
        let remembers = start.places.is_some();
        Self { old: Some(old), new, start: start.pods.vips.clone(), remembers, answers: true }
    }

    fn worlds(&self) -> impl Iterator<Item = &World> {
        self.old.into_iter().chain([self.new])
    }

    fn knows(&self, vip: Vip) -> bool {
        self.worlds().any(|world| world.mappings.vips().contains_key(&vip))
    }

    /// A port that is nobody else's.
    fn may_have(&self, vip: Vip, port: u16) -> bool {
        let is_holders = |world: &World| world.mappings.vips().contains_key(&vip);
        self.worlds().any(|world| match world.direct(vip) {
            Some(direct) => match Block::of_port(port) {
                Some(block) => direct.own.contains(&block),
                None => HOLDERS_PORTS.contains(&port),
            },
            None => is_holders(world),
        })
    }

    fn first(&self, pod: PodIp, fate: Fate) -> bool {
        match fate {
            Fate::Dropped => true,
            Fate::ToHolder(vip) => self.knows(vip),
            Fate::LeavesWith(vip, port) => {
                let maps = self.worlds().map(|world| world.mappings.pods()).chain([&self.start]);
                maps.into_iter().any(|pods| pods.get(&pod) == Some(&Some(vip)))
                    && self.may_have(vip, port)
            }
            Fate::NodeAddress => {
                self.old.is_none()
                    || self.worlds().any(|world| !world.mappings.pods().contains_key(&pod))
            }
            Fate::PodAddress => false,
        }
    }

    fn bound(&self, connection: Connection, fate: Fate) -> bool {
        match fate {
            Fate::Dropped => true,
            Fate::ToHolder(vip) => self.knows(vip),
            Fate::LeavesWith(vip, port) => {
                connection.source == Some(vip.addr()) && self.may_have(vip, port)
            }
            Fate::NodeAddress | Fate::PodAddress => false,
        }
    }

    fn check(&self, kernel: &Kernel, after: &str) -> Result<(), TestCaseError> {
        for pod in every_pod() {
            for iif in [LOCAL, UPLINK] {
                let fate = kernel.first_packet(pod, iif);
                prop_assert!(self.first(pod, fate), "{pod} over {iif}: {fate:?} after {after}");
            }
        }
        // By a connection's mark alone nobody can tell whose it is: when its VIP is gone, it is held
        // as one that comes from a pod subnet.
        let subnets: Vec<_> =
            self.worlds().map(|world| world.mappings.networks().pod_subnets()).collect();
        let covered = |pod: PodIp| {
            subnets.iter().all(|nets| nets.iter().any(|net| net.contains(&pod.addr())))
        };
        let bound = |connection: &&Connection| {
            connection.mark & kernel.marks.mask() != 0 && covered(connection.pod)
        };
        for connection in kernel.connections.iter().filter(bound) {
            let fate = kernel.next_packet(*connection);
            prop_assert!(self.bound(*connection, fate), "{connection:?}: {fate:?} after {after}");
            if let (Fate::LeavesWith(vip, port), Some((_, Decision::Direct)), true) =
                (fate, kernel.marks.id_of(connection.mark), self.answers)
            {
                let to = kernel.passed_on(vip, port);
                prop_assert_eq!(to, None, "answers to {:?} after {}", connection, after);
            }
        }
        Ok(())
    }
}

/// Every packet has exactly the fate that its pod's mapping asks for.
fn check_fates(kernel: &Kernel, world: &World) -> Result<(), TestCaseError> {
    for pod in every_pod() {
        let mapped = world.mappings.pods().contains_key(&pod);
        let vip = world.usable_vip(pod);
        let here = vip.is_some_and(|vip| world.facts.holds(vip));
        let in_subnet = in_pod_subnet(pod) && !world.mappings.networks().pod_subnets().is_empty();
        let Vouched { known, unsure } = &world.vouched;
        let unknown = in_subnet && *unsure != Unsure::No && !known.contains(&pod);
        let direct = vip.and_then(|vip| world.direct(vip));
        let open = direct.as_ref().map(|direct| &direct.open).filter(|open| !open.is_empty());
        let has_holders = |port: u16| match direct {
            Some(_) => HOLDERS_PORTS.contains(&port),
            None => port == PODS_PORT,
        };
        let wanted = match vip {
            _ if !mapped && unknown => Fate::Dropped,
            _ if !mapped => Fate::NodeAddress,
            Some(vip) if here => Fate::LeavesWith(vip, PODS_PORT),
            Some(vip) if world.uplink(vip).is_some() => Fate::ToHolder(vip),
            _ => Fate::Dropped,
        };
        for _ in 0..4 {
            let fate = kernel.first_packet(pod, LOCAL);
            let is_right = match (fate, open) {
                (Fate::LeavesWith(with, port), Some(open)) => {
                    vip == Some(with)
                        && Block::of_port(port).is_some_and(|block| open.contains(&block))
                }
                (Fate::LeavesWith(with, port), None) => {
                    wanted == Fate::LeavesWith(with, PODS_PORT) && has_holders(port)
                }
                _ => fate == wanted && open.is_none(),
            };
            prop_assert!(is_right, "{pod}: {fate:?}, not {wanted:?} or by {open:?}");
        }
        for uplink in world.mappings.vips().keys().filter_map(|vip| world.uplink(*vip)) {
            let wanted = match vip {
                Some(vip) if here => Fate::LeavesWith(vip, PODS_PORT),
                _ if mapped => Fate::Dropped,
                _ if in_subnet => Fate::Dropped,
                _ => Fate::NodeAddress,
            };
            let fate = match kernel.first_packet(pod, &uplink) {
                Fate::LeavesWith(with, port) if has_holders(port) => {
                    Fate::LeavesWith(with, PODS_PORT)
                }
                fate => fate,
            };
            prop_assert_eq!(fate, wanted, "{} over {}", pod, uplink);
        }
        let inside = IN_CLUSTER[usize::from(!pod.is_ipv4())].parse().unwrap();
        if world.mappings.networks().pod_subnets().iter().any(|net| net.contains(&inside)) {
            let first = Connection::new(pod, true);
            let (fate, after) = kernel.send(first, true, inside, LOCAL);
            prop_assert_eq!((fate, after.mark), (Fate::NodeAddress, 0), "{} inside", pod);
        }
    }
    check_answers(kernel, world)
}

/// What comes for a block is passed on to the node that has it, and nothing else is.
fn check_answers(kernel: &Kernel, world: &World) -> Result<(), TestCaseError> {
    for vip in world.mappings.vips().keys() {
        let direct = world.direct(*vip).unwrap_or_default();
        for port in [1023, 1024, 2047, 2048, 3500, 5119, 5120, 49_151, 49_152, 65_535] {
            let block = Block::of_port(port).filter(|_| direct.uplink.is_some());
            let wanted = block.and_then(|block| direct.others.get(&block)).copied();
            prop_assert_eq!(kernel.passed_on(*vip, port), wanted, "{} port {}", vip, port);
        }
    }
    Ok(())
}

/// Whoever sends without sessions from before its pod was mapped is decided anew, and so is what
/// was decided for where a VIP no longer is.
fn check_forgotten(kernel: &Kernel, tolerance: &Tolerance<'_>) -> Result<(), TestCaseError> {
    let wanted = tolerance.new.mappings.pods();
    for connection in kernel.connections.iter().filter(|connection| !connection.session) {
        let pod = &connection.pod;
        // What a stranger has mapped is the stranger's to forget.
        let newly_mapped = wanted.contains_key(pod) && wanted.get(pod) != tolerance.start.get(pod);
        let unbound = connection.mark & kernel.marks.mask() == 0;
        prop_assert!(!(newly_mapped && unbound), "{connection:?} was not forgotten");
    }
    for connection in &kernel.connections {
        let Some((id, decision)) = kernel.marks.id_of(connection.mark) else { continue };
        let new = tolerance.new;
        let vip = new.mappings.vips().iter().find(|(_, of)| **of == id).map(|(vip, _)| *vip);
        let block = connection.port.and_then(Block::of_port);
        let direct = vip.and_then(|vip| new.direct(vip)).unwrap_or_default();
        let holds = vip.is_some_and(|vip| match decision {
            Decision::Here => new.facts.holds(vip),
            Decision::Away => !new.facts.holds(vip),
            Decision::Direct => block.is_some_and(|block| direct.own.contains(&block)),
        });
        // After a restart nobody knows whose VIP it was; the guard drops what is wrong.
        let as_translated = decision == Decision::Away
            || !tolerance.remembers
            || connection.source == vip.map(Vip::addr);
        prop_assert!(holds && as_translated, "{connection:?} is bound to what is no longer so");
    }
    Ok(())
}

/// Takes all steps but the one that fails and those that have to wait for it, as `sync` does, and
/// has a look after each.
fn act_and(
    kernel: &mut Kernel,
    steps: &[Step],
    fails: Option<usize>,
    look: impl Fn(&Kernel, &str) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    look(kernel, "nothing")?;
    let observed = kernel.observed();
    let mut failed: Vec<&Step> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if failed.iter().any(|failed| step.waits_for(failed, &observed)) {
            continue;
        }
        if fails == Some(index) {
            failed.push(step);
            continue;
        }
        if let Err(error) = kernel.apply(step) {
            // What failed before may have been needed.
            prop_assert!(!failed.is_empty(), "{error}");
            failed.push(step);
        }
        look(kernel, &step.to_string())?;
    }
    Ok(())
}

/// Looks for leaks after each step.
fn act(
    kernel: &mut Kernel,
    steps: &[Step],
    fails: Option<usize>,
    tolerance: &Tolerance<'_>,
) -> Result<(), TestCaseError> {
    act_and(kernel, steps, fails, |kernel, after| tolerance.check(kernel, after))
}

fn in_between(old: &World, new: &World, damage: &Damage) -> Kernel {
    let mut kernel = settled(old);
    for pod in every_pod() {
        kernel.connect(pod, true);
        kernel.connect(pod, false);
    }
    kernel.local = new.local();
    damage.strike(&mut kernel);
    kernel
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn from_nothing_every_step_is_safe_and_the_plan_gets_there(world in worlds()) {
        let mut kernel = Kernel { local: world.local(), ..Kernel::default() };
        let (start, remembers, answers) = (BTreeMap::new(), false, true);
        let tolerance = Tolerance { old: None, new: &world, start, remembers, answers };
        let steps = planned(&kernel, &world);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_fates(&kernel, &world)?;
        prop_assert_eq!(planned(&kernel, &world), vec![]);
    }

    #[test]
    fn from_any_state_every_step_is_safe_and_the_plan_gets_there(
        (old, new) in changes(),
        damage in damages(),
    ) {
        let mut kernel = in_between(&old, &new, &damage);
        let tolerance = Tolerance::between(&old, &new, &kernel);
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_fates(&kernel, &new)?;
        check_forgotten(&kernel, &tolerance)?;
        prop_assert!(kernel.has_tables_of(&new.ruleset()));
        prop_assert_eq!(planned(&kernel, &new), vec![]);
    }

    #[test]
    fn damage_is_repaired_and_nothing_else_is_touched(world in worlds(), damage in damages()) {
        let settled = settled(&world);
        let mut kernel = settled.clone();
        damage.strike(&mut kernel);
        for step in planned(&kernel, &world) {
            kernel.apply(&step).map_err(TestCaseError::fail)?;
        }
        prop_assert!(kernel.has_tables_of(&world.ruleset()));
        prop_assert_eq!(kernel.pods, settled.pods);
        prop_assert_eq!((kernel.rules, kernel.routes), (settled.rules, settled.routes));
        prop_assert!(kernel.strays.is_empty());
    }

    #[test]
    fn a_step_that_fails_opens_no_leak_and_the_next_plan_repairs_it(
        (old, new) in changes(),
        damage in damages(),
        at in any::<Index>(),
    ) {
        let mut kernel = in_between(&old, &new, &damage);
        let steps = planned(&kernel, &new);
        prop_assume!(!steps.is_empty());
        let tolerance = Tolerance::between(&old, &new, &kernel);
        let tolerance = Tolerance { answers: false, ..tolerance };
        act(&mut kernel, &steps, Some(at.index(steps.len())), &tolerance)?;
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        prop_assert_eq!(planned(&kernel, &new), vec![]);
    }

    #[test]
    fn each_table_alone_lets_nothing_leak_between_two_worlds(
        (old, new) in changes(),
        fails in option::weighted(0.3, any::<Index>()),
    ) {
        let kernel = in_between(&old, &new, &Damage::default());
        let tolerance = Tolerance::between(&old, &new, &kernel);
        let tolerance = Tolerance { answers: false, ..tolerance };
        let steps = planned(&kernel, &new);
        // Where the way to a holder could not be made, the guard is needed.
        let optional = |step: &Step| !matches!(step, Step::AddRoute(_) | Step::AddRule(_));
        let candidates: Vec<_> = (0..steps.len()).filter(|at| optional(&steps[*at])).collect();
        let fails = fails.filter(|_| !candidates.is_empty()).map(|at| *at.get(&candidates));
        let ids: Vec<_> = new.mappings.vips().values().collect();
        act_and(&mut kernel.clone(), &steps, fails, |kernel, step| {
            let without_guard = Kernel { guard: None, ..kernel.clone() };
            tolerance.check(&without_guard, &format!("{step}, without the guard"))?;
            // The guard knows connections by the marks of the VIPs that there are.
            let mut without_main = Kernel { main: None, ..kernel.clone() };
            without_main.connections.retain(|connection| {
                kernel.marks.id_of(connection.mark).is_some_and(|(id, _)| ids.contains(&&id))
            });
            tolerance.check(&without_main, &format!("{step}, without the main table"))
        })?;
    }

    #[test]
    fn a_plan_has_nothing_in_it_but_ours(old in worlds(), new in worlds(), damage in damages()) {
        let kernel = in_between(&old, &new, &damage);
        let ours = new.settings.ownership;
        let ours_rule = |rule: &PolicyRule| {
            let whole = (rule.mask, rule.mark & !rule.mask) == (ours.marks().of_packets(), 0);
            ours.priorities().contains(&rule.priority)
                && match rule.action {
                    Action::Lookup(table) => ours.tables().contains(&table) && whole,
                    Action::Goto(target) => {
                        ours.priorities().contains(&target) && rule.mask & !ours.marks().mask() == 0
                    }
                    Action::Nop => true,
                }
        };
        let pods: BTreeSet<PodIp> =
            new.mappings.pods().keys().chain(kernel.pods.vips.keys()).copied().collect();
        for step in planned(&kernel, &new) {
            let is_ours = match &step {
                Step::AddRule(rule) | Step::DeleteRule(rule) => ours_rule(rule),
                Step::AddRoute(route) | Step::DeleteRoute(route) => {
                    ours.tables().contains(&route.table)
                }
                Step::DeleteStray(stray) => kernel.strays.contains(stray),
                Step::Loosen(interface) => kernel.strict.contains(interface),
                Step::ForgetPods(forgotten)
                | Step::ForgetUndecided { pods: forgotten, .. } => {
 forgotten.is_subset(&pods)
}
                Step::ForgetHolder { vip, .. } => {
                    new.mappings.vips().contains_key(vip) && !new.local().contains(&vip.addr())
                }
                Step::Rebind { wrong, .. } => {
                    wrong.iter().all(|mark| {
                        mark & !ours.marks().mask() == 0 && ours.marks().id_of(*mark).is_some()
                    })
                }
                Step::Keep(vips) => vips.values().all(|vip| new.mappings.blocks().contains_key(vip)),
                Step::ChangeTables(_) | Step::ChangeIngress(_) | Step::ChangePods(_) => true,
            };
            prop_assert!(is_ours, "{step}");
        }
    }

    #[test]
    fn a_table_is_never_looked_up_without_its_backstop(
        (old, new) in changes(),
        damage in damages(),
    ) {
        let ruleset = new.ruleset();
        let desired = new.desired(&ruleset);
        for (vip, id) in new.mappings.vips() {
            let (ours, family) = (new.settings.ownership, Family::of(vip.addr()));
            prop_assert!(desired.rules.contains(&ours.rule(family, *id)));
            prop_assert!(desired.routes.contains(&ours.unreachable(family, *id)));
        }
        let mut kernel = in_between(&old, &new, &damage);
        for step in planned(&kernel, &new) {
            let fresh_rule = match &step {
                Step::AddRule(rule) => rule.table().map(|table| (rule.family, table)),
                Step::AddRoute(route) if !route.is_unreachable() => {
                    Some((route.family, route.table))
                }
                _ => None,
            };
            kernel.apply(&step).map_err(TestCaseError::fail)?;
            if let Some(table) = fresh_rule {
                let backstop = |route: &Route| {
                    route.is_unreachable() && (route.family, route.table) == table
                };
                prop_assert!(kernel.routes.iter().any(backstop), "{step} before its backstop");
            }
            if let Step::DeleteRoute(route) = &step {
                let rule = kernel.rules.iter().find(|rule| {
                    route.is_unreachable()
                        && (rule.family, rule.table()) == (route.family, Some(route.table))
                });
                prop_assert_eq!(rule, None, "{} while it is looked up", step);
            }
        }
    }

    #[test]
    fn an_agent_that_dies_between_two_steps_leaves_nothing_that_the_next_does_not_mend(
        (old, new) in changes(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut kernel = in_between(&old, &new, &Damage::default());
        let steps = planned(&kernel, &new);
        prop_assume!(!steps.is_empty());
        let tolerance = Tolerance::between(&old, &new, &kernel);
        act(&mut kernel, &steps[..at.index(steps.len())], None, &tolerance)?;
        kernel.restart();
        let tolerance = Tolerance { remembers: false, ..tolerance };
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_fates(&kernel, &new)?;
        check_forgotten(&kernel, &tolerance)?;
        prop_assert_eq!(planned(&kernel, &new), vec![]);
    }
}
