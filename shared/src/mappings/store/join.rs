//! What objects say of pods by their UIDs, and what is known of the addresses of those pods.

use std::collections::{BTreeMap, BTreeSet};

use super::MappingsStore;
use crate::mappings::Expected;
use crate::mappings::claims::PodObject;
use crate::{PodIp, PodUid, Vip};

/// What follows from both.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// What learnt addresses are mapped to.
    pub(super) claims: BTreeMap<PodIp, Option<Vip>>,
    /// Addresses of this node that objects name for other pods than those that have them now.
    pub(super) foreign: BTreeSet<PodIp>,
}

impl MappingsStore {
    pub(super) fn joined(&self) -> Joined {
        let mut joined = Joined::default();
        self.join_reported(&mut joined);
        self.join_own(&mut joined);
        joined
    }

    /// Other nodes' pods. A report counts for pods that this node's object expects, for no others.
    fn join_reported(&self, joined: &mut Joined) {
        for (object, named) in self.claims.named().filter(|(object, _)| !self.is_own(object)) {
            let Some(learnt) = self.reported.get(object) else { continue };
            for (uid, expected) in &named.expected {
                let ips = learnt.get(uid).into_iter().flatten();
                joined.claims.extend(ips.map(|ip| (*ip, expected.of(*ip))));
            }
        }
    }

    /// Pods of this node. Of an address, what the objects say of the pod that has it counts before
    /// what they say of the address: that may be about a pod that had it before.
    fn join_own(&self, joined: &mut Joined) {
        let own = || self.claims.named().filter(|(object, _)| self.is_own(object));
        let mut expected: BTreeMap<PodUid, Expected> = BTreeMap::new();
        let mut addresses: BTreeMap<PodUid, (&PodObject, &[PodIp])> = BTreeMap::new();
        let mut owners = BTreeMap::new();
        let mut gone: BTreeSet<PodUid> = BTreeSet::new();
        for (object, named) in own() {
            gone.extend(&named.gone);
            expected.extend(&named.expected);
            for (uid, ips) in &named.addresses {
                addresses.insert(*uid, (object, ips));
                owners.extend(ips.iter().map(|ip| (*ip, *uid)));
            }
        }
        for (uid, ips) in &self.learnt {
            for &ip in ips {
                if let Some(expected) = expected.get(uid) {
                    joined.claims.insert(ip, expected.of(ip));
                    continue;
                }
                // The API server has forgotten it, and its node is not done with it.
                if gone.contains(uid) {
                    joined.claims.insert(ip, None);
                    continue;
                }
                let owner = owners.get(&ip);
                if owner == Some(uid) {
                    continue;
                }
                // The pod has got another address since its object was written.
                let known = addresses.get(uid).and_then(|(object, ips)| {
                    let mut alike = ips.iter().filter(|known| known.is_ipv4() == ip.is_ipv4());
                    alike.find_map(|known| self.claims.entry(object, *known))
                });
                match known {
                    Some(vip) => drop(joined.claims.insert(ip, vip)),
                    None if owner.is_some() => drop(joined.foreign.insert(ip)),
                    // Nobody says whose it is: what is said of the address has to do.
                    None => {}
                }
            }
        }
    }
}
