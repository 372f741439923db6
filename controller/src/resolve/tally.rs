//! What became of the pods of an Egress, and what is said of it.

use std::collections::BTreeSet;

use shared::{PodIp, Vip};

use super::age::key;
use super::assignment::Deciding;
use super::claims::{Claim, Effect, Target, What};
use super::vips::Vips;
use super::wording::{listed, pods};
use crate::model::{EgressReason, EgressVerdict, Finding, Pod};

/// What became of the pods that an Egress matches.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Those that can be mapped.
    pub(super) pods: usize,
    /// Those that leave with the VIP.
    pub(super) mapped: usize,
    /// Those without any address yet.
    pub(super) without_address: usize,
    /// Those that have no address of the VIP's family.
    pub(super) other_family: usize,
    /// Those whose address was given to a newer pod, or is a node's.
    pub(super) not_theirs: usize,
    /// Those that other Egresses decide about.
    pub(super) overridden: usize,
    /// The places of those Egresses.
    pub(super) by: BTreeSet<usize>,
    pub(super) host_network: usize,
    pub(super) finished: usize,
}

impl Tally {
    /// Counts what became of a pod that matches the claim at that place.
    pub(super) fn count(
        &mut self,
        pod: &Pod,
        place: usize,
        claim: &Claim<'_>,
        deciding: Deciding,
        published: &[(PodIp, Option<Vip>)],
    ) {
        if pod.finished {
            self.finished += 1;
            return;
        }
        if pod.host_network {
            self.host_network += 1;
            return;
        }
        self.pods += 1;
        if !deciding.includes(place) {
            self.overridden += 1;
            let covered = [true, false].into_iter().filter(|&ipv4| claim.covers(ipv4));
            self.by.extend(covered.filter_map(|ipv4| deciding.of_family(ipv4)));
            return;
        }
        let Effect::Map(vip) = claim.effect else { return };
        if published.iter().any(|(_, mapped)| *mapped == Some(vip)) {
            self.mapped += 1;
        } else if pod.ips.is_empty() {
            self.without_address += 1;
        } else if pod.ips.iter().all(|ip| ip.is_ipv4() != vip.is_ipv4()) {
            self.other_family += 1;
        } else {
            self.not_theirs += 1;
        }
    }

    /// What is said of the Egress.
    pub(super) fn verdict(
        &self,
        claim: &Claim<'_>,
        claims: &[Claim<'_>],
        vips: &Vips<'_>,
    ) -> EgressVerdict {
        let by = listed(self.by.iter().filter_map(|&at| claims.get(at)).map(|by| key(by.egress)));
        let overridden = format!("{} taken by Egress {by}", pods(self.overridden));
        let (reason, mut message) = if let Some(trouble) = &claim.trouble {
            (trouble.reason, format!("{}{}", trouble.message, self.consequence(claim.effect)))
        } else if self.mapped > 0 {
            (EgressReason::Mapped, self.leaving(claim.effect, vips))
        } else if self.pods == 0 {
            let message = format!("no live pod matches {}", described(claim.target));
            (EgressReason::NoMatchingPods, message)
        } else if self.overridden == self.pods {
            (EgressReason::Overridden, overridden.clone())
        } else {
            let message = "no matching pod has an address to map";
            (EgressReason::NoMatchingPods, message.to_owned())
        };
        if self.overridden > 0 && reason != EgressReason::Overridden {
            message = format!("{message}; {overridden}");
        }
        for note in self.notes() {
            message = format!("{message}; {note}");
        }
        EgressVerdict {
            ready: Finding { reason, message },
            pods: self.pods,
            mapped: self.mapped,
            left_out: self.host_network + self.finished,
        }
    }

    /// "2 pods leave with 192.0.2.1", and whether that works now.
    fn leaving(&self, effect: Effect, vips: &Vips<'_>) -> String {
        let Effect::Map(vip) = effect else { return String::new() };
        let verb = if self.mapped == 1 { "leaves" } else { "leave" };
        let message = format!("{} {verb} with {vip}", pods(self.mapped));
        match vips.accepted.get(&vip) {
            Some(accepted) if accepted.holder.is_none() => format!(
                "{message} as soon as a node holds it; no node does, so external traffic is dropped"
            ),
            _ => message,
        }
    }

    /// What the trouble means for the pods.
    fn consequence(&self, effect: Effect) -> String {
        let affected = self.pods - self.overridden;
        let them = pods(affected);
        match effect {
            Effect::Hold if affected > 0 => format!("; external traffic of {them} is dropped"),
            Effect::Release if affected > 0 => {
                format!("; external traffic of {them} leaves with the node's address")
            }
            _ => String::new(),
        }
    }

    /// What else a person may wonder about.
    fn notes(&self) -> Vec<String> {
        [
            (self.without_address, "without an address yet"),
            (self.other_family, "without an address of the VIP's family"),
            (self.not_theirs, "with an address that is another pod's or a node's"),
            (self.host_network, "left out on the host network"),
            (self.finished, "left out as finished"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", pods(count)))
        .collect()
    }
}

/// What the Egress names, for people.
fn described(Target { namespace, what }: Target<'_>) -> String {
    match what {
        What::Pod(name) => format!("Pod {namespace}/{name}"),
        What::Owner(kind, name) => format!("{kind} {namespace}/{name}"),
        What::Selected(_) => format!("the selector in namespace {namespace}"),
        What::Everything => format!("namespace {namespace}"),
    }
}
