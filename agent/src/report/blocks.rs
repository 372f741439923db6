//! What the tables say of blocks of VIPs' ports.

use shared::RouteId;

use crate::kernel_state::{Observed, SeenTable};
use crate::ruleset::later_fragments;

/// The blocks that the comment of a chain's first rule names.
fn blocks_of(table: Option<&SeenTable>, chain: &str) -> Option<String> {
    let comment = table?.chains.get(chain)?.rules.first()?.comment.as_deref()?;
    let (_, blocks) = comment.split_once("blocks ")?;
    blocks.split_whitespace().next().map(str::to_owned)
}

/// Those that packets of this node may leave with.
pub(super) fn own(observed: &Observed, id: RouteId) -> Option<String> {
    blocks_of(observed.guard.as_ref(), &format!("direct_{id}"))
}

/// Those of them that new connections get.
pub(super) fn open(observed: &Observed, id: RouteId) -> Option<String> {
    blocks_of(observed.main.as_ref(), &format!("ports_{id}"))
}

/// To how many nodes something is passed on.
pub(super) fn passed_on_to(observed: &Observed, id: RouteId) -> usize {
    let chains = observed.ingress.as_ref().map(|table| &table.chains);
    chains.and_then(|chains| chains.get(&later_fragments(id))).map_or(0, |chain| chain.rules.len())
}
