//! On which node each VIP is to be, and whether it is.

use std::collections::BTreeMap;

use shared::Vip;
use shared::crd::egress_mapper::{EgressMapper, Rebalance};

use super::gateways::{Gateways, State};
use super::vip_verdicts::Usage;
use super::vips::{Accepted, Vips};
use crate::candidates::{self, candidates};
use crate::model::{Finding, Observed, PlacedReason};

/// The nodes that may hold each VIP, and what there is to say of that.
pub(super) struct Placement {
    pub(super) candidates: BTreeMap<Vip, Vec<String>>,
    pub(super) placed: BTreeMap<Vip, Finding<PlacedReason>>,
}

pub(super) fn place(
    observed: &Observed,
    mapper: Option<&EgressMapper>,
    gateways: &Gateways<'_>,
    vips: &Vips<'_>,
    usage: &BTreeMap<Vip, Usage>,
) -> Placement {
    let always = mapper.and_then(|mapper| mapper.spec.rebalance) == Some(Rebalance::Always);
    let known = vips.accepted.iter().map(|(&vip, accepted)| {
        let movable = always || !usage.contains_key(&vip);
        let preferred = preferred(accepted);
        (vip, candidates::Vip { holder: accepted.holder, preferred, movable })
    });
    let known = known.collect();
    let candidates = candidates(&known, &gateways.nodes(), &observed.published_candidates);
    let placed = vips.accepted.iter().map(|(vip, accepted)| {
        let list = candidates.get(vip).map(Vec::as_slice).unwrap_or_default();
        (*vip, finding(accepted, list, gateways, observed))
    });
    let placed = placed.collect();
    Placement { candidates, placed }
}

fn preferred<'a>(accepted: &Accepted<'a>) -> Option<&'a str> {
    accepted.object.spec.preferred_node.as_deref()
}

fn finding(
    accepted: &Accepted<'_>,
    list: &[String],
    gateways: &Gateways<'_>,
    observed: &Observed,
) -> Finding<PlacedReason> {
    let Some(first) = list.first() else {
        return Finding::new(
            PlacedReason::NoGateway,
            "no node may hold it; look at the gatewaySelector of the EgressMapper and at the labels \
             of the nodes",
        );
    };
    if let Some(preferred) = preferred(accepted)
        && let Some(why) = unusable(preferred, gateways, observed)
        && accepted.holder != Some(preferred)
    {
        return why;
    }
    let holder = accepted.holder.filter(|holder| !list.iter().any(|node| node == holder));
    if let Some(holder) = holder {
        let why = match gateways.state(holder) {
            _ if preferred(accepted) == Some(first) => "which is preferred".to_owned(),
            None => format!("because Node {holder} is no gateway"),
            Some(state) if state.is_emptied() => {
                format!("because Node {holder} {}", state.wording())
            }
            Some(_) => "so that all gateways hold as many".to_owned(),
        };
        return Finding::new(
            PlacedReason::Moving,
            format!("it moves from Node {holder} to Node {first}, {why}"),
        );
    }
    Finding::new(
        PlacedReason::Placed,
        match accepted.holder {
            Some(holder) => format!("it stays on Node {holder}"),
            None => format!("Node {first} is the first to take it"),
        },
    )
}

/// Why the VIP cannot be on the preferred node.
fn unusable(
    preferred: &str,
    gateways: &Gateways<'_>,
    observed: &Observed,
) -> Option<Finding<PlacedReason>> {
    if !observed.nodes.iter().any(|node| node.name == preferred) {
        return Some(Finding::new(
            PlacedReason::PreferredNodeNotFound,
            format!(
                "preferred Node {preferred} does not exist, so any gateway may hold it; correct \
                 preferredNode or leave it out"
            ),
        ));
    }
    let why = match gateways.state(preferred) {
        None => "is not selected by the EgressMapper's gatewaySelector",
        Some(State::Ready) if gateways.is_in_sync(preferred) => return None,
        Some(State::Ready) => "has an agent that is not in sync",
        Some(state) => state.wording(),
    };
    Some(Finding::new(
        PlacedReason::PreferredNodeUnusable,
        format!("preferred Node {preferred} {why}; the VIP moves there when that is over"),
    ))
}
