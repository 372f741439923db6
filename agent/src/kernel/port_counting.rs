//! Looks which ports of this node's blocks are in use, on a thread of its own: nothing has to wait for a
//! walk over every connection of the machine.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use shared::{RouteId, Vip};
use tokio::sync::watch;
use tracing::{Span, debug, warn};

use super::conntrack::{Conntrack, ConntrackError, Entry, MarkFilter};
use crate::port_use::pace::{AT_LEAST, pace};
use crate::port_use::{Connection, Count, Destination, Found, Own, PortUse};
use crate::routing::MarkMask;
use crate::routing::mark_mask::Decision;

/// How many connections of whatever kind the machine has: costs nothing to read.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Which blocks are this node's.
    pub own: Own,
    /// Whose route id is whose.
    pub vips: BTreeMap<RouteId, Vip>,
}

/// Takes what to look for, tells what was found. Its thread ends when it is dropped.
#[derive(Debug)]
pub struct PortCounter {
    wanted: Sender<Wanted>,
    last: Wanted,
    found: watch::Receiver<Found>,
}

impl PortCounter {
    /// Works in the network namespace of the calling thread.
    pub fn start(conntrack: Conntrack, marks: MarkMask) -> io::Result<Self> {
        let (wanted, inbox) = channel();
        let (told, found) = watch::channel(Found::default());
        let worker = Worker { conntrack, marks, inbox, told, failing: false };
        let span = Span::current();
        let work = move || span.in_scope(|| worker.run());
        thread::Builder::new().name("port-counting".to_owned()).spawn(work)?;
        Ok(Self { wanted, last: Wanted::default(), found })
    }

    /// Has this looked for from now on.
    pub fn want(&mut self, wanted: Wanted) {
        if self.last != wanted {
            self.last = wanted.clone();
            // The thread ends after this only.
            let _ = self.wanted.send(wanted);
        }
    }

    /// Waits until something was looked at. Cancel safe.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What was found last.
    pub fn found(&self) -> Found {
        self.found.borrow().clone()
    }
}

struct Worker {
    conntrack: Conntrack,
    marks: MarkMask,
    inbox: Receiver<Wanted>,
    told: watch::Sender<Found>,
    failing: bool,
}

impl Worker {
    /// Ends when nobody is left to tell what to look for.
    fn run(mut self) {
        let mut wanted = Wanted::default();
        let mut looks = 0;
        let mut next = None;
        loop {
            let news = match next {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => {
                    let wait = Instant::saturating_duration_since(&next, Instant::now());
                    self.inbox.recv_timeout(wait)
                }
            };
            match news {
                Ok(news) => {
                    wanted = self.inbox.try_iter().last().unwrap_or(news);
                    looks = 0;
                    // A second at least after the look before, if there was one.
                    let soon = Instant::now() + AT_LEAST;
                    next = (!wanted.own.is_empty())
                        .then(|| next.map_or(soon, |next: Instant| next.min(soon)));
                    if next.is_none() {
                        self.told.send_replace(Found::default());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let started = Instant::now();
            let outcome = self.look(&wanted);
            let took = started.elapsed();
            next = Some(Instant::now() + pace(&wanted.own, connections(), took));
            match outcome {
                Ok(ports) => {
                    looks += 1;
                    debug!(?took, used = ?ports.used, "looked which ports are in use");
                    self.told.send_replace(Found { own: wanted.own.clone(), ports, looks });
                    self.failing = false;
                }
                Err(error) => {
                    if !self.failing {
                        warn!(
                            "cannot tell which ports are in use: {:#}",
                            anyhow::Error::new(error)
                        );
                    }
                    self.failing = true;
                    next = Some(Instant::now() + Duration::from_secs(5));
                }
            }
        }
    }

    fn look(&mut self, wanted: &Wanted) -> Result<PortUse, ConntrackError> {
        let Self { conntrack, marks, .. } = self;
        let mut count = Count::of(&wanted.own);
        // Where there is no such bit, there are no such connections.
        let Some(bit) = marks.direct_bit() else { return Ok(count.finish()) };
        let filter = MarkFilter { value: bit, mask: bit };
        conntrack.entries(Some(filter), |entry| {
            if let Some(connection) = connection(*marks, &entry, &wanted.vips) {
                count.add(connection);
            }
        })?;
        Ok(count.finish())
    }
}

fn connection(
    marks: MarkMask,
    entry: &Entry<'_>,
    vips: &BTreeMap<RouteId, Vip>,
) -> Option<Connection> {
    // Also where the kernel knows no filter.
    let (id, _) = marks.id_of(entry.mark).filter(|(_, taken)| *taken == Decision::Direct)?;
    let vip = *vips.get(&id).filter(|vip| vip.is_ipv4() == entry.source.is_ipv4())?;
    let (protocol, addr) = (entry.protocol, entry.destination);
    let destination = Destination { vip, protocol, addr, port: entry.destination_port };
    Some(Connection { destination, port: entry.translated_port })
}

/// None are known of where the kernel does not say.
fn connections() -> usize {
    fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}
