//! Unknown pods never leave: only what the controller has said of a pod makes it known.
//!
//! Pods that were there when the agent began are known: what runs is not cut off.

use std::collections::BTreeSet;

use shared::{PodIp, PodUid};

use super::{Assigned, MOST, Unsure, Vouched};
use crate::pod_tables::PodTables;

/// What is known of pods under that rule.
#[derive(Clone, Debug, Default)]
pub struct Strict {
    /// What was there at the beginning; `None` before that.
    before: Option<Assigned>,
    /// Pods of which it was said that nothing is for them. That is not taken back: what is said of a
    /// pod later goes by its VIP.
    uncovered: BTreeSet<PodUid>,
    /// What was known last.
    known: BTreeSet<PodIp>,
}

impl Strict {
    /// What follows from what is said of pods and from what is assigned; `seen` is what the kernel
    /// holds, which at the beginning is of an agent before this one.
    pub fn vouch(
        &mut self,
        expected: &BTreeSet<PodUid>,
        uncovered: BTreeSet<PodUid>,
        assigned: Option<&Assigned>,
        seen: &PodTables,
    ) -> Vouched {
        let before = self.before.get_or_insert_with(|| {
            let mut before = assigned.cloned().unwrap_or_default();
            if seen.unsure == [Unsure::Always; 2] {
                before.retain(|_, ip| seen.known.contains(ip));
            }
            before
        });
        if let Some(assigned) = assigned {
            before.retain(|uid, ip| match uid {
                Some(uid) => assigned.pods.get(uid).is_some_and(|ips| ips.contains(ip)),
                None => assigned.others.contains(ip),
            });
            self.uncovered.extend(uncovered);
            self.uncovered.retain(|uid| assigned.pods.contains_key(uid));
            let said = assigned.pods.iter().filter(|(uid, _)| self.uncovered.contains(*uid));
            let pods = said.chain(&before.pods).filter(|(uid, _)| !expected.contains(*uid));
            let ips = pods.flat_map(|(_, ips)| ips).chain(&before.others);
            self.known = ips.take(MOST).copied().collect();
        }
        Vouched { known: self.known.clone(), unsure: Unsure::Always }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u8) -> PodUid {
        format!("8f14e45f-ceea-467f-a0e6-5d1c5a3b7c{number:02x}").parse().unwrap()
    }

    fn ips(numbers: &[u8]) -> BTreeSet<PodIp> {
        numbers.iter().map(|number| format!("10.244.1.{number}").parse().unwrap()).collect()
    }

    /// Each pod with the address of the same number.
    fn assigned(pods: &[u8]) -> Assigned {
        let pods = pods.iter().map(|number| (uid(*number), ips(&[*number]))).collect();
        Assigned { pods, ..Assigned::default() }
    }

    struct Node(Strict, PodTables);

    impl Node {
        fn knows(
            &mut self,
            expected: &[u8],
            uncovered: &[u8],
            pods: Option<&[u8]>,
        ) -> BTreeSet<PodIp> {
            let uids = |numbers: &[u8]| numbers.iter().map(|number| uid(*number)).collect();
            let assigned = pods.map(assigned);
            let Self(strict, seen) = self;
            let vouched = strict.vouch(&uids(expected), uids(uncovered), assigned.as_ref(), seen);
            assert_eq!(vouched.unsure, Unsure::Always);
            vouched.known
        }
    }

    #[test]
    fn a_pod_is_known_when_the_controller_has_said_that_nothing_is_for_it() {
        let mut node = Node(Strict::default(), PodTables::default());
        assert_eq!(node.knows(&[], &[], Some(&[1])), ips(&[1]), "it was there before");
        assert_eq!(node.knows(&[], &[], Some(&[1, 2])), ips(&[1]));
        assert_eq!(node.knows(&[], &[2], Some(&[1, 2])), ips(&[1, 2]));
        assert_eq!(node.knows(&[], &[], Some(&[1, 2])), ips(&[1, 2]), "said is said");
        assert_eq!(node.knows(&[2], &[], Some(&[1, 2])), ips(&[1]), "an Egress has come");
        assert_eq!(node.knows(&[], &[], None), ips(&[1]), "nothing is told any more");
        assert_eq!(node.knows(&[], &[], Some(&[2])), ips(&[2]));
        assert_eq!(node.knows(&[], &[], Some(&[])), ips(&[]));
        assert_eq!(node.knows(&[], &[], Some(&[1, 2])), ips(&[]), "others have the addresses now");
    }

    #[test]
    fn what_an_agent_before_did_not_know_stays_unknown() {
        let seen =
            PodTables { known: ips(&[1, 3]), unsure: [Unsure::Always; 2], ..PodTables::default() };
        let mut node = Node(Strict::default(), seen);
        assert_eq!(node.knows(&[], &[], Some(&[1, 2])), ips(&[1]));
    }
}
