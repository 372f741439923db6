//! Since when something is so, by name.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Names, each with the time since when something is so with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Since(BTreeMap<String, Instant>);

impl Since {
    /// Takes in whether it is so now; whether it has been for `long`. If not yet, `next` is at the
    /// latest when it will have been.
    pub(super) fn lasts(
        &mut self,
        name: &str,
        is_so: bool,
        long: Duration,
        now: Instant,
        next: &mut Option<Instant>,
    ) -> bool {
        if !is_so {
            self.0.remove(name);
            return false;
        }
        let since = match self.0.get(name) {
            Some(since) => *since,
            None => *self.0.entry(name.to_owned()).or_insert(now),
        };
        let at = since + long;
        if at > now {
            *next = Some(next.map_or(at, |next| next.min(at)));
        }
        at <= now
    }

    /// Since when it is so.
    pub(super) fn of(&self, name: &str) -> Option<Instant> {
        self.0.get(name).copied()
    }

    /// All times.
    pub(super) fn all(&self) -> impl Iterator<Item = Instant> {
        self.0.values().copied()
    }

    /// As if it had been so since then, if it is not known to be.
    pub(super) fn begin(&mut self, name: &str, since: Instant) {
        self.0.entry(name.to_owned()).or_insert(since);
    }

    pub(super) fn keep_only(&mut self, names: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| names(name));
    }
}
