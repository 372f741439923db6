//! Waiting for what an event cannot tell: polling with a deadline.

use std::thread;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);

/// Asks every few milliseconds until `condition` holds; false when `deadline` has passed before.
///
/// The condition is asked at least once, and once more after the deadline.
#[must_use = "false means that it never came true"]
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let late = Instant::now() >= end;
        if condition() {
            return true;
        }
        if late {
            return false;
        }
        thread::sleep(INTERVAL);
    }
}

/// As [`wait_until`], for tests.
///
/// # Panics
/// When the condition does not come true in time.
#[track_caller]
pub fn eventually(deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(wait_until(deadline, condition), "did not come true within {deadline:?}");
}
