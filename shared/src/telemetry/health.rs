//! Whether a program's main loop turns, and whether it has done its work once.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A handle on the health of a program; clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    started: Instant,
    stuck_after: Duration,
    /// Milliseconds from `started` to the last beat.
    last_beat: AtomicU64,
    unready: Mutex<Option<Unready>>,
}

impl Health {
    /// Alive as of now, and not ready for the reason that it is starting.
    ///
    /// A main loop that does not [`beat`](Self::beat) for longer than `stuck_after` counts as stuck,
    /// so this must be longer than the loop ever waits or works.
    pub fn new(stuck_after: Duration) -> Self {
        let unready = Some(Unready("the first complete sync is not done yet".to_owned()));
        Self(Arc::new(State {
            started: Instant::now(),
            stuck_after,
            last_beat: AtomicU64::new(0),
            unready: Mutex::new(unready),
        }))
    }

    /// The main loop has made a turn.
    pub fn beat(&self) {
        let elapsed = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_beat.fetch_max(elapsed, Ordering::Relaxed);
    }

    /// The program does its work.
    pub fn set_ready(&self) {
        self.replace(None);
    }

    /// The program does not do its work, for this reason (made one line).
    pub fn set_unready(&self, reason: &str) {
        self.replace(Some(Unready(reason.split_whitespace().collect::<Vec<_>>().join(" "))));
    }

    /// Whether the main loop turns.
    pub fn alive(&self) -> Result<(), Stuck> {
        self.alive_at(Instant::now())
    }

    /// Whether the program does its work.
    pub fn ready(&self) -> Result<(), Unready> {
        let unready = self.0.unready.lock().unwrap_or_else(PoisonError::into_inner);
        unready.clone().map_or(Ok(()), Err)
    }

    fn replace(&self, unready: Option<Unready>) {
        *self.0.unready.lock().unwrap_or_else(PoisonError::into_inner) = unready;
    }

    fn alive_at(&self, now: Instant) -> Result<(), Stuck> {
        let last_beat = Duration::from_millis(self.0.last_beat.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(self.0.started).saturating_sub(last_beat);
        let limit = self.0.stuck_after;
        if silent > limit { Err(Stuck { silent, limit }) } else { Ok(()) }
    }
}

/// The main loop does not turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the main loop has not turned for {:.1} s, more than {:.1} s",
    silent.as_secs_f64(),
    limit.as_secs_f64()
)]
pub struct Stuck {
    /// Since when it did not turn.
    pub silent: Duration,
    /// How long it may take for a turn.
    pub limit: Duration,
}

/// Why the program does not do its work, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Unready(String);

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stops_turning_is_stuck_until_it_turns_again() {
        let health = Health::new(Duration::from_secs(5));
        let after = |secs| health.0.started + Duration::from_secs(secs);
        assert_eq!(health.alive_at(after(5)), Ok(()));
        let stuck = health.alive_at(after(7)).unwrap_err();
        assert_eq!(stuck.to_string(), "the main loop has not turned for 7.0 s, more than 5.0 s");
        health.0.last_beat.store(3_000, Ordering::Relaxed);
        assert_eq!(health.alive_at(after(7)), Ok(()));
        assert!(health.alive_at(after(9)).is_err());
    }

    #[test]
    fn readiness_comes_and_goes_with_a_reason_of_one_line() {
        let health = Health::new(Duration::from_secs(5));
        assert!(health.ready().is_err());
        health.clone().set_ready();
        assert_eq!(health.ready(), Ok(()));
        health.set_unready("nft failed:\n  no such table\n");
        assert_eq!(health.ready().unwrap_err().to_string(), "nft failed: no such table");
    }
}
