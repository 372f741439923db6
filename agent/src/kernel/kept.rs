//! Connections that this node translated with ports that are in other nodes' blocks by now: what comes
//! for them stays here, until they end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use shared::{Block, Vip};

use super::conntrack::{Conntrack, ConntrackError, Entry};
use crate::routing::{Family, MarkMask};
use crate::ruleset::{kept_echoes_set, kept_set};

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// One connection, by what its answers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    vip: Vip,
    protocol: u8,
    /// Of the VIP; of ICMP echo the id.
    port: u16,
    from: IpAddr,
    from_port: u16,
}

impl Answer {
    fn set(&self) -> &'static str {
        let family = Family::of(self.vip.addr());
        if self.is_echo() { kept_echoes_set(family) } else { kept_set(family) }
    }

    fn is_echo(&self) -> bool {
        [ICMP, ICMP_V6].contains(&self.protocol)
    }
}

/// As an element of its set.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, protocol, port, from, from_port } = self;
        if self.is_echo() {
            write!(f, "{vip} . {port} . {from}")
        } else {
            write!(f, "{vip} . {protocol} . {port} . {from} . {from_port}")
        }
    }
}

/// What the kernel's sets of such connections hold.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The VIPs that they are of, by the marks of connections that this node translates as holder.
    vips: BTreeMap<u32, Vip>,
    answers: BTreeSet<Answer>,
}

impl Kept {
    /// Whether connections have to be looked at to know what the sets should hold.
    pub(super) fn may_end(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The VIPs that connections were looked for of, by mark.
    pub(super) fn vips(&self) -> BTreeMap<u32, Vip> {
        self.vips.clone()
    }

    /// What is to be kept of these VIPs now.
    pub(super) fn look(
        vips: &BTreeMap<u32, Vip>,
        conntrack: &mut Conntrack,
        marks: MarkMask,
    ) -> Result<Self, ConntrackError> {
        let mut answers = BTreeSet::new();
        conntrack.entries(None, |entry| {
            let vip = vips.get(&(entry.mark & marks.mask()));
            answers.extend(vip.and_then(|vip| answer(*vip, &entry)));
        })?;
        Ok(Self { vips: vips.clone(), answers })
    }

    /// Whether the sets hold just that.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.answers == other.answers
    }

    /// The sets with what they should hold.
    pub(super) fn elements(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mut of_sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for answer in &self.answers {
            of_sets.entry(answer.set()).or_default().push(answer.to_string());
        }
        of_sets
    }
}

fn answer(vip: Vip, entry: &Entry<'_>) -> Option<Answer> {
    Block::of_port(entry.translated_port)?;
    let from_port = match entry.protocol {
        6 | 17 => entry.destination_port,
        ICMP | ICMP_V6 => 0,
        _ => return None,
    };
    let (protocol, port) = (entry.protocol, entry.translated_port);
    Some(Answer { vip, protocol, port, from: entry.destination, from_port })
}
