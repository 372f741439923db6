//! When connection tracking is looked at: each look walks over every connection of the machine.

use std::time::Duration;

use super::{Own, OwnBlocks};

/// The least between two looks.
pub const AT_LEAST: Duration = Duration::from_secs(1);
/// Between two looks where nothing can run short: the figures are told to people.
const AT_EASE: Duration = Duration::from_secs(15);
/// Between looks for connections that keep a block from being given back.
const DRAINING: Duration = Duration::from_secs(5);
/// No more of the time than one part in so many.
const SHARE: u32 = 20;

/// How long after a look the next is due, given how many connections of whatever kind the machine has,
/// and how long that look took.
pub fn pace(own: &Own, connections: usize, took: Duration) -> Duration {
    let least = own.values().filter(|own| !own.open.is_empty()).map(OwnBlocks::ports).min();
    // By the next look there may be more: half of the ports is early enough to begin.
    let may_run_short = least.is_some_and(|ports| connections >= ports / 2);
    let is_draining = own.values().any(|own| !own.draining.is_empty());
    let interval = match (may_run_short, is_draining) {
        (true, _) => AT_LEAST,
        (false, true) => DRAINING,
        (false, false) => AT_EASE,
    };
    interval.max(took * SHARE)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::little_is_there(2, 0, 1023, 0, 15_000)]
    #[case::much_is_there(2, 0, 1024, 0, 1000)]
    #[case::a_look_takes_long(2, 0, 500_000, 200, 4000)]
    #[case::a_block_is_draining(2, 1, 10, 0, 5000)]
    #[case::all_are_draining(0, 1, 500_000, 0, 5000)]
    fn looks_are_as_frequent_as_is_needed(
        #[case] open: u32,
        #[case] draining: u32,
        #[case] connections: usize,
        #[case] took: u64,
        #[case] expected: u64,
    ) {
        let blocks = |from: u32, count| (from..from + count).map(|n| n.try_into().unwrap());
        let own =
            OwnBlocks { open: blocks(1, open).collect(), draining: blocks(20, draining).collect() };
        let own = [("192.0.2.1".parse().unwrap(), own)].into();
        let pace = pace(&own, connections, Duration::from_millis(took));
        assert_eq!(pace, Duration::from_millis(expected));
    }
}
