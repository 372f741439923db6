//! Which VIP gets which route id.
//!
//! An id that is in use stays with its VIP: changing it would break what flows. So VIPs keep what
//! they have as long as their Vip does not ask for another one; then those that ask for one get it,
//! the older before the younger; the rest get the lowest free ids.

use std::collections::BTreeMap;

use shared::RouteId;

/// A VIP that needs a route id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The id that its Vip asks for.
    pub wanted: Option<RouteId>,
    /// The id that it has now.
    pub has: Option<RouteId>,
}

/// Why a VIP gets no route id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id that it asks for belongs to the VIP at this place of the list.
    TakenBy(usize),
    /// Every id is taken.
    NoneFree,
}

/// A route id for each, or why not; `needs` are ordered from old to young.
pub fn allocate(needs: &[Need]) -> Vec<Result<RouteId, Refusal>> {
    let mut owners: BTreeMap<RouteId, usize> = BTreeMap::new();
    for (place, need) in needs.iter().enumerate() {
        if let Some(has) = need.has.filter(|&has| need.wanted.is_none_or(|wanted| wanted == has)) {
            owners.entry(has).or_insert(place);
        }
    }
    for (place, need) in needs.iter().enumerate() {
        if let Some(wanted) = need.wanted {
            owners.entry(wanted).or_insert(place);
        }
    }
    let mut ids = by_place(&owners, needs.len());
    let mut free = RouteId::all().filter(|id| !owners.contains_key(id));
    for (need, id) in needs.iter().zip(&mut ids) {
        if need.wanted.is_none() && id.is_none() {
            *id = free.next();
        }
    }
    let outcome = |(need, id): (&Need, Option<RouteId>)| {
        id.ok_or_else(|| {
            let owner = need.wanted.and_then(|wanted| owners.get(&wanted));
            owner.map_or(Refusal::NoneFree, |&place| Refusal::TakenBy(place))
        })
    };
    needs.iter().zip(ids).map(outcome).collect()
}

fn by_place(owners: &BTreeMap<RouteId, usize>, places: usize) -> Vec<Option<RouteId>> {
    let mut ids = vec![None; places];
    for (&id, &place) in owners {
        if let Some(of_place) = ids.get_mut(place) {
            *of_place = Some(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::Refusal::{NoneFree, TakenBy};
    use super::*;

    fn id(number: u32) -> RouteId {
        RouteId::try_from(number).unwrap()
    }

    fn need(wanted: Option<u32>, has: Option<u32>) -> Need {
        Need { wanted: wanted.map(id), has: has.map(id) }
    }

    #[rstest]
    #[case::what_is_asked_for(&[need(Some(64), None)], &[Ok(64)])]
    #[case::the_lowest_free(&[need(None, None), need(Some(1), None), need(None, None)], &[Ok(2), Ok(1), Ok(3)])]
    #[case::the_older_gets_it(&[need(Some(9), None), need(Some(9), None)], &[Ok(9), Err(TakenBy(0))])]
    #[case::kept(&[need(None, Some(7)), need(None, None)], &[Ok(7), Ok(1)])]
    #[case::asked_for_beats_kept(&[need(Some(8), Some(7)), need(None, None)], &[Ok(8), Ok(1)])]
    #[case::in_use_is_not_taken_away(&[need(Some(7), Some(3)), need(None, Some(7))], &[Err(TakenBy(1)), Ok(7)])]
    #[case::in_use_as_asked_for(&[need(Some(7), None), need(Some(7), Some(7))], &[Err(TakenBy(1)), Ok(7)])]
    #[case::two_have_the_same(&[need(None, Some(7)), need(None, Some(7))], &[Ok(7), Ok(1)])]
    fn each_need_is_met_or_refused(#[case] needs: &[Need], #[case] ids: &[Result<u32, Refusal>]) {
        let expected: Vec<_> = ids.iter().map(|id_of| id_of.map(id)).collect();
        assert_eq!(allocate(needs), expected);
    }

    #[test]
    fn the_253rd_gets_none() {
        let ids = allocate(&[Need::default(); 253]);
        assert_eq!(ids.last(), Some(&Err(NoneFree)));
        assert_eq!(ids.iter().filter(|id| id.is_ok()).count(), 252);
    }

    proptest! {
        #[test]
        fn ids_stay_when_others_come_and_go(
            first in vec(any_need(), 1..20),
            others in vec(any_need(), 0..20),
            gone in vec(any::<bool>(), 20),
        ) {
            let settled: Vec<Need> = allocate(&first)
                .iter()
                .zip(&first)
                .filter_map(|(id, need)| Some(Need { has: Some(id.ok()?), ..*need }))
                .collect();
            let stay: Vec<Need> = settled.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(n, _)| *n).collect();
            // Others that are older and others that are younger.
            for split in [0, others.len() / 2, others.len()] {
                let (older, younger) = others.split_at(split);
                let fresh = |needs: &[Need]| -> Vec<Need> {
                    needs.iter().map(|need| Need { has: None, ..*need }).collect()
                };
                let all = [fresh(older), stay.clone(), fresh(younger)].concat();
                let ids = allocate(&all);
                for (need, id) in stay.iter().zip(&ids[split..]) {
                    prop_assert_eq!(*id, Ok(need.has.unwrap()));
                }
            }
        }

        #[test]
        fn no_id_has_two_owners(needs in vec(any_need(), 0..300)) {
            let ids: Vec<RouteId> = allocate(&needs).into_iter().flatten().collect();
            let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
            prop_assert_eq!(ids.len(), distinct.len());
        }
    }

    prop_compose! {
        fn any_need()(wanted in option::of(1u32..12), has in option::of(1u32..12)) -> Need {
            need(wanted, has)
        }
    }
}
