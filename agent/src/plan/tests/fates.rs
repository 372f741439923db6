//! What becomes of packets once a plan is carried out: exactly what the world asks for.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use shared::block::HOLDERS_PORTS;
use shared::{Block, Vip};

use super::LOCAL;
use super::kernel::{Fate, Kernel};
use super::packet::{Connection, PODS_PORT};
use super::tolerance::Tolerance;
use super::world::{IN_CLUSTER, World, every_pod, in_pod_subnet};
use crate::routing::Decision;
use crate::unsure::{Unsure, Vouched};

/// Every packet has exactly the fate that its pod's mapping asks for.
pub(super) fn check_fates(kernel: &Kernel, world: &World) -> Result<(), TestCaseError> {
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
pub(super) fn check_forgotten(
    kernel: &Kernel,
    tolerance: &Tolerance<'_>,
) -> Result<(), TestCaseError> {
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
