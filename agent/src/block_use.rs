//! What this node makes of its blocks of VIPs, as it reports it.
//!
//! Pure. A block that is not reported may be given to another node: so an open one is reported from the
//! moment it is known, and one that drains until it was seen that no connection has it.

use std::collections::{BTreeMap, BTreeSet};

use shared::config_map::BlockUse;
use shared::{Block, Mappings, Vip, VipPath};

use crate::direct::{DirectVip, Hindrance};
use crate::port_use::{Found, Own, OwnBlocks};
use crate::proof::{Verdict, Verdicts};

/// So many looks without a connection: one whose first packet was on its way out at the first look is
/// tracked only when the packet has left.
const LOOKS: u64 = 2;
/// A report is written anew only when the ports in use differ by more than one in so many: it may be
/// written every second, on every node.
const STEADY: usize = 16;

/// The blocks of `node`.
pub fn own_blocks(mappings: &Mappings, node: &str) -> Own {
    let own = mappings.blocks().iter().filter_map(|(vip, nodes)| Some((*vip, nodes.get(node)?)));
    own.map(|(vip, blocks)| {
        let (open, draining) = (blocks.open.clone(), blocks.draining.clone());
        (vip, OwnBlocks { open, draining })
    })
    .collect()
}

/// What has been seen of blocks so far.
#[derive(Clone, Debug, Default)]
pub struct BlockUses {
    /// Draining blocks that no connection has any more. They are not taken back: by now they may be
    /// another node's.
    freed: BTreeSet<(Vip, Block)>,
    /// What was told last.
    used: BTreeMap<Vip, u16>,
}

impl BlockUses {
    /// Takes in what connection tracking was found to hold.
    pub fn learn(&mut self, own: &Own, found: &Found) {
        self.freed
            .retain(|(vip, block)| own.get(vip).is_some_and(|own| own.draining.contains(block)));
        if found.looks < LOOKS {
            return;
        }
        for (vip, OwnBlocks { draining, .. }) in &found.own {
            let now = own.get(vip).map(|own| &own.draining);
            let free = draining.iter().filter(|block| {
                now.is_some_and(|now| now.contains(block))
                    && !found.ports.drained_by.contains(&(*vip, **block))
            });
            self.freed.extend(free.map(|block| (*vip, *block)));
        }
    }

    /// What to report. `direct` is what the kernel is to hold of a VIP.
    pub fn report<'a>(
        &mut self,
        own: &Own,
        direct: impl Fn(Vip) -> Option<&'a DirectVip>,
        verdicts: &Verdicts,
        found: &Found,
    ) -> BTreeMap<Vip, BlockUse> {
        self.used.retain(|vip, _| own.contains_key(vip));
        let freed = &self.freed;
        let reported = own.iter().map(|(vip, blocks)| {
            let draining = blocks.draining.iter().filter(|block| !freed.contains(&(*vip, **block)));
            let used = found.ports.used.get(vip).copied().unwrap_or_default();
            let told = self.used.entry(*vip).or_default();
            *told = steady(*told, used, blocks.ports());
            let direct = direct(*vip);
            let in_use = direct.is_some_and(|direct| !direct.open.is_disjoint(&blocks.open));
            let hindrance = direct.and_then(|direct| direct.hindrance);
            let message = match (hindrance, verdicts.get(vip)) {
                // Which is told in more words.
                (None | Some(Hindrance::NotProven), Some(Verdict { message, .. }))
                    if !message.is_empty() =>
                {
                    message.clone()
                }
                (Some(why), _) => why.to_string(),
                (None, _) => shortage(*vip, found),
            };
            let of_vip = BlockUse {
                blocks: blocks.open.iter().chain(draining).copied().collect(),
                path: if in_use { VipPath::Direct } else { VipPath::ViaHolder },
                used: *told,
                message,
            };
            (*vip, of_vip)
        });
        reported.collect()
    }
}

/// The figure to report after `told`. Nothing in use is always told of.
fn steady(told: u16, used: u16, ports: usize) -> u16 {
    let near = usize::from(told.abs_diff(used)) * STEADY < ports;
    if near && used != 0 { told } else { used }
}

/// Which destination has nearly all ports, if one has.
fn shortage(vip: Vip, found: &Found) -> String {
    let full = found.ports.full.iter().find(|destination| destination.vip == vip);
    full.map_or_else(String::new, |to| {
        format!("nearly all ports are in use towards {} port {}", to.addr, to.port)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::port_use::{Destination, PortUse};

    fn vip() -> Vip {
        "192.0.2.222".parse().unwrap()
    }

    fn blocks(numbers: &[u32]) -> BTreeSet<Block> {
        numbers.iter().map(|number| (*number).try_into().unwrap()).collect()
    }

    fn own(open: &[u32], draining: &[u32]) -> Own {
        [(vip(), OwnBlocks { open: blocks(open), draining: blocks(draining) })].into()
    }

    fn found(own: &Own, looks: u64, drained_by: &[u32]) -> Found {
        let drained_by = blocks(drained_by).into_iter().map(|block| (vip(), block)).collect();
        Found { own: own.clone(), ports: PortUse { drained_by, ..PortUse::default() }, looks }
    }

    fn reported(uses: &mut BlockUses, own: &Own, found: &Found) -> BlockUse {
        uses.learn(own, found);
        uses.report(own, |_| None, &Verdicts::new(), found).remove(&vip()).unwrap()
    }

    #[test]
    fn a_block_that_drains_is_kept_until_nobody_has_it() {
        let mut uses = BlockUses::default();
        let of = own(&[1], &[2, 3]);
        assert_eq!(reported(&mut uses, &of, &Found::default()).blocks, blocks(&[1, 2, 3]));
        assert_eq!(reported(&mut uses, &of, &found(&of, 1, &[2])).blocks, blocks(&[1, 2, 3]));
        assert_eq!(reported(&mut uses, &of, &found(&of, 2, &[2])).blocks, blocks(&[1, 2]));
        // Freed is freed, whatever is looked for next.
        assert_eq!(reported(&mut uses, &of, &found(&of, 1, &[2])).blocks, blocks(&[1, 2]));
        // What was found when a block was open says nothing of it.
        let later = own(&[], &[1, 2, 3]);
        assert_eq!(reported(&mut uses, &later, &found(&of, 9, &[2])).blocks, blocks(&[1, 2]));
        // Given anew.
        let anew = own(&[3], &[]);
        assert_eq!(reported(&mut uses, &anew, &found(&of, 9, &[])).blocks, blocks(&[3]));
        let again = own(&[], &[3]);
        assert_eq!(reported(&mut uses, &again, &found(&anew, 9, &[])).blocks, blocks(&[3]));
    }

    #[test]
    fn the_path_is_direct_with_one_open_block_that_may_be_used() {
        let own = own(&[1, 2], &[3]);
        let mut uses = BlockUses::default();
        let mut report = |open: &[u32], hindrance, message: &str| {
            let direct = DirectVip { open: blocks(open), hindrance, ..DirectVip::default() };
            let verdict = Verdict { message: message.to_owned(), ..Verdict::default() };
            let verdicts = [(vip(), verdict)].into();
            let mut report = uses.report(&own, |_| Some(&direct), &verdicts, &Found::default());
            report.remove(&vip()).unwrap()
        };
        let unproven = report(&[], Some(Hindrance::NotProven), "no answer");
        assert_eq!((unproven.path, unproven.message.as_str()), (VipPath::ViaHolder, "no answer"));
        let unmarked = report(&[], Some(Hindrance::NoMarkBit), "no answer");
        assert_eq!(unmarked.path, VipPath::ViaHolder);
        assert!(unmarked.message.starts_with("--mark-mask leaves no bit"), "{unmarked:?}");
        let outside = report(&[], Some(Hindrance::NoUplink), "being proven");
        assert_eq!(outside.path, VipPath::ViaHolder);
        assert!(outside.message.contains("its pods are held"), "{outside:?}");
        let BlockUse { blocks: listed, path, used, message } =
            report(&[2], None, "no answer for 1");
        assert_eq!(listed, blocks(&[1, 2, 3]), "the new one too, which may be used any moment");
        assert_eq!((path, used, message.as_str()), (VipPath::Direct, 0, "no answer for 1"));
    }

    #[test]
    fn a_destination_without_ports_left_is_named() {
        let own = own(&[1], &[]);
        let addr = "203.0.113.9".parse().unwrap();
        let full = [Destination { vip: vip(), protocol: 6, addr, port: 443 }].into();
        let ports = PortUse { full, used: [(vip(), 1000)].into(), ..PortUse::default() };
        let found = Found { own: own.clone(), ports, looks: 1 };
        let BlockUse { used, message, .. } = reported(&mut BlockUses::default(), &own, &found);
        assert_eq!(used, 1000);
        assert_eq!(message, "nearly all ports are in use towards 203.0.113.9 port 443");
    }

    #[rstest]
    #[case(0, 63, 0)]
    #[case(0, 64, 64)]
    #[case(64, 100, 64)]
    #[case(64, 1, 64)]
    #[case(64, 0, 0)]
    #[case(1000, 900, 900)]
    fn small_changes_of_use_are_not_told(#[case] told: u16, #[case] used: u16, #[case] now: u16) {
        assert_eq!(steady(told, used, 1024), now);
    }
}
