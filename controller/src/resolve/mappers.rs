//! Which `EgressMapper` counts.

use std::collections::BTreeMap;

use shared::config_map::Rejected;
use shared::crd::EgressMapper;

use super::age::{age, key};
use super::gateways::Gateways;
use super::networks::complaint;
use super::wording::listed;
use crate::model::{Finding, MapperReason, MapperVerdict, ObjectKey, Observed};

/// The one that counts: the oldest of the controller's namespace.
pub(super) fn counting(observed: &Observed) -> Option<&EgressMapper> {
    let mappers = observed.mappers.iter().map(|mapper| &**mapper);
    mappers
        .filter(|mapper| mapper.metadata.namespace.as_ref() == Some(&observed.namespace))
        .min_by_key(|mapper| age(*mapper))
}

/// What is said of each.
pub(super) fn verdicts(
    observed: &Observed,
    rejected: &[Rejected],
    gateways: &Gateways<'_>,
) -> BTreeMap<ObjectKey, MapperVerdict> {
    let counting = counting(observed).map(key);
    let verdict = |mapper: &EgressMapper| {
        let key = key(mapper);
        let counts = Some(&key) == counting.as_ref();
        let accepted = if counts {
            accepted(rejected)
        } else if key.namespace == observed.namespace {
            let oldest = counting.clone().unwrap_or_default();
            Finding::new(
                MapperReason::NotTheOldest,
                format!("EgressMapper {oldest} is older and the only one that counts; remove one"),
            )
        } else {
            Finding::new(
                MapperReason::WrongNamespace,
                format!(
                    "EgressMappers count only in namespace {}, where the controller runs",
                    observed.namespace
                ),
            )
        };
        let (gateways, ready_gateways) =
            if counts { (gateways.count(), gateways.ready()) } else { (0, 0) };
        (key, MapperVerdict { accepted, counts, gateways, ready_gateways })
    };
    observed.mappers.iter().map(|mapper| verdict(mapper)).collect()
}

fn accepted(rejected: &[Rejected]) -> Finding<MapperReason> {
    if rejected.is_empty() {
        Finding::new(MapperReason::Accepted, "it is the EgressMapper that counts")
    } else {
        let complaints = listed(rejected.iter().map(complaint));
        Finding::new(
            MapperReason::InvalidNetworks,
            format!("what is usable counts, but not {complaints}"),
        )
    }
}
