//! What happens to each address of a pod.

use shared::mappings::Expected;
use shared::{PodIp, Vip};

use super::claims::{Claim, Effect};

/// The claims that decide about one pod: the first that covers each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deciding {
    ipv4: Option<usize>,
    ipv6: Option<usize>,
}

impl Deciding {
    /// Of the claims at these places, the winner first.
    pub(super) fn among(places: &[usize], claims: &[Claim<'_>]) -> Self {
        let first = |ipv4: bool| {
            let covers =
                |place: &&usize| claims.get(**place).is_some_and(|claim| claim.covers(ipv4));
            places.iter().find(covers).copied()
        };
        Self { ipv4: first(true), ipv6: first(false) }
    }

    /// The claim that decides for the family.
    pub(super) fn of_family(self, ipv4: bool) -> Option<usize> {
        if ipv4 { self.ipv4 } else { self.ipv6 }
    }

    /// Whether the claim at that place decides anything.
    pub(super) fn includes(self, place: usize) -> bool {
        self.ipv4 == Some(place) || self.ipv6 == Some(place)
    }

    /// What to publish for an address of the pod, if anything.
    ///
    /// A family that nothing is said of is held when the other one is mapped or held: a pod must
    /// not leave by IPv6 with the node's address because its VIP is an IPv4 one.
    pub(super) fn mapping(self, ip: PodIp, claims: &[Claim<'_>]) -> Option<(PodIp, Option<Vip>)> {
        let effect = |ipv4: bool| self.effect(ipv4, claims);
        match (effect(ip.is_ipv4()), effect(!ip.is_ipv4())) {
            (Some(Effect::Map(vip)), _) => Some((ip, Some(vip))),
            (Some(Effect::Hold), _) | (None, Some(Effect::Map(_) | Effect::Hold)) => {
                Some((ip, None))
            }
            (Some(Effect::Release), _) | (None, Some(Effect::Release) | None) => None,
        }
    }

    /// What to publish for the pod while its addresses are not known, if anything.
    ///
    /// A family that is to leave with the node's address is held until then if the other one is not:
    /// there is no word for it, and it is for a moment.
    pub(super) fn expected(self, claims: &[Claim<'_>]) -> Option<Expected> {
        let effects = [true, false].map(|ipv4| self.effect(ipv4, claims));
        let is_held = effects.contains(&Some(Effect::Hold));
        let vips = effects.into_iter().filter_map(|effect| match effect {
            Some(Effect::Map(vip)) => Some(vip),
            _ => None,
        });
        let expected = vips.fold(Expected::default(), Expected::with);
        (is_held || expected != Expected::default()).then_some(expected)
    }

    fn effect(self, ipv4: bool, claims: &[Claim<'_>]) -> Option<Effect> {
        claims.get(self.of_family(ipv4)?).map(|claim| claim.effect)
    }
}
