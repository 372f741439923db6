//! Has connections of pods forgotten, on a thread of its own: one look for some walks over every
//! tracked connection of the machine, which is too long to keep the next change of a pod waiting.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use tracing::{debug, error};

use super::conntrack::{Conntrack, ConntrackError, Entry};
use crate::routing::MarkMask;

/// Between two looks: changes that come meanwhile share one.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Before a look that failed is tried again.
const BEFORE_RETRY: Duration = Duration::from_secs(1);
/// Answers that were on their way through the holder when a pod was forgotten have arrived by then.
const ANSWERS_ARRIVE: Duration = Duration::from_secs(1);
/// `IPS_DST_NAT`
const TRANSLATED_DESTINATION: u32 = 1 << 5;

/// Which connections of a pod to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those without sessions (UDP, ICMP).
    Sessionless,
    /// Those without sessions that no decision was made about.
    Undecided,
    /// All that no decision was made about.
    UndecidedSessions,
}

/// What is to be forgotten.
#[derive(Debug, Default)]
struct Orders {
    sessionless: BTreeSet<IpAddr>,
    undecided: BTreeSet<IpAddr>,
    undecided_sessions: BTreeSet<IpAddr>,
    answers: BTreeSet<IpAddr>,
}

impl Orders {
    fn add(&mut self, (which, pods): (Which, BTreeSet<IpAddr>)) {
        match which {
            Which::Sessionless => &mut self.sessionless,
            Which::Undecided => &mut self.undecided,
            Which::UndecidedSessions => &mut self.undecided_sessions,
        }
        .extend(pods);
    }

    fn is_empty(&self) -> bool {
        let Self { sessionless, undecided, undecided_sessions, answers } = self;
        [sessionless, undecided, undecided_sessions, answers].iter().all(|pods| pods.is_empty())
    }

    fn doom(&self, entry: &Entry<'_>, marks: MarkMask) -> bool {
        let decided = entry.mark & marks.mask() != 0;
        if entry.has_sessions() {
            return !decided && self.undecided_sessions.contains(&entry.source);
        }
        // An answer whose connection was forgotten, taken for the begin of one from outside: the
        // pod's packets would be its answers, and leave with the pod's own address.
        let answer =
            entry.status & TRANSLATED_DESTINATION == 0 && self.answers.contains(&entry.destination);
        answer
            || self.sessionless.contains(&entry.source)
            || (!decided
                && (self.undecided.contains(&entry.source)
                    || self.undecided_sessions.contains(&entry.source)))
    }

    /// The pods whose connections as such are forgotten, if that is all there is to do.
    fn only_sessionless(&self) -> Option<&BTreeSet<IpAddr>> {
        let Self { sessionless, undecided, undecided_sessions, answers } = self;
        let others = [undecided, undecided_sessions, answers];
        others.iter().all(|pods| pods.is_empty()).then_some(sessionless)
    }
}

/// Takes orders; its thread ends when it is dropped.
#[derive(Debug)]
pub(super) struct Forgetting {
    orders: Sender<(Which, BTreeSet<IpAddr>)>,
}

impl Forgetting {
    /// Works in the network namespace of the calling thread.
    pub(super) fn start(conntrack: Conntrack, marks: MarkMask) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let worker = Worker { conntrack, marks, inbox, now: Orders::default(), later: Vec::new() };
        thread::Builder::new().name("forgetting".to_owned()).spawn(move || worker.run())?;
        Ok(Self { orders })
    }

    /// Has connections of these pods forgotten within milliseconds; what fails is tried again.
    pub(super) fn order(&self, which: Which, pods: BTreeSet<IpAddr>) {
        // The thread ends after this only.
        let _ = self.orders.send((which, pods));
    }
}

struct Worker {
    conntrack: Conntrack,
    marks: MarkMask,
    inbox: Receiver<(Which, BTreeSet<IpAddr>)>,
    now: Orders,
    /// Pods to whom answers may be on their way until then.
    later: Vec<(Instant, BTreeSet<IpAddr>)>,
}

impl Worker {
    fn run(mut self) {
        while self.wait() {
            let answers = self.now.sessionless.clone();
            match self.look() {
                Ok(forgotten) => {
                    debug!(forgotten, "connections forgotten");
                    self.now = Orders::default();
                    if !answers.is_empty() {
                        self.later.push((Instant::now() + ANSWERS_ARRIVE, answers));
                    }
                    thread::sleep(BETWEEN_LOOKS);
                }
                Err(error) => {
                    error!("{:#}", anyhow::Error::from(error));
                    thread::sleep(BEFORE_RETRY);
                }
            }
        }
    }

    /// Waits until there is something to do; false when nobody is left to ask for it.
    fn wait(&mut self) -> bool {
        loop {
            let now = Instant::now();
            for (due, pods) in mem::take(&mut self.later) {
                if due <= now {
                    self.now.answers.extend(pods);
                } else {
                    self.later.push((due, pods));
                }
            }
            while let Ok(order) = self.inbox.try_recv() {
                self.now.add(order);
            }
            if !self.now.is_empty() {
                return true;
            }
            let next = self.later.iter().map(|(due, _)| *due).min();
            let order = match next {
                Some(due) => self.inbox.recv_timeout(due.saturating_duration_since(now)),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(order) => self.now.add(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn look(&mut self) -> Result<usize, ConntrackError> {
        match self.now.only_sessionless() {
            Some(pods) => self.conntrack.forget(pods),
            None => self.conntrack.delete_where(|entry| self.now.doom(entry, self.marks)),
        }
    }
}
