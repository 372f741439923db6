use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const VIP: &str = "192.0.2.222";

fn vip() -> Vip {
    VIP.parse().unwrap()
}

fn block(number: u32) -> Block {
    number.try_into().unwrap()
}

fn way(target: &str) -> Way {
    let target = target.parse().unwrap();
    Way { device: Device { index: 2, name: "eth0".to_owned() }, next_hop: target, target }
}

fn claims_of(blocks: &[u32], way: Result<Way, NoWay>) -> Claims {
    let open = blocks.iter().map(|number| block(*number)).collect();
    [(vip(), Claim { open, way })].into()
}

/// A node, and a network that answers or does not.
struct Story {
    proofs: Proofs,
    start: Instant,
    now: Instant,
    nonces: u64,
    /// Which blocks are answered for.
    answered: BTreeSet<Block>,
    /// Milliseconds at which a probe was sent, and for which block.
    sent: Vec<(u128, u8)>,
}

impl Story {
    fn new(claims: &Claims) -> Self {
        let start = Instant::now();
        let mut proofs = Proofs::default();
        proofs.claim(claims, start);
        let (answered, sent) = (BTreeSet::new(), Vec::new());
        Self { proofs, start, now: start, nonces: 0, answered, sent }
    }

    fn answers(&mut self, blocks: &[u32]) {
        self.answered = blocks.iter().map(|number| block(*number)).collect();
    }

    /// Lets time pass; answers come after a millisecond.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.proofs.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            let nonces = &mut self.nonces;
            let mut nonce = || {
                *nonces += 1;
                *nonces
            };
            for probe in self.proofs.probes(self.now, &mut nonce) {
                let at = self.now.duration_since(self.start).as_millis();
                self.sent.push((at, probe.block.number()));
                if self.answered.contains(&probe.block) {
                    let later = self.now + Duration::from_millis(1);
                    assert!(self.proofs.heard(&answer(&probe), later));
                }
            }
        }
        self.now = end;
    }

    fn verdict(&self) -> Verdict {
        self.proofs.verdicts(self.now).remove(&vip()).unwrap()
    }

    fn proven(&self) -> Vec<u8> {
        self.verdict().proven.iter().map(|block| block.number()).collect()
    }
}

fn answer(probe: &Probe) -> Answer {
    let Probe { vip, block: _, id, sequence, nonce, way } = probe;
    let (source, destination) = (way.target, vip.addr());
    Answer { source, destination, id: *id, sequence: *sequence, nonce: *nonce }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_new_block_is_probed_at_once_and_often_then_seldom() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    assert_eq!(story.verdict().message, "being proven");
    story.pass(Duration::from_mins(1));
    let times: Vec<_> = story.sent.iter().map(|(at, _)| *at).collect();
    let expected =
        [0, 20, 70, 170, 370, 670, 1170, 2170, 4170, 9170, 19170, 29170, 39170, 49170, 59170];
    assert_eq!(times, expected);
    assert_eq!(story.proven(), [0; 0]);
    assert_eq!(
        story.verdict().message,
        "no answer from 192.0.2.1 by eth0 for block 3: the network drops packets with addresses \
         that are not the sender's, or nobody holds the VIP, or its holder does not pass the block \
         on, or 192.0.2.1 answers no pings (name another with --prove-with)"
    );
    story.answers(&[3]);
    story.pass(Duration::from_secs(10));
    assert_eq!(story.proven(), [3]);
    assert_eq!(story.verdict().message, "");
}

#[test]
fn a_proven_block_is_proven_again_every_half_minute() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3]);
    story.pass(Duration::from_secs(95));
    let times: Vec<_> = story.sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [0, 30_001, 60_002, 90_003]);
}

#[test]
fn an_outage_of_vrrp_does_not_end_the_trust_a_long_one_does() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3]);
    story.pass(Duration::from_secs(29));
    story.answers(&[]);
    story.pass(Duration::from_secs(15));
    assert_eq!(story.proven(), [3], "silent for 14 seconds");
    story.answers(&[3]);
    story.pass(Duration::from_secs(20));
    story.answers(&[]);
    // The next probe is due within half a minute, and all is over 17 seconds after it.
    story.pass(Duration::from_secs(48));
    assert_eq!(story.proven(), [0; 0]);
    assert!(story.verdict().message.starts_with("no answer from 192.0.2.1"));
    story.answers(&[3]);
    story.pass(Duration::from_secs(10));
    assert_eq!(story.proven(), [3]);
}

#[test]
fn a_block_that_is_added_is_proven_by_itself() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3]);
    story.pass(Duration::from_secs(5));
    story.sent.clear();
    story.proofs.claim(&claims_of(&[3, 9], Ok(way("192.0.2.1"))), story.now);
    story.pass(Duration::from_secs(1));
    assert_eq!(story.proven(), [3], "its holder does not know the other one yet");
    assert!(story.verdict().message.contains("block 9"));
    assert!(story.sent.iter().all(|(_, block)| *block == 9), "{:?}", story.sent);
    story.answers(&[3, 9]);
    story.pass(Duration::from_secs(1));
    assert_eq!(story.proven(), [3, 9]);
    // One that goes and comes back is a new one.
    story.proofs.claim(&claims_of(&[3], Ok(way("192.0.2.1"))), story.now);
    story.proofs.claim(&claims_of(&[3, 9], Ok(way("192.0.2.1"))), story.now);
    assert_eq!(story.proven(), [3]);
}

#[test]
fn another_way_is_proven_at_once_and_trusted_meanwhile() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3]);
    story.pass(Duration::from_secs(5));
    story.sent.clear();
    story.proofs.claim(&claims_of(&[3], Ok(way("192.0.2.254"))), story.now);
    story.answers(&[]);
    story.pass(Duration::ZERO);
    assert_eq!(story.sent.len(), 1);
    story.pass(Duration::from_secs(10));
    assert_eq!(story.proven(), [3]);
    story.pass(Duration::from_secs(8));
    assert_eq!(story.proven(), [0; 0]);
}

#[test]
fn a_way_that_is_lost_for_long_ends_the_trust() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3]);
    story.pass(Duration::from_secs(5));
    let family = crate::routing::Family::V4;
    let lost = claims_of(&[3], Err(NoWay::NoGateway { family }));
    story.proofs.claim(&lost, story.now);
    story.pass(Duration::from_secs(10));
    assert_eq!(story.proven(), [3]);
    story.pass(Duration::from_secs(10));
    assert_eq!(story.proven(), [0; 0]);
    assert!(story.verdict().message.starts_with("this node has no default gateway for IPv4"));
}

#[test]
fn what_keeps_probes_from_leaving_is_told() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    let mut nonce = || 7;
    let probe = story.proofs.probes(story.now, &mut nonce).remove(0);
    let (next_hop, device) = (probe.way.next_hop, probe.way.device.clone());
    story.proofs.unsent(&probe, Unsent::NoNeighbour { next_hop, device });
    assert!(!story.proofs.heard(&answer(&probe), story.now), "it never left");
    assert_eq!(story.proofs.listens_until(), None);
    let at = story.proofs.complains_at(story.now).unwrap();
    let message = story.proofs.verdicts(at).remove(&vip()).unwrap().message;
    assert_eq!(message, "192.0.2.1 does not answer on eth0 (ARP, neighbour discovery)");
    assert_eq!(story.proofs.complains_at(at), None);
}

#[test]
fn many_are_proven_without_a_flood() {
    let blocks: Vec<_> = (1..=47).collect();
    let mut story = Story::new(&claims_of(&blocks, Ok(way("192.0.2.1"))));
    story.answers(&blocks);
    story.pass(Duration::from_secs(1));
    let mut by_time = BTreeMap::new();
    for (at, _) in &story.sent {
        *by_time.entry(*at).or_insert(0) += 1;
    }
    assert_eq!(by_time, [(0, 16), (10, 16), (20, 15)].into());
    assert_eq!(story.proven().len(), 47);
}

#[test]
fn those_that_are_due_before_long_go_together() {
    let mut story = Story::new(&claims_of(&[3], Ok(way("192.0.2.1"))));
    story.answers(&[3, 9]);
    story.pass(Duration::from_secs(5));
    story.proofs.claim(&claims_of(&[3, 9], Ok(way("192.0.2.1"))), story.now);
    story.pass(Duration::from_mins(1));
    let late: Vec<_> = story.sent.iter().filter(|(at, _)| *at > 10_000).map(|(at, _)| at).collect();
    assert_eq!(late.len(), 4);
    assert_eq!(late[0], late[1]);
    assert_eq!(late[2], late[3]);
}

/// What may happen to a probe on its way.
#[derive(Clone, Debug)]
enum Mangled {
    Id(u16),
    Sequence(u16),
    Nonce(u64),
    Source,
    Destination,
    Late,
}

fn mangled() -> impl Strategy<Value = Mangled> {
    prop_oneof![
        (1..1024_u16).prop_map(Mangled::Id),
        (1..u16::MAX).prop_map(Mangled::Sequence),
        (1..u64::MAX).prop_map(Mangled::Nonce),
        Just(Mangled::Source),
        Just(Mangled::Destination),
        Just(Mangled::Late),
    ]
}

proptest! {
    #[test]
    fn only_the_answer_to_a_probe_proves(mangled in mangled(), number in 1..=47_u32, first: u64) {
        let mut story = Story::new(&claims_of(&[number], Ok(way("192.0.2.1"))));
        let mut nonce = || first;
        let probe = story.proofs.probes(story.now, &mut nonce).remove(0);
        prop_assert!(block(number).ports().contains(&probe.id));
        let right = answer(&probe);
        let mut wrong = right;
        let mut at = story.now + millis(1);
        match mangled {
            Mangled::Id(other) => wrong.id ^= other,
            Mangled::Sequence(other) => wrong.sequence ^= other,
            Mangled::Nonce(other) => wrong.nonce ^= other,
            Mangled::Source => wrong.source = "192.0.2.2".parse().unwrap(),
            Mangled::Destination => wrong.destination = "192.0.2.223".parse().unwrap(),
            Mangled::Late => at = story.now + ANSWERED_WITHIN,
        }
        prop_assert!(!story.proofs.heard(&wrong, at));
        prop_assert!(story.verdict().proven.is_empty());
        prop_assert!(story.proofs.heard(&right, story.now + millis(1)));
        prop_assert_eq!(story.verdict().proven.len(), 1);
        prop_assert!(!story.proofs.heard(&right, story.now + millis(2)), "once");
    }

    /// Whatever comes and goes: nothing is proven without an answer for just that block since it came.
    #[test]
    fn no_block_is_proven_by_another(
        steps in proptest::collection::vec((0..8_u8, 0..8_u8, 0..40_000_u64), 1..30),
    ) {
        let set = |bits: u8| -> Vec<u32> { (1..=3).filter(|n| bits & (1 << (n - 1)) != 0).collect() };
        let mut story = Story::new(&claims_of(&[], Ok(way("192.0.2.1"))));
        let mut may = BTreeSet::new();
        for (open, answered, time) in steps {
            let open = set(open);
            story.proofs.claim(&claims_of(&open, Ok(way("192.0.2.1"))), story.now);
            story.answers(&set(answered));
            may.retain(|block: &Block| open.contains(&block.number().into()));
            may.extend(story.answered.iter().copied());
            story.pass(millis(time));
            let proven = story.verdict().proven;
            prop_assert!(proven.is_subset(&may));
            prop_assert!(proven.iter().all(|block| open.contains(&block.number().into())));
            // Some seconds with answers are enough for each.
            if time > 21_000 {
                let answered = story.answered.iter().filter(|b| open.contains(&b.number().into()));
                prop_assert!(answered.copied().all(|block| proven.contains(&block)));
            }
        }
    }
}
