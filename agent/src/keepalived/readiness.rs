//! Pure: from when on it counts for a VIP that the agent of this node is ready, or no longer is.
//!
//! Agents often go and come back all at once, as when an API server or a `DaemonSet` is replaced, and no two launchers
//! notice at the same moment. So that no VIP moves for that, its holder takes longer to count itself out, and the
//! others take longer to count themselves in.

use std::time::Duration;

use tokio::time::Instant;

/// How far apart launchers may notice the same: two questions to the agent, and a node that is busy.
const APART: Duration = Duration::from_secs(2);

/// What was last heard of the agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    is_ready: bool,
    counts_for_all_at: Instant,
    /// Nothing was heard of the agent yet: the first news counts at once.
    assumed: bool,
}

impl Readiness {
    /// Of an agent that nothing was heard of yet: not ready.
    pub(super) const fn unheard(now: Instant) -> Self {
        Self { is_ready: false, counts_for_all_at: now, assumed: true }
    }

    /// Hears the news.
    pub(super) fn hear(&mut self, is_ready: bool, now: Instant) {
        if self.assumed {
            *self = Self { is_ready, counts_for_all_at: now, assumed: false };
        } else if is_ready != self.is_ready {
            *self = Self { is_ready, counts_for_all_at: now + APART, assumed: false };
        }
    }

    /// Whether the agent counts as ready for a VIP that this node holds, or does not.
    pub(super) fn counts(self, holds: bool, now: Instant) -> bool {
        if now < self.counts_for_all_at { holds } else { self.is_ready }
    }

    /// When it counts for all VIPs.
    pub(super) const fn due(self) -> Instant {
        self.counts_for_all_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For the holder and for another node.
    fn counts(readiness: Readiness, now: Instant) -> [bool; 2] {
        [true, false].map(|holds| readiness.counts(holds, now))
    }

    #[tokio::test]
    async fn the_holder_counts_itself_out_last_and_the_others_count_themselves_in_last() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut readiness = Readiness::unheard(start);
        assert_eq!(counts(readiness, start), [false, false]);
        readiness.hear(true, start);
        assert_eq!(counts(readiness, start), [true, true]);

        readiness.hear(false, after(1000));
        assert_eq!(counts(readiness, after(2999)), [true, false]);
        assert_eq!(counts(readiness, after(3000)), [false, false]);
        readiness.hear(false, after(4000));
        assert_eq!(counts(readiness, after(4000)), [false, false], "that is no news");

        readiness.hear(true, after(5000));
        assert_eq!(counts(readiness, after(6999)), [true, false]);
        assert_eq!(counts(readiness, after(7000)), [true, true]);
    }

    proptest::proptest! {
        /// All agents go and come back, each launcher hears of it when it does.
        #[test]
        fn no_other_node_is_ever_better_than_the_holder(
            (lost, found) in ([0u64..1500, 0u64..1500], [4000u64..5500, 4000u64..5500]),
            look in 0u64..9000,
        ) {
            let start = Instant::now();
            let after = |millis| start + Duration::from_millis(millis);
            let [holder, other] = [0, 1].map(|node| {
                let mut readiness = Readiness::unheard(start);
                readiness.hear(true, start);
                for (at, is_ready) in [(lost[node], false), (found[node], true)] {
                    if at <= look {
                        readiness.hear(is_ready, after(at));
                    }
                }
                readiness.counts(node == 0, after(look))
            });
            proptest::prop_assert!(holder || !other);
        }
    }
}
