//! Has connections of pods forgotten, on a thread of its own: one look for some walks over every
//! tracked connection of the machine, which is too long to keep the next change of a pod waiting.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use std::{io, mem, thread};

use tracing::{debug, error};

use super::conntrack::{Conntrack, ConntrackError, Entry};
use crate::routing::MarkMask;

/// Between two looks: changes that come meanwhile share one.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Before a look that failed is tried again: until then packets of forgotten decisions go on.
const BEFORE_RETRY: Duration = Duration::from_millis(100);

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

    /// What one look may miss: a connection whose first packet was on its way out at that moment is
    /// tracked only when the packet leaves. Nothing that was decided rightly meanwhile is in it.
    fn missed_perhaps(self) -> Self {
        Self { sessionless: BTreeSet::new(), ..self }
    }

    fn is_empty(&self) -> bool {
        let Self { sessionless, undecided, undecided_sessions } = self;
        [sessionless, undecided, undecided_sessions].iter().all(|pods| pods.is_empty())
    }

    fn doom(&self, entry: &Entry<'_>, marks: MarkMask) -> bool {
        let decided = entry.mark & marks.mask() != 0;
        if entry.has_sessions() {
            return !decided && self.undecided_sessions.contains(&entry.source);
        }
        self.sessionless.contains(&entry.source)
            || (!decided
                && (self.undecided.contains(&entry.source)
                    || self.undecided_sessions.contains(&entry.source)))
    }

    fn pods(&self) -> impl Iterator<Item = &IpAddr> {
        let Self { sessionless, undecided, undecided_sessions } = self;
        [sessionless, undecided, undecided_sessions].into_iter().flatten()
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
        let worker =
            Worker { conntrack, marks, inbox, orders: Orders::default(), again: Orders::default() };
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
    orders: Orders,
    /// Orders of the look before.
    again: Orders,
}

impl Worker {
    /// Ends when nobody is left to give orders.
    fn run(mut self) {
        loop {
            if self.orders.is_empty() && self.again.is_empty() {
                let Ok(order) = self.inbox.recv() else { return };
                self.orders.add(order);
            }
            self.inbox.try_iter().for_each(|order| self.orders.add(order));
            match self.look() {
                Ok(forgotten) => {
                    debug!(forgotten, "connections forgotten");
                    self.again = mem::take(&mut self.orders).missed_perhaps();
                    thread::sleep(BETWEEN_LOOKS);
                }
                Err(error) => {
                    error!("{:#}", anyhow::Error::from(error));
                    thread::sleep(BEFORE_RETRY);
                }
            }
        }
    }

    fn look(&mut self) -> Result<usize, ConntrackError> {
        let Self { conntrack, marks, inbox: _, orders, again } = self;
        let pods = orders.pods().chain(again.pods()).copied().collect();
        conntrack.delete_of(&pods, |entry| orders.doom(entry, *marks) || again.doom(entry, *marks))
    }
}
