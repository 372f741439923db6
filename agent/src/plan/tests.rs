//! Whatever a node's kernel holds and whatever it should hold: no step of a plan opens a leak,
//! whichever step fails, and the plan gets there.

mod damage;
mod kernel;
mod packet;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use shared::{PodIp, Vip};

use self::damage::damages;
use self::kernel::{Fate, Kernel};
use self::packet::Connection;
use self::world::{IN_CLUSTER, World, every_pod, in_pod_subnet, worlds};
use super::{Step, plan};

const LOCAL: &str = "veth";
const UPLINK: &str = "eth0";

fn planned(kernel: &Kernel, world: &World) -> Vec<Step> {
    let ruleset = world.ruleset();
    let marks = world.settings.ownership.marks();
    plan(&world.desired(&ruleset), &kernel.observed(), &kernel.loaded, marks)
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
}

impl Tolerance<'_> {
    fn worlds(&self) -> impl Iterator<Item = &World> {
        self.old.into_iter().chain([self.new])
    }

    fn knows(&self, vip: Vip) -> bool {
        self.worlds().any(|world| world.mappings.vips().contains_key(&vip))
    }

    fn first(&self, pod: PodIp, fate: Fate) -> bool {
        match fate {
            Fate::Dropped => true,
            Fate::ToHolder(vip) => self.knows(vip),
            Fate::LeavesWith(vip) => {
                let maps = self.worlds().map(|world| world.mappings.pods()).chain([&self.start]);
                maps.into_iter().any(|pods| pods.get(&pod) == Some(&Some(vip)))
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
            Fate::LeavesWith(vip) => connection.source == Some(vip.addr()),
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
        }
        Ok(())
    }
}

/// Every packet has exactly the fate that its pod's mapping asks for.
fn check_settled(kernel: &Kernel, world: &World) -> Result<(), TestCaseError> {
    for pod in every_pod() {
        let mapped = world.mappings.pods().contains_key(&pod);
        let vip = world.usable_vip(pod);
        let here = vip.is_some_and(|vip| world.facts.holds(vip));
        let wanted = match vip {
            _ if !mapped => Fate::NodeAddress,
            Some(vip) if here => Fate::LeavesWith(vip),
            Some(vip) if world.uplink(vip).is_some() => Fate::ToHolder(vip),
            _ => Fate::Dropped,
        };
        prop_assert_eq!(kernel.first_packet(pod, LOCAL), wanted, "{}", pod);
        for uplink in world.mappings.vips().keys().filter_map(|vip| world.uplink(*vip)) {
            let wanted = match vip {
                Some(vip) if here => Fate::LeavesWith(vip),
                _ if mapped => Fate::Dropped,
                _ if in_pod_subnet(pod) && !world.mappings.networks().pod_subnets().is_empty() => {
                    Fate::Dropped
                }
                _ => Fate::NodeAddress,
            };
            prop_assert_eq!(kernel.first_packet(pod, &uplink), wanted, "{} over {}", pod, uplink);
        }
        let inside = IN_CLUSTER[usize::from(!pod.is_ipv4())].parse().unwrap();
        if world.mappings.networks().pod_subnets().iter().any(|net| net.contains(&inside)) {
            let first = Connection { pod, mark: 0, source: None, session: true };
            let (fate, after) = kernel.send(first, true, inside, LOCAL);
            prop_assert_eq!((fate, after.mark), (Fate::NodeAddress, 0), "{} inside", pod);
        }
    }
    for connection in &kernel.connections {
        let mapped = world.mappings.pods().contains_key(&connection.pod);
        let unbound = connection.mark & kernel.marks.mask() == 0;
        prop_assert!(connection.session || !mapped || !unbound, "{connection:?} was not forgotten");
    }
    Ok(())
}

/// Takes all steps but the one that fails and the removals that have to wait for it, as `sync`
/// does, and looks for leaks after each.
fn act(
    kernel: &mut Kernel,
    steps: &[Step],
    fails: Option<usize>,
    tolerance: &Tolerance<'_>,
) -> Result<(), TestCaseError> {
    tolerance.check(kernel, "nothing")?;
    let mut failed = false;
    for (index, step) in steps.iter().enumerate() {
        if failed && step.is_removal() {
            continue;
        }
        if fails == Some(index) {
            failed = true;
            continue;
        }
        match kernel.apply(step) {
            Err(error) if !failed => {
                return Err(TestCaseError::fail(error));
            }
            // What failed before may have been needed.
            _ => tolerance.check(kernel, &step.to_string())?,
        }
    }
    Ok(())
}

fn in_between(old: &World, new: &World, damage: &damage::Damage) -> Kernel {
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
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn from_nothing_every_step_is_safe_and_the_plan_gets_there(world in worlds()) {
        let mut kernel = Kernel { local: world.local(), ..Kernel::default() };
        let tolerance = Tolerance { old: None, new: &world, start: BTreeMap::new() };
        let steps = planned(&kernel, &world);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_settled(&kernel, &world)?;
        prop_assert_eq!(planned(&kernel, &world), vec![]);
    }

    #[test]
    fn from_any_state_every_step_is_safe_and_the_plan_gets_there(
        old in worlds(),
        new in worlds(),
        damage in damages(),
    ) {
        let mut kernel = in_between(&old, &new, &damage);
        let start = kernel.pods.vips.clone();
        let tolerance = Tolerance { old: Some(&old), new: &new, start };
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_settled(&kernel, &new)?;
        prop_assert_eq!(planned(&kernel, &new), vec![]);
    }

    #[test]
    fn a_step_that_fails_opens_no_leak_and_the_next_plan_repairs_it(
        old in worlds(),
        new in worlds(),
        damage in damages(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut kernel = in_between(&old, &new, &damage);
        let steps = planned(&kernel, &new);
        prop_assume!(!steps.is_empty());
        let start = kernel.pods.vips.clone();
        let tolerance = Tolerance { old: Some(&old), new: &new, start };
        act(&mut kernel, &steps, Some(at.index(steps.len())), &tolerance)?;
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        prop_assert_eq!(planned(&kernel, &new), vec![]);
    }
}
