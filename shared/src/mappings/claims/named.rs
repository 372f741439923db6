//! What an object says of pods by their UIDs.

use std::collections::{BTreeMap, BTreeSet};

use crate::config_map::{GONE, Reason, UNCOVERED, expected_value, pod_addresses};
use crate::mappings::Expected;
use crate::{PodIp, PodUid};

/// A key that names a pod by its UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UidKey {
    /// What the pod will get.
    Pod(PodUid),
    /// The addresses that the object knows of it.
    Addresses(PodUid),
}

/// All of that in one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::mappings) struct Named {
    /// What pods will get whose addresses are not known.
    pub(in crate::mappings) expected: BTreeMap<PodUid, Expected>,
    /// Pods that get nothing.
    pub(in crate::mappings) uncovered: BTreeSet<PodUid>,
    /// Pods that were covered and do not exist any more.
    pub(in crate::mappings) gone: BTreeSet<PodUid>,
    /// Whose the addresses are that the object names.
    pub(in crate::mappings) addresses: BTreeMap<PodUid, Vec<PodIp>>,
}

/// What is said under one key.
#[derive(PartialEq, Eq)]
enum Said {
    Expected(Expected),
    Uncovered,
    Gone,
    Addresses(Vec<PodIp>),
}

impl Named {
    /// Takes in a value, or that the key is gone. Whether that differs from before, and what of the
    /// value cannot be used.
    pub(super) fn set(&mut self, key: UidKey, value: Option<&str>) -> (bool, Option<Reason>) {
        let before = self.take(key);
        let (said, reason) = match (key, value) {
            (_, None) => (None, None),
            (UidKey::Pod(_), Some(value)) if value.trim() == UNCOVERED => {
                (Some(Said::Uncovered), None)
            }
            (UidKey::Pod(_), Some(value)) if value.trim() == GONE => (Some(Said::Gone), None),
            (UidKey::Pod(_), Some(value)) => {
                let (expected, reason) = expected_value(value);
                (Some(Said::Expected(expected)), reason)
            }
            (UidKey::Addresses(_), Some(value)) => match pod_addresses(value) {
                Ok(ips) => (Some(Said::Addresses(ips)), None),
                Err(reason) => (None, Some(reason)),
            },
        };
        let differs = before != said;
        match (key, said) {
            (UidKey::Pod(uid), Some(Said::Expected(expected))) => {
                self.expected.insert(uid, expected);
            }
            (UidKey::Pod(uid), Some(Said::Uncovered)) => {
                self.uncovered.insert(uid);
            }
            (UidKey::Pod(uid), Some(Said::Gone)) => {
                self.gone.insert(uid);
            }
            (UidKey::Addresses(uid), Some(Said::Addresses(ips))) => {
                self.addresses.insert(uid, ips);
            }
            (UidKey::Addresses(_), Some(_))
            | (UidKey::Pod(_), Some(Said::Addresses(_)))
            | (_, None) => {}
        }
        (differs, reason)
    }

    fn take(&mut self, key: UidKey) -> Option<Said> {
        match key {
            UidKey::Pod(uid) => {
                let uncovered = self.uncovered.remove(&uid).then_some(Said::Uncovered);
                let gone = self.gone.remove(&uid).then_some(Said::Gone);
                self.expected.remove(&uid).map(Said::Expected).or(uncovered).or(gone)
            }
            UidKey::Addresses(uid) => self.addresses.remove(&uid).map(Said::Addresses),
        }
    }
}
