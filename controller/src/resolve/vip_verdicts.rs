//! What is said of each Vip.

use std::collections::BTreeMap;

use shared::Vip;

use super::age::key;
use super::vips::{Accepted, Refused, Vips};
use super::wording::listed;
use crate::model::{
    Finding, HeldReason, InUseReason, ObjectKey, PathVerdict, PlacedReason, UniqueReason,
    VipReason, VipVerdict,
};

/// Who uses a VIP.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    pub(super) egresses: Vec<ObjectKey>,
    pub(super) pods: usize,
}

/// What is said of each.
pub(super) fn verdicts(
    vips: &Vips<'_>,
    mut usage: BTreeMap<Vip, Usage>,
    mut placed: BTreeMap<Vip, Finding<PlacedReason>>,
) -> BTreeMap<ObjectKey, VipVerdict> {
    let accepted = vips.accepted.iter().filter_map(|(vip, accepted)| {
        let usage = usage.remove(vip).unwrap_or_default();
        Some((key(accepted.object), of_accepted(*vip, accepted, usage, placed.remove(vip)?)))
    });
    let mut verdicts: BTreeMap<_, _> = accepted.collect();
    verdicts.extend(vips.refused.iter().map(|refused| (key(refused.object), of_refused(refused))));
    verdicts
}

fn of_accepted(
    vip: Vip,
    accepted: &Accepted<'_>,
    usage: Usage,
    placed: Finding<PlacedReason>,
) -> VipVerdict {
    let Usage { egresses: mut used_by, pods } = usage;
    used_by.sort();
    let held = match accepted.holder {
        Some(node) if accepted.other_holders.is_empty() => {
            Finding::new(HeldReason::Held, format!("Node {node} holds {vip}"))
        }
        Some(node) => Finding::new(
            HeldReason::SeveralHolders,
            format!(
                "Node {node} holds {vip}, and so does {}: they do not hear one another's VRRP \
                 adverts, or somebody has added the address by hand",
                listed(&accepted.other_holders)
            ),
        ),
        None => Finding::new(
            HeldReason::NoHolder,
            format!(
                "no node reports that it holds {vip}, so external traffic of its pods is dropped; \
                 look at the pods of DaemonSets kube-keepalived-vip and kube-egress"
            ),
        ),
    };
    let in_use = if used_by.is_empty() {
        Finding::new(InUseReason::NotInUse, "no Egress uses it")
    } else {
        Finding::new(InUseReason::InUse, format!("used by Egress {}", listed(&used_by)))
    };
    let unique = if accepted.conflicts.is_empty() {
        Finding::new(UniqueReason::NoConflict, "no node has seen another machine use it")
    } else {
        Finding::new(
            UniqueReason::Conflict,
            format!(
                "other machines use {vip} or VRRP id {}: {}",
                accepted.route_id,
                listed(&accepted.conflicts)
            ),
        )
    };
    VipVerdict {
        accepted: Finding::new(
            VipReason::Accepted,
            format!("pods can leave with {vip} under route id {}", accepted.route_id),
        ),
        held,
        in_use,
        placed,
        unique,
        route_id: Some(accepted.route_id),
        holder: accepted.holder.map(str::to_owned),
        used_by,
        pods,
        path: Some(PathVerdict::via_holder()),
    }
}

fn of_refused(refused: &Refused<'_>) -> VipVerdict {
    VipVerdict {
        accepted: refused.why.clone(),
        held: Finding::new(HeldReason::NotAccepted, "it is not accepted"),
        in_use: Finding::new(InUseReason::NotAccepted, "it is not accepted"),
        placed: Finding::new(PlacedReason::NotAccepted, "it is not accepted"),
        unique: Finding::new(UniqueReason::NotAccepted, "it is not accepted"),
        route_id: None,
        holder: None,
        used_by: Vec::new(),
        pods: 0,
        path: None,
    }
}
