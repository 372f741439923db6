//! Whether the direct path of a VIP works from this node, block by block: proven before it is trusted, and
//! now and then again.
//!
//! A probe is an echo request with the VIP for its source and an id of an own block, sent straight to the
//! gateway. Its answer shows at once that the network lets such packets pass, that somebody holds the VIP,
//! and that the holder knows whose the block is.
//!
//! Pure: is told the time and what was heard, says what is to be sent. `kernel::proving` does that.

mod claims;
pub mod packet;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shared::{Block, Vip};

pub use self::claims::{Choice, Claim, Claims, NoWay, Way, claims};
use crate::routing::Device;

/// Between probes of a block that was never proven: a pod's first packet leaves some 0.6 s after the node
/// got a block, and a holder may learn of the block later than its owner. The last goes on.
const BEFORE_PROOF: [Duration; 10] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// Between probes that were answered.
const BETWEEN_PROOFS: Duration = Duration::from_secs(30);
/// Those that will be due by then are sent with those that are due, so that nothing has to be listened
/// to most of the time.
const TOGETHER: Duration = Duration::from_secs(10);
/// After the first probe that was not answered, and after those that follow.
const FIRST_DOUBT: Duration = Duration::from_secs(1);
const FURTHER_DOUBTS: Duration = Duration::from_secs(4);
/// As many in a row, over so long, end the trust: VRRP may take seconds to find a new holder.
const FAILURES: u32 = 5;
const FAILING_FOR: Duration = Duration::from_secs(15);
/// Later answers count no more.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// What is said until then.
pub const BEING_PROVEN: &str = "being proven";
/// Before it is said that nobody answers.
const BEFORE_COMPLAINT: Duration = Duration::from_millis(500);
/// As many are sent at once, and then not before so much later: gateways answer so many pings only.
const MOST_AT_ONCE: usize = 16;
const BETWEEN_BURSTS: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its source.
    pub vip: Vip,
    /// Which block it proves.
    pub block: Block,
    /// An id of the block.
    pub id: u16,
    pub sequence: u16,
    /// Known to nobody who has not seen it.
    pub nonce: u64,
    pub way: Way,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub id: u16,
    pub sequence: u16,
    pub nonce: u64,
}

/// Why a probe was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// The kernel has just been asked to find it, or cannot.
    #[error("{next_hop} does not answer on {device} (ARP, neighbour discovery)")]
    NoNeighbour { next_hop: IpAddr, device: Device },
    /// The kernel refused.
    #[error("cannot send probes: {0}")]
    Failed(String),
}

/// What is known of a VIP's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Packets may leave with their ports.
    pub proven: BTreeSet<Block>,
    /// Why not with those of all open blocks; empty when they may.
    pub message: String,
}

/// Of every VIP with an open block.
pub type Verdicts = BTreeMap<Vip, Verdict>;

/// The state of all proofs.
#[derive(Debug, Default)]
pub struct Proofs {
    ways: BTreeMap<Vip, Result<Way, NoWay>>,
    blocks: BTreeMap<(Vip, Block), Proof>,
    /// No probe before.
    pause: Option<Instant>,
    sequence: u16,
}

#[derive(Debug)]
struct Proof {
    proven: bool,
    /// When the next probe is to be sent.
    due: Instant,
    /// Since the last answer: probes that came to nothing, and since when.
    failures: u32,
    since: Option<Instant>,
    sent: Vec<Sent>,
    unsent: Option<Unsent>,
}

#[derive(Debug)]
struct Sent {
    id: u16,
    sequence: u16,
    nonce: u64,
    at: Instant,
}

impl Proof {
    fn new(due: Instant) -> Self {
        Self { proven: false, due, failures: 0, since: None, sent: Vec::new(), unsent: None }
    }

    /// Begins anew, but for what is known: what is under way says nothing of the new way.
    fn restart(&mut self, now: Instant) {
        *self = Self { proven: self.proven, ..Self::new(now) };
    }

    /// Nothing is known against it, and it is due before long.
    fn may_hurry(&self, now: Instant) -> bool {
        self.proven && self.since.is_none() && self.due <= now + TOGETHER
    }

    /// A probe is due: counts the one before, and says when the next is.
    fn attempt(&mut self, now: Instant) {
        if let Some(since) = self.since {
            self.failures += 1;
            if self.failures >= FAILURES && now.duration_since(since) >= FAILING_FOR {
                self.proven = false;
            }
        }
        self.since.get_or_insert(now);
        self.due = now
            + match (self.proven, self.failures) {
                (true, 0) => FIRST_DOUBT,
                (true, _) => FURTHER_DOUBTS,
                (false, failures) => {
                    let step = usize::try_from(failures).unwrap_or(usize::MAX);
                    BEFORE_PROOF[step.min(BEFORE_PROOF.len() - 1)]
                }
            };
        self.unsent = None;
        self.sent.retain(|sent| now.duration_since(sent.at) < ANSWERED_WITHIN);
    }

    fn answered(&mut self, now: Instant) {
        *self = Self { proven: true, ..Self::new(now + BETWEEN_PROOFS) };
    }
}

impl Proofs {
    /// Takes in what there is to prove. A new block is probed at once, and all of a VIP when its way is
    /// another: it is trusted meanwhile as before.
    pub fn claim(&mut self, claims: &Claims, now: Instant) {
        self.blocks.retain(|(vip, block), _| {
            claims.get(vip).is_some_and(|claim| claim.open.contains(block))
        });
        for (&vip, Claim { open, way }) in claims {
            let moved = self.ways.get(&vip) != Some(way);
            for &block in open {
                let proof = self.blocks.entry((vip, block)).or_insert_with(|| Proof::new(now));
                if moved {
                    proof.restart(now);
                }
            }
        }
        self.ways = claims.iter().map(|(vip, claim)| (*vip, claim.way.clone())).collect();
    }

    /// When there is something to send next.
    pub fn next(&self) -> Option<Instant> {
        let due = self.blocks.values().map(|proof| proof.due).min()?;
        Some(self.pause.map_or(due, |pause| due.max(pause)))
    }

    /// Until when an answer may come.
    pub fn listens_until(&self) -> Option<Instant> {
        let sent = self.blocks.values().flat_map(|proof| &proof.sent);
        sent.map(|sent| sent.at + ANSWERED_WITHIN).max()
    }

    /// What is to be sent now. `nonce` gives a number nobody can guess.
    pub fn probes(&mut self, now: Instant, nonce: &mut impl FnMut() -> u64) -> Vec<Probe> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let soon = |proof: &Proof| proof.due <= now || proof.may_hurry(now);
        let mut due: Vec<_> = self.blocks.iter_mut().filter(|(_, proof)| soon(proof)).collect();
        due.sort_by_key(|(_, proof)| proof.due);
        self.pause = (due.len() > MOST_AT_ONCE).then(|| now + BETWEEN_BURSTS);
        let mut probes = Vec::new();
        for (&(vip, block), proof) in due.into_iter().take(MOST_AT_ONCE) {
            proof.attempt(now);
            let Some(Ok(way)) = self.ways.get(&vip) else { continue };
            let nonce = nonce();
            let place = u16::try_from(nonce % u64::from(Block::SIZE)).unwrap_or_default();
            let id = block.ports().start() + place;
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            proof.sent.push(Sent { id, sequence, nonce, at: now });
            probes.push(Probe { vip, block, id, sequence, nonce, way: way.clone() });
        }
        probes
    }

    /// Takes in that a probe did not leave.
    pub fn unsent(&mut self, probe: &Probe, why: Unsent) {
        if let Some(proof) = self.blocks.get_mut(&(probe.vip, probe.block)) {
            proof.sent.retain(|sent| sent.nonce != probe.nonce);
            proof.unsent = Some(why);
        }
    }

    /// Takes in what was heard. Whether it answers a probe.
    pub fn heard(&mut self, answer: &Answer, now: Instant) -> bool {
        let Ok(vip) = Vip::try_from(answer.destination) else { return false };
        let Some(block) = Block::of_port(answer.id) else { return false };
        let Some(Ok(way)) = self.ways.get(&vip) else { return false };
        let Some(proof) = self.blocks.get_mut(&(vip, block)) else { return false };
        let answers = way.target == answer.source
            && proof.sent.iter().any(|sent| {
                (sent.id, sent.sequence, sent.nonce) == (answer.id, answer.sequence, answer.nonce)
                    && now.duration_since(sent.at) < ANSWERED_WITHIN
            });
        if answers {
            proof.answered(now);
        }
        answers
    }

    /// What is known by now.
    pub fn verdicts(&self, now: Instant) -> Verdicts {
        let verdict = |(vip, way): (&Vip, &Result<Way, NoWay>)| {
            let of_vip = (*vip, Block::MIN)..=(*vip, Block::MAX);
            let (proven, others): (Vec<_>, Vec<_>) =
                self.blocks.range(of_vip).partition(|(_, proof)| proof.proven);
            let message = others.first().map(|(_, proof)| {
                let blocks = others.iter().map(|((_, block), _)| *block);
                proof.why(now, way, &blocks.collect::<Vec<_>>())
            });
            let proven = proven.into_iter().map(|((_, block), _)| *block).collect();
            (*vip, Verdict { proven, message: message.unwrap_or_default() })
        };
        self.ways.iter().map(verdict).collect()
    }

    /// When after now a verdict's words may be others although nothing happens.
    pub fn complains_at(&self, now: Instant) -> Option<Instant> {
        let unproven = self.blocks.values().filter(|proof| !proof.proven);
        let complaints = unproven.filter_map(|proof| Some(proof.since? + BEFORE_COMPLAINT));
        complaints.filter(|at| *at > now).min()
    }
}

impl Proof {
    /// Why the block is not proven, in words for an operator; the same for `blocks`.
    fn why(&self, now: Instant, way: &Result<Way, NoWay>, blocks: &[Block]) -> String {
        let Way { device, target, .. } = match way {
            Ok(way) => way,
            Err(why) => return why.to_string(),
        };
        if self.since.is_none_or(|since| now.duration_since(since) < BEFORE_COMPLAINT) {
            return BEING_PROVEN.to_owned();
        }
        if let Some(why) = &self.unsent {
            return why.to_string();
        }
        let blocks: Vec<_> = blocks.iter().map(ToString::to_string).collect();
        format!(
            "no answer from {target} by {device} for block {}: the network drops packets with \
             addresses that are not the sender's, or nobody holds the VIP, or its holder does not \
             pass the block on, or {target} answers no pings (name another with --prove-with)",
            blocks.join(",")
        )
    }
}
