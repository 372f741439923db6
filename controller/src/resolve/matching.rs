//! Which claims a pod matches.

use std::collections::HashMap;

use shared::crd::{Kind, LabelSelector};

use super::claims::{Claim, What};
use super::owners::Owners;
use crate::model::Pod;

/// The claims by what they name, so that a pod looks only at those that may be about it.
pub(super) struct Matching<'a> {
    namespaces: HashMap<&'a str, InNamespace<'a>>,
    owners: Owners<'a>,
}

/// The claims on pods of one namespace, as places in the list of claims.
#[derive(Default)]
struct InNamespace<'a> {
    pods: HashMap<&'a str, Vec<usize>>,
    owners: HashMap<(Kind, &'a str), Vec<usize>>,
    selected: Vec<(usize, &'a LabelSelector)>,
    everything: Vec<usize>,
}

impl<'a> Matching<'a> {
    pub(super) fn new(claims: &[Claim<'a>], owners: Owners<'a>) -> Self {
        let mut namespaces: HashMap<&str, InNamespace<'_>> = HashMap::new();
        for (place, claim) in claims.iter().enumerate() {
            let of = namespaces.entry(claim.target.namespace).or_default();
            match claim.target.what {
                What::Pod(name) => of.pods.entry(name).or_default().push(place),
                What::Owner(kind, name) => of.owners.entry((kind, name)).or_default().push(place),
                What::Selected(selector) => of.selected.push((place, selector)),
                What::Everything => of.everything.push(place),
            }
        }
        Self { namespaces, owners }
    }

    /// Puts the places of the claims that the pod matches in `places`, the winner first.
    pub(super) fn find(&self, pod: &'a Pod, places: &mut Vec<usize>) {
        places.clear();
        let Some(of) = self.namespaces.get(pod.namespace.as_str()) else { return };
        places.extend(of.pods.get(pod.name.as_str()).into_iter().flatten());
        if !of.owners.is_empty() {
            let owners = self.owners.of(pod);
            places.extend(owners.filter_map(|owner| of.owners.get(&owner)).flatten());
        }
        let selected = of.selected.iter().filter(|(_, selector)| selector.matches(&pod.labels));
        places.extend(selected.map(|(place, _)| place));
        places.extend(&of.everything);
        places.sort_unstable();
    }
}
