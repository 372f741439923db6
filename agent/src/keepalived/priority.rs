//! Pure: how much this node is to hold a VIP, as a VRRP priority made of parts.
//!
//! keepalived has one fixed priority ([`BASE`]) for every VIP and adds what two files say: one for the whole node,
//! which is to go or to stay ([`STOPPING`], [`STAYING`]), and one for each VIP, the [`Place`] of this node among its
//! candidates, higher while the node holds it and while its agent is ready. So nothing of it takes a reload. The higher priority is the master, at once; what is to weigh more must outweigh all
//! of what is to weigh less:
//!
//! | part | adds | weighs more than |
//! |---|---|---|
//! | rank among the candidates, the first is best | 0–54 | |
//! | this node holds the VIP | 55 | any rank: an old holder that comes back does not take it back |
//! | this node is a candidate | 16 | rank and holding of one that is not: a VIP leaves a node that is taken out |
//! | the agent here is ready | 126 | all of the above |
//!
//! A node that stops has the least priority there is. When all nodes are equally bad the rest still decides, so that
//! somebody holds the VIP and nothing flaps. A file that is missing counts as 0: the worst.

use shared::Vip;
use xxhash_rust::xxh3::xxh3_64;

/// Of every VIP, in keepalived's configuration: one more than the least priority, which is that of a node that stops.
pub const BASE: u8 = 2;

/// The best rank among candidates; far apart, for the higher of two is the faster one to take a VIP over.
const BEST: u8 = 54;
const HOLDS: u8 = BEST + 1;
/// The best rank among those that are no candidates.
const BEST_OF_OTHERS: u8 = 7;
const OTHER_HOLDS: u8 = BEST_OF_OTHERS + 1;
const CANDIDATE: u8 = BEST_OF_OTHERS + OTHER_HOLDS + 1;
const READY: u8 = CANDIDATE + BEST + HOLDS + 1;

/// What a node that is about to go adds to the priority of every VIP: anybody else is better.
pub const STOPPING: i16 = -253;
/// What any other adds to all.
pub const STAYING: i16 = 0;

/// This node's place among those that may hold a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Named, but not this node: it holds the VIP only if no named one can.
    Other(u8),
    /// Of this rank, higher is better.
    Candidate(u8),
}

impl Place {
    /// Among these nodes, best first. Without any, every node is one and a number that is always the same spreads the
    /// VIPs over them.
    pub fn of(vip: Vip, node: &str, candidates: &[String]) -> Self {
        if candidates.is_empty() {
            return Self::Candidate(spread(vip, node, BEST));
        }
        match candidates.iter().position(|candidate| candidate == node) {
            Some(position) => {
                let steps = candidates.len().saturating_sub(1).max(1);
                let behind = usize::from(BEST) * position.min(steps) / steps;
                Self::Candidate(BEST.saturating_sub(u8::try_from(behind).unwrap_or(BEST)))
            }
            None => Self::Other(spread(vip, node, BEST_OF_OTHERS)),
        }
    }

    /// What it adds to the priority of the VIP, by whether this node holds it and whether its agent is ready.
    pub const fn adds(self, holds: bool, is_ready: bool) -> u8 {
        let place = match (self, holds) {
            (Self::Other(rank), false) => rank,
            (Self::Other(rank), true) => rank + OTHER_HOLDS,
            (Self::Candidate(rank), false) => CANDIDATE + rank,
            (Self::Candidate(rank), true) => CANDIDATE + rank + HOLDS,
        };
        if is_ready { place + READY } else { place }
    }
}

/// From 0 to `most`, by what only the two decide.
fn spread(vip: Vip, node: &str, most: u8) -> u8 {
    let number = xxh3_64(format!("{node} {vip}").as_bytes()) % (u64::from(most) + 1);
    u8::try_from(number).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As keepalived computes it.
    fn priority(node: i16, place: Place, holds: bool, is_ready: bool) -> i16 {
        (i16::from(BASE) + node + i16::from(place.adds(holds, is_ready))).clamp(1, 254)
    }

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            (0..=BEST).prop_map(Place::Candidate),
            (0..=BEST_OF_OTHERS).prop_map(Place::Other)
        ]
    }

    proptest! {
        #[test]
        fn what_weighs_more_decides(
            (a, b) in (places(), places()), (a_holds, b_holds) in any::<(bool, bool)>()
        ) {
            let staying = |place, holds, is_ready| priority(STAYING, place, holds, is_ready);
            prop_assert!(staying(a, a_holds, true) > staying(b, b_holds, false));
            prop_assert!(staying(a, a_holds, false) > priority(STOPPING, b, b_holds, true));
            for is_ready in [false, true] {
                let [of_a, of_b] =
                    [(a, a_holds), (b, b_holds)].map(|(place, holds)| staying(place, holds, is_ready));
                match (a, b) {
                    (Place::Candidate(_), Place::Other(_)) => prop_assert!(of_a > of_b),
                    (Place::Other(_), Place::Candidate(_)) => prop_assert!(of_a < of_b),
                    _ if a_holds != b_holds => prop_assert_eq!(of_a > of_b, a_holds),
                    (Place::Candidate(x), Place::Candidate(y)) | (Place::Other(x), Place::Other(y)) => {
                        prop_assert_eq!(of_a.cmp(&of_b), x.cmp(&y));
                    }
                }
            }
        }

        #[test]
        fn candidates_rank_in_their_order_and_apart(count in 1usize..33) {
            let names: Vec<String> = (0..count).map(|n| format!("n{n}")).collect();
            let vip = "192.0.2.1".parse().unwrap();
            let ranks: Vec<Place> = names.iter().map(|name| Place::of(vip, name, &names)).collect();
            prop_assert_eq!(ranks[0], Place::Candidate(BEST));
            prop_assert!(ranks.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert!(matches!(Place::of(vip, "else", &names), Place::Other(_)));
        }
    }

    #[test]
    fn no_part_is_cut_off_by_the_limits_of_vrrp() {
        let best = BASE + Place::Candidate(BEST).adds(true, true);
        assert!(best <= 254, "{best}");
        let worst = BASE + Place::Other(0).adds(false, false);
        assert!(worst > 1, "{worst}");
    }

    #[test]
    fn without_candidates_vips_spread_over_nodes() {
        let nodes = ["n1", "n2", "n3"];
        let mut first = [0; 3];
        for number in 1..=252 {
            let vip: Vip = format!("192.0.2.{number}").parse().unwrap();
            let best = (0..3).max_by_key(|n| Place::of(vip, nodes[*n], &[])).unwrap();
            first[best] += 1;
        }
        assert!(first.iter().all(|count| (60..110).contains(count)), "{first:?}");
    }
}
