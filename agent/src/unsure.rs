//! Which addresses of this node's pods are known, and whether packets of others are held back.
//!
//! Pure. While the mappings name a pod by its UID and no address of it is known, any address that
//! nobody knows may be that pod's: new connections from such addresses to outside are held. The
//! kernel is told until when, so an agent that dies meanwhile holds nobody for longer.

mod strict;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use shared::{PodIp, PodUid};

pub use self::strict::Strict;

/// How long a pod is waited for, from when it was first expected. A pod gets its address before its
/// images are pulled, within a second on an idle node; in a burst of 50 the last one takes half a
/// minute. One that takes longer waits for a volume, and nobody shall wait with it.
pub const EXPECTED_FOR: Duration = Duration::from_secs(30);
/// How many addresses are known at most: more than a node has pods, less than the kernel's sets hold.
const MOST: usize = 10_000;

/// Whether new connections of unknown pods to outside are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unsure {
    /// They pass.
    #[default]
    No,
    /// They are held until then.
    Until(Instant),
    /// They are held.
    Always,
}

impl Unsure {
    /// What is left of it.
    #[must_use]
    pub fn at(self, now: Instant) -> Self {
        match self {
            Self::Until(end) if end <= now => Self::No,
            other => other,
        }
    }
}

impl fmt::Display for Unsure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("let unknown pods pass"),
            Self::Until(_) => f.write_str("hold unknown pods for a while"),
            Self::Always => f.write_str("hold unknown pods"),
        }
    }
}

/// What is known of addresses of this node's pods, where CNI plugins' results tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses of pods' main interfaces.
    pub pods: BTreeMap<PodUid, BTreeSet<PodIp>>,
    /// Addresses of which it is not told which pod has them, or of further interfaces.
    pub others: BTreeSet<PodIp>,
}

impl Assigned {
    /// Keeps the addresses for which that holds; those of others are of no pod.
    fn retain(&mut self, keep: impl Fn(Option<&PodUid>, &PodIp) -> bool) {
        self.others.retain(|ip| keep(None, ip));
        self.pods.retain(|uid, ips| {
            ips.retain(|ip| keep(Some(uid), ip));
            !ips.is_empty()
        });
    }
}

/// What the kernel is to be told of pods on this node, but for what they are mapped to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// Addresses of pods of which it is known that they are not waited for.
    pub known: BTreeSet<PodIp>,
    /// What becomes of others.
    pub unsure: Unsure,
}

/// What holds no unknown pod.
pub static TRUSTING: Vouched = Vouched { known: BTreeSet::new(), unsure: Unsure::No };

/// Remembers since when pods are expected.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    since: BTreeMap<PodUid, Instant>,
}

impl Waiting {
    /// What follows from the pods that are expected and from what is assigned; where nothing tells of
    /// any pod, everybody would be unknown, so nobody is held.
    pub fn vouch(
        &mut self,
        expected: &BTreeSet<PodUid>,
        assigned: Option<&Assigned>,
        now: Instant,
    ) -> Vouched {
        self.since.retain(|uid, _| expected.contains(uid));
        for uid in expected {
            self.since.entry(*uid).or_insert(now);
        }
        let Some(Assigned { pods, others }) = assigned.filter(|of| !of.pods.is_empty()) else {
            return Vouched::default();
        };
        let awaited = self.since.iter().filter(|(uid, _)| !pods.contains_key(*uid));
        let until = awaited.map(|(_, since)| *since + EXPECTED_FOR).max();
        let unexpected = pods.iter().filter(|(uid, _)| !expected.contains(*uid));
        let known = unexpected.flat_map(|(_, ips)| ips).chain(others).take(MOST).copied().collect();
        Vouched { known, unsure: until.map_or(Unsure::No, Unsure::Until).at(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u8) -> PodUid {
        format!("8f14e45f-ceea-467f-a0e6-5d1c5a3b7c{number:02x}").parse().unwrap()
    }

    fn ip(text: &str) -> PodIp {
        text.parse().unwrap()
    }

    fn assigned(pods: &[(u8, &str)]) -> Assigned {
        let mut assigned = Assigned { others: [ip("10.244.1.99")].into(), ..Assigned::default() };
        for (number, text) in pods {
            assigned.pods.entry(uid(*number)).or_default().insert(ip(text));
        }
        assigned
    }

    #[test]
    fn unknown_pods_are_held_until_every_expected_pod_has_its_address() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let mut vouch = |expected: &[u8], pods: &[(u8, &str)], after: u64| {
            let expected = expected.iter().map(|number| uid(*number)).collect();
            let now = start + Duration::from_secs(after);
            waiting.vouch(&expected, Some(&assigned(pods)), now)
        };
        let other = (9, "10.244.1.9");
        let known = BTreeSet::from([ip("10.244.1.9"), ip("10.244.1.99")]);
        let until = |seconds| Unsure::Until(start + Duration::from_secs(seconds));

        let vouched = vouch(&[], &[other], 0);
        assert_eq!(vouched, Vouched { known: known.clone(), unsure: Unsure::No });
        let vouched = vouch(&[1, 2], &[other], 1);
        assert_eq!(vouched, Vouched { known: known.clone(), unsure: until(31) });
        assert_eq!(vouch(&[1, 2, 3], &[other], 5).unsure, until(35), "one more");
        let vouched = vouch(&[1, 2, 3], &[other, (3, "10.244.1.3")], 6);
        assert_eq!(vouched, Vouched { known, unsure: until(31) }, "an expected one is mapped");
        assert_eq!(vouch(&[2, 3], &[other, (3, "10.244.1.3")], 7).unsure, until(31));
        let vouched = vouch(&[2], &[other, (2, "10.244.1.2"), (3, "10.244.1.3")], 8);
        assert_eq!(vouched.unsure, Unsure::No);
        assert!(vouched.known.contains(&ip("10.244.1.3")), "its object names it by its address");
    }

    #[test]
    fn a_pod_that_never_gets_an_address_is_waited_for_once() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let expected = BTreeSet::from([uid(1)]);
        let mut vouch = |after| {
            waiting.vouch(&expected, Some(&assigned(&[(2, "10.244.1.2")])), start + after).unsure
        };
        assert_eq!(vouch(Duration::ZERO), Unsure::Until(start + EXPECTED_FOR));
        assert_eq!(vouch(EXPECTED_FOR), Unsure::No);
        assert_eq!(vouch(EXPECTED_FOR * 9), Unsure::No);
    }

    #[test]
    fn without_results_nobody_is_held() {
        let expected = BTreeSet::from([uid(1)]);
        let vouched = Waiting::default().vouch(&expected, None, Instant::now());
        assert_eq!(vouched, Vouched::default());
        let vouched = Waiting::default().vouch(&expected, Some(&assigned(&[])), Instant::now());
        assert_eq!(vouched, Vouched::default(), "of no pod");
    }
}
