//! Whatever a node's kernel holds and whatever it should hold: no step of a plan opens a leak,
//! whichever step fails, and the plan gets there.

mod damage;
mod fates;
mod kernel;
mod packet;
mod shortcuts;
mod table;
mod tolerance;
mod words;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use shared::PodIp;

use self::damage::{Damage, damages};
use self::fates::{check_fates, check_forgotten};
use self::kernel::Kernel;
use self::tolerance::Tolerance;
use self::world::{World, changes, every_pod, worlds};
use super::{Step, plan};
use crate::routing::{Action, Family, PolicyRule, Route};

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
