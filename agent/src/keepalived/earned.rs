//! Pure: whether a VIP came to this node from a holder that fell silent, or because this node hears nobody.
//!
//! After its cable was plugged in a node may hear nothing for a while: a switch can take half a minute to forward. Its
//! keepalived takes every VIP then. That shall not count as holding: else the node would take VIPs from those that
//! really serve them as soon as it is heard.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared::Vip;

/// Beside three adverts that are missed and one that is late: what a busy node takes to notice.
const NOTICED_WITHIN: Duration = Duration::from_millis(300);

/// When VIPs were last known to be somewhere.
#[derive(Debug, Default)]
pub(super) struct Earned {
    fresh: Duration,
    heard_at: BTreeMap<Vip, Instant>,
    left_at: BTreeMap<Vip, Instant>,
}

impl Earned {
    pub(super) fn new(advert_interval: Duration) -> Self {
        Self { fresh: advert_interval * 4 + NOTICED_WITHIN, ..Self::default() }
    }

    /// Another node serves the VIP.
    pub(super) fn heard(&mut self, vip: Vip, now: Instant) {
        self.heard_at.insert(vip, now);
    }

    /// The VIP has left this node.
    pub(super) fn left(&mut self, vip: Vip, now: Instant) {
        self.left_at.insert(vip, now);
    }

    /// Whether a VIP that comes to this node now comes from a holder that was heard until a moment ago, or is new to it.
    pub(super) fn comes_rightly(&self, vip: Vip, now: Instant) -> bool {
        match (self.heard_at.get(&vip), self.left_at.get(&vip)) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(heard), left) => {
                left.is_none_or(|left| left < heard) && now.duration_since(*heard) <= self.fresh
            }
        }
    }

    pub(super) fn keep_only(&mut self, wanted: impl Fn(&Vip) -> bool) {
        self.heard_at.retain(|vip, _| wanted(vip));
        self.left_at.retain(|vip, _| wanted(vip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_comes_rightly_when_it_is_new_or_its_holder_was_just_heard() {
        let vip = "192.0.2.7".parse().unwrap();
        let mut earned = Earned::new(Duration::from_millis(100));
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert!(earned.comes_rightly(vip, start), "nobody had it");
        earned.heard(vip, after(100));
        assert!(earned.comes_rightly(vip, after(450)), "its holder has gone");
        assert!(!earned.comes_rightly(vip, after(2000)), "we were deaf");
        earned.left(vip, after(3000));
        assert!(!earned.comes_rightly(vip, after(3400)), "nobody has it, as far as we hear");
        earned.heard(vip, after(4000));
        assert!(earned.comes_rightly(vip, after(4300)), "who had it after us has gone");
        earned.keep_only(|_| false);
        assert!(earned.comes_rightly(vip, after(9000)));
    }
}
