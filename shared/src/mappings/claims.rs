//! Which of the entries that name one pod counts.
//!
//! A claim is one entry of one object. The claims on a pod are ordered: what was learnt on this node
//! before a node's object, and that before the cluster's, then by name; within an object the proper spelling of the address before others, then
//! by key. The first one counts, also when its value is bad: then the pod is held.

mod named;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::named::{Named, UidKey};
use super::Violation;
use crate::config_map::{self, PodKey, Reason, Rejected, is_key_of, key, pod_key, pod_value};
use crate::{PodIp, Vip};

/// An object with pods. The order is who wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PodObject {
    /// Not an object: what follows from UIDs in objects and addresses learnt on this node. An object
    /// that still names a pod by its UID does not know of its addresses, so what it says of them is
    /// about a pod that had them before.
    Learnt,
    OfNode(Arc<str>),
    Cluster,
}

impl PodObject {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Learnt => "addresses learnt on the node".to_owned(),
            Self::OfNode(node) => config_map::pods_of_node(node),
            Self::Cluster => config_map::PODS.to_owned(),
        }
    }
}

/// Pod and key of an entry. `spelling` is the key if it is not the proper one for the address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EntryKey {
    pod: PodIp,
    spelling: Option<Box<str>>,
}

/// What a key stands for.
enum AnyKey {
    Entry(EntryKey),
    Named(UidKey),
}

impl AnyKey {
    fn read(text: &str) -> Result<Self, Reason> {
        Ok(match pod_key(text)? {
            PodKey::Uid(uid) => Self::Named(UidKey::Pod(uid)),
            PodKey::AddressesOf(uid) => Self::Named(UidKey::Addresses(uid)),
            PodKey::Ip(pod) => {
                let proper = is_key_of(text, pod.addr());
                Self::Entry(EntryKey { pod, spelling: (!proper).then(|| text.into()) })
            }
        })
    }
}

impl EntryKey {
    fn text(&self) -> String {
        self.spelling.as_deref().map_or_else(|| key(self.pod.addr()), str::to_owned)
    }
}

/// What an entry asks for; `Err` keeps what a report needs of a bad value.
type Claim = Result<Option<Vip>, Box<(String, Reason)>>;

fn read_claim(pod: PodIp, value: &str) -> Claim {
    pod_value(pod, value).map_err(|reason| Box::new((crate::address::shortened(value), reason)))
}

fn wish(claim: &Claim) -> Option<Vip> {
    *claim.as_ref().unwrap_or(&None)
}

#[derive(Debug, Default)]
struct ObjectClaims {
    entries: BTreeMap<EntryKey, Claim>,
    named: Named,
    /// Keys that stand for nothing, and UIDs with a bad value.
    bad_keys: BTreeMap<String, Rejected>,
}

/// What a change of claims is about.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Pods on which the claims differ, in ascending order.
    pub(super) pods: Vec<PodIp>,
    /// Whether something else is said of pods by their UIDs.
    pub(super) named: bool,
}

impl ObjectClaims {
    fn read(object: &PodObject, data: &BTreeMap<String, String>) -> Self {
        let mut entries = Vec::with_capacity(data.len());
        let mut claims = Self::default();
        for (text, value) in data {
            match AnyKey::read(text) {
                Ok(AnyKey::Entry(key)) => {
                    let claim = read_claim(key.pod, value);
                    entries.push((key, claim));
                }
                Ok(AnyKey::Named(key)) => drop(claims.name(object, key, text, Some(value))),
                Err(reason) => claims.reject(object, text, value, reason),
            }
        }
        claims.entries = entries.into_iter().collect();
        claims
    }

    /// What was learnt on this node.
    fn learnt(pods: BTreeMap<PodIp, Option<Vip>>) -> Self {
        let claim = |(pod, vip)| (EntryKey { pod, spelling: None }, Ok(vip));
        Self { entries: pods.into_iter().map(claim).collect(), ..Self::default() }
    }

    fn set(&mut self, object: &PodObject, text: &str, value: Option<&str>) -> Touched {
        let touched = |pod: PodIp| Touched { pods: vec![pod], named: false };
        match (AnyKey::read(text), value) {
            (Ok(AnyKey::Entry(key)), Some(value)) => {
                let pod = key.pod;
                self.entries.insert(key, read_claim(pod, value));
                touched(pod)
            }
            (Ok(AnyKey::Entry(key)), None) => {
                self.entries.remove(&key).map(|_| touched(key.pod)).unwrap_or_default()
            }
            (Ok(AnyKey::Named(key)), value) => {
                Touched { pods: Vec::new(), named: self.name(object, key, text, value) }
            }
            (Err(reason), Some(value)) => {
                self.reject(object, text, value, reason);
                Touched::default()
            }
            (Err(_), None) => {
                self.bad_keys.remove(text);
                Touched::default()
            }
        }
    }

    /// Takes in what is said of a pod by its UID; whether that differs from before.
    fn name(&mut self, object: &PodObject, key: UidKey, text: &str, value: Option<&str>) -> bool {
        self.bad_keys.remove(text);
        let (differs, reason) = self.named.set(key, value);
        if let Some(reason) = reason {
            self.reject(object, text, value.unwrap_or_default(), reason);
        }
        differs
    }

    fn reject(&mut self, object: &PodObject, text: &str, value: &str, reason: Reason) {
        let rejected = Rejected::new(&object.name(), text, value, reason);
        self.bad_keys.insert(text.to_owned(), rejected);
    }

    /// The pods with several claims, or a bad one.
    fn suspects(&self) -> BTreeSet<PodIp> {
        let followers = self.entries.keys().skip(1).map(|key| Some(key.pod)).chain([None]);
        self.entries
            .iter()
            .zip(followers)
            .filter(|((key, claim), follower)| claim.is_err() || *follower == Some(key.pod))
            .map(|((key, _), _)| key.pod)
            .collect()
    }

    fn of_pod(&self, pod: PodIp) -> impl Iterator<Item = (&EntryKey, &Claim)> {
        let first = EntryKey { pod, spelling: None };
        self.entries.range(first..).take_while(move |(key, _)| key.pod == pod)
    }
}

/// The pods of which the entries differ, in ascending order.
fn differing(old: &BTreeMap<EntryKey, Claim>, new: &BTreeMap<EntryKey, Claim>) -> Vec<PodIp> {
    let mut pods = Vec::with_capacity(if old.is_empty() { new.len() } else { 0 });
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        let Some((key, _)) = gone.or(come) else { break };
        if gone != come {
            pods.push(key.pod);
        }
    }
    pods.dedup();
    pods
}

/// All claims of all objects.
#[derive(Debug)]
pub(super) struct Claims {
    objects: BTreeMap<PodObject, ObjectClaims>,
    claimants: BTreeSet<(PodIp, PodObject)>,
    /// Pods on which there may be something to report: several claims, or a bad one.
    suspects: BTreeSet<PodIp>,
    /// Sorts before every object.
    lowest: PodObject,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            claimants: BTreeSet::new(),
            suspects: BTreeSet::new(),
            lowest: PodObject::Learnt,
        }
    }
}

impl Claims {
    /// Replaces all entries of an object; gives what that is about. O(entries).
    pub(super) fn replace(
        &mut self,
        object: &PodObject,
        data: &BTreeMap<String, String>,
    ) -> Touched {
        self.replace_with(object, ObjectClaims::read(object, data))
    }

    /// Replaces all that was learnt; gives the pods whose claims changed, in ascending
    /// order.
    pub(super) fn learn(&mut self, pods: BTreeMap<PodIp, Option<Vip>>) -> Vec<PodIp> {
        self.replace_with(&PodObject::Learnt, ObjectClaims::learnt(pods)).pods
    }

    fn replace_with(&mut self, object: &PodObject, new: ObjectClaims) -> Touched {
        let old = self.objects.remove(object).unwrap_or_default();
        let touched = differing(&old.entries, &new.entries);
        let mut unsettled = Vec::new();
        if old.entries.is_empty() && touched.len() >= self.claimants.len() {
            // in bulk, but for the pods of other objects, which the suspects depend on
            let claimed = |pod: &&PodIp| self.of_pod(**pod).next().is_some();
            unsettled.extend(touched.iter().filter(claimed));
            self.claimants.append(&mut touched.iter().map(|&pod| (pod, object.clone())).collect());
            self.suspects.append(&mut new.suspects());
        } else {
            unsettled.clone_from(&touched);
        }
        let named = old.named != new.named;
        self.objects.insert(object.clone(), new);
        for pod in unsettled {
            self.note(pod, object);
        }
        Touched { pods: touched, named }
    }

    /// What objects say of pods by their UIDs, the object that wins last.
    pub(super) fn named(&self) -> impl Iterator<Item = (&PodObject, &Named)> {
        self.objects.iter().rev().map(|(object, claims)| (object, &claims.named))
    }

    /// What that object asks for under the pod's address; `None` if it says nothing of it.
    #[expect(clippy::option_option, reason = "the inner one is the value of a mapping")]
    pub(super) fn entry(&self, object: &PodObject, pod: PodIp) -> Option<Option<Vip>> {
        let mut of_pod = self.objects.get(object)?.of_pod(pod);
        of_pod.next().map(|(_, claim)| wish(claim))
    }

    /// Sets or removes one entry of an object; gives what that is about.
    pub(super) fn set(&mut self, object: &PodObject, key: &str, value: Option<&str>) -> Touched {
        let touched = self.objects.entry(object.clone()).or_default().set(object, key, value);
        for &pod in &touched.pods {
            self.note(pod, object);
        }
        touched
    }

    /// What the claim that counts asks for; `None` if there is no claim on the pod.
    #[expect(clippy::option_option, reason = "the inner one is the value of a mapping")]
    pub(super) fn winner(&self, pod: PodIp) -> Option<Option<Vip>> {
        self.of_pod(pod).next().map(|(_, _, claim)| wish(claim))
    }

    /// Every entry that does not count, or not as it was meant. Unsorted.
    ///
    /// `impossible` are the pod IPs that cannot be mapped at all, with the reason.
    pub(super) fn rejected(&self, impossible: &BTreeMap<PodIp, Violation>) -> Vec<Rejected> {
        let bad_keys = self.objects.values().flat_map(|object| object.bad_keys.values().cloned());
        let mut rejected: Vec<Rejected> = bad_keys.collect();
        for &pod in impossible.keys().chain(&self.suspects).collect::<BTreeSet<_>>() {
            self.judge(pod, impossible.get(&pod).copied(), &mut rejected);
        }
        rejected
    }

    fn judge(&self, pod: PodIp, violation: Option<Violation>, rejected: &mut Vec<Rejected>) {
        let mut claims = self.of_pod(pod).peekable();
        let Some(&(winning_object, winning_key, winner)) = claims.peek() else { return };
        for (object, key, claim) in claims {
            let reason = match (violation, claim) {
                (Some(violation), _) => Reason::Violation(violation),
                (None, Err(bad)) => bad.1.clone(),
                // Nobody's fault: whoever wrote the others is about to hear of it.
                (None, Ok(_)) if *winning_object == PodObject::Learnt => continue,
                (None, Ok(vip)) if *vip != wish(winner) => {
                    Reason::Contradicted { object: winning_object.name(), key: winning_key.text() }
                }
                (None, Ok(_)) => continue,
            };
            let value = match claim {
                Ok(vip) => vip.map_or_else(String::new, |vip| vip.to_string()),
                Err(bad) => bad.0.clone(),
            };
            rejected.push(Rejected::new(&object.name(), &key.text(), &value, reason));
        }
    }

    fn of_pod(&self, pod: PodIp) -> impl Iterator<Item = (&PodObject, &EntryKey, &Claim)> {
        let claimants = self.claimants.range((pod, self.lowest.clone())..);
        claimants.take_while(move |(claimed, _)| *claimed == pod).flat_map(move |(_, object)| {
            let claims = self.objects.get(object).into_iter();
            claims.flat_map(move |claims| claims.of_pod(pod)).map(move |(key, c)| (object, key, c))
        })
    }

    /// Brings the indexes in line after the claims of `object` on `pod` changed.
    fn note(&mut self, pod: PodIp, object: &PodObject) {
        let claims = self.objects.get(object);
        if claims.is_some_and(|claims| claims.of_pod(pod).next().is_some()) {
            self.claimants.insert((pod, object.clone()));
        } else {
            self.claimants.remove(&(pod, object.clone()));
        }
        let mut of_pod = self.of_pod(pod);
        let first_is_bad = of_pod.next().is_some_and(|(_, _, claim)| claim.is_err());
        if first_is_bad || of_pod.next().is_some() {
            drop(of_pod);
            self.suspects.insert(pod);
        } else {
            drop(of_pod);
            self.suspects.remove(&pod);
        }
    }
}
