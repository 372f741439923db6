//! Pure: VIPs that are an address of this node though nobody here serves them any more, and another node does.
//!
//! When a pod of keepalived is killed, its launcher and keepalived end at once and nobody is left to remove their
//! addresses; it may take minutes until they are started again. Pods of this node would leave with a VIP whose answers
//! go elsewhere.
//!
//! What is held against a VIP: the launcher has answered before, and nothing listens where it did; and another node
//! says that it has the VIP, and did not say so when the launcher answered last. So VIPs of somebody else's making
//! stay, as does one that no other node has taken, and what a lost node has once said is no reason.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use shared::Vip;
use shared::config_map::{Object, decode_node_report, report_keys};
use shared::mappings::{Change, Content};

/// What came of asking for the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    Answers,
    /// Nothing listens where it did.
    Refused,
    /// Neither.
    Unclear,
}

/// By the reporting node's object: the VIPs that it has, and since when.
type Claims = BTreeMap<String, BTreeMap<Vip, Timestamp>>;

/// What is known of launcher and other nodes.
#[derive(Debug, Default)]
pub struct Leftovers {
    claims: Claims,
    /// As they were when the launcher answered last; none: it never has.
    known: Option<Claims>,
    /// How often it was asked in vain since then.
    refusals: u32,
}

/// A container that is started again at once is no loss.
const REFUSALS: u32 = 2;

impl Leftovers {
    /// Takes in what another node says of itself; other changes are passed over.
    pub fn learn(&mut self, change: &Change) {
        let Some(Object::ReportOfNode(_)) = Object::of_name(&change.object) else { return };
        let holds = match &change.content {
            Content::Whole(data) => data.get(report_keys::HOLDS).map(String::as_str),
            Content::Keys(keys) => {
                let last = keys.iter().rev().find(|(key, _)| key == report_keys::HOLDS);
                match last {
                    Some((_, value)) => value.as_deref(),
                    None => return,
                }
            }
            Content::Missing => None,
        };
        let data = holds.map(|text| (report_keys::HOLDS.to_owned(), text.to_owned()));
        let report = decode_node_report(&change.object, &data.into_iter().collect()).entries;
        self.claims.insert(change.object.clone(), report.holds);
    }

    /// Takes in whether the launcher is there.
    pub fn hear(&mut self, presence: Presence) {
        match presence {
            Presence::Answers => {
                self.known = Some(self.claims.clone());
                self.refusals = 0;
            }
            Presence::Refused => self.refusals = self.refusals.saturating_add(1),
            Presence::Unclear => self.refusals = 0,
        }
    }

    /// Those of the VIPs on this node that are to go.
    pub fn among(&self, held: &BTreeSet<Vip>) -> BTreeSet<Vip> {
        let Some(known) = self.known.as_ref().filter(|_| self.refusals >= REFUSALS) else {
            return BTreeSet::new();
        };
        let is_news = |object: &str, vip: &Vip, since: &Timestamp| {
            known.get(object).and_then(|claims| claims.get(vip)) != Some(since)
        };
        let claims = self.claims.iter().flat_map(|(object, claims)| {
            claims.iter().map(move |(vip, since)| (object.as_str(), vip, since))
        });
        claims
            .filter(|(object, vip, since)| held.contains(vip) && is_news(object, vip, since))
            .map(|(_, vip, _)| *vip)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "2026-11-23T10:00:00Z";

    fn report(node: &str, holds: &str) -> Change {
        let data = [("holds".to_owned(), holds.to_owned())].into();
        Change { object: format!("egress-node-{node}"), content: Content::Whole(data) }
    }

    fn held() -> BTreeSet<Vip> {
        ["192.0.2.1", "192.0.2.2"].map(|vip| vip.parse().unwrap()).into()
    }

    fn among(leftovers: &Leftovers) -> Vec<String> {
        leftovers.among(&held()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_vip_goes_when_its_launcher_is_gone_and_another_node_has_taken_it_since() {
        let mut leftovers = Leftovers::default();
        leftovers.learn(&report("lost", &format!("192.0.2.2 {AT}")));
        leftovers.hear(Presence::Answers);
        leftovers.hear(Presence::Refused);
        leftovers.learn(&report("n2", &format!("192.0.2.1 {AT}\n192.0.2.9 {AT}")));
        assert_eq!(among(&leftovers), [""; 0], "it may be there again at once");
        leftovers.hear(Presence::Refused);
        assert_eq!(among(&leftovers), ["192.0.2.1"], "not what a lost node has said before");
        leftovers.learn(&report("n3", "192.0.2.2 2026-11-23T10:00:01Z"));
        assert_eq!(among(&leftovers), ["192.0.2.1", "192.0.2.2"]);
        leftovers.learn(&report("n2", ""));
        assert_eq!(among(&leftovers), ["192.0.2.2"]);
        leftovers.hear(Presence::Answers);
        assert_eq!(among(&leftovers), [""; 0]);
    }

    #[test]
    fn vips_stay_where_no_launcher_was_ever_seen_or_it_is_not_clear() {
        let mut leftovers = Leftovers::default();
        for _ in 0..3 {
            leftovers.hear(Presence::Refused);
        }
        leftovers.learn(&report("n2", &format!("192.0.2.1 {AT}")));
        assert_eq!(among(&leftovers), [""; 0]);
        let mut leftovers = Leftovers::default();
        leftovers.hear(Presence::Answers);
        leftovers.learn(&report("n2", &format!("192.0.2.1 {AT}")));
        for presence in [Presence::Refused, Presence::Unclear, Presence::Refused] {
            leftovers.hear(presence);
        }
        assert_eq!(among(&leftovers), [""; 0]);
    }
}
