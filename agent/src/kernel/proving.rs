//! Sends the probes that [`proof`](crate::proof) wants sent and tells it what was heard, on a thread of its
//! own: an answer is waited for while the kernel takes a large change, too.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;
use std::{io, thread};

use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::{Span, debug, info, warn};

use super::neighbours::link_address;
use super::packets::{AnswerListener, FrameSender, Port};
use super::route_socket::RouteSocket;
use crate::metrics::ProofMetrics;
use crate::proof::packet::{Mac, Tag, answer, frame};
use crate::proof::{Answer, BEING_PROVEN, Claims, Probe, Proofs, Unsent, Verdicts, Way};
use crate::routing::Family;

/// Takes what there is to prove, tells what is proven. Its thread ends when it is dropped.
#[derive(Debug)]
pub struct Prover {
    claims: watch::Sender<Claims>,
    verdicts: watch::Receiver<Verdicts>,
}

impl Prover {
    /// Works in the network namespace of the calling thread.
    pub fn start(metrics: ProofMetrics) -> io::Result<Self> {
        let (claims, orders) = watch::channel(Claims::new());
        let (told, verdicts) = watch::channel(Verdicts::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let random = RandomState::new();
        let worker = Worker {
            orders,
            told,
            metrics,
            tag: random.hash_one("tag").to_be_bytes().first_chunk().copied().unwrap_or_default(),
            random,
            nonces: 0,
            proofs: Proofs::default(),
            tools: Tools::default(),
        };
        let span = Span::current();
        let work = move || span.in_scope(|| runtime.block_on(worker.run()));
        thread::Builder::new().name("proving".to_owned()).spawn(work)?;
        Ok(Self { claims, verdicts })
    }

    /// Has these proven from now on, and no others.
    pub fn claim(&self, claims: Claims) {
        self.claims.send_if_modified(|before| {
            let differ = *before != claims;
            *before = claims;
            differ
        });
    }

    /// Waits until something else is known. Cancel safe.
    pub async fn changed(&mut self) {
        if self.verdicts.changed().await.is_err() {
            // The thread has ended, which it does after this only.
            std::future::pending::<()>().await;
        }
    }

    /// What is known.
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.borrow().clone()
    }
}

/// What is opened when it is first needed, and again after a failure.
#[derive(Default)]
struct Tools {
    route_socket: Option<RouteSocket>,
    sender: Option<FrameSender>,
    listeners: BTreeMap<Family, AnswerListener>,
}

struct Worker {
    orders: watch::Receiver<Claims>,
    told: watch::Sender<Verdicts>,
    metrics: ProofMetrics,
    tag: Tag,
    random: RandomState,
    nonces: u64,
    proofs: Proofs,
    tools: Tools,
}

impl Worker {
    /// Ends when nobody is left to tell what to prove.
    async fn run(mut self) {
        loop {
            self.probe().await;
            self.tell();
            let now = Instant::now();
            let until = self.proofs.listens_until().filter(|until| *until > now);
            if until.is_none() {
                self.tools.listeners.clear();
            }
            let wake = [self.proofs.next(), until, self.proofs.complains_at(now)];
            let wake = wake.into_iter().flatten().min();
            let mut heard = Vec::new();
            tokio::select! {
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let claims = self.orders.borrow_and_update().clone();
                    self.proofs.claim(&claims, Instant::now());
                }
                outcome = hear(&self.tools.listeners, self.tag, &mut heard) => {
                    if let Err((family, error)) = outcome {
                        warn!("cannot hear answers to probes: {error}; tried again");
                        self.tools.listeners.remove(&family);
                    }
                }
                () = sleep(wake) => {}
            }
            for answer in heard {
                if self.proofs.heard(&answer, Instant::now()) {
                    self.metrics.answered();
                    debug!(?answer, "a probe is answered");
                }
            }
        }
    }

    /// Sends what is due.
    async fn probe(&mut self) {
        let Self { proofs, nonces, random, .. } = self;
        let mut nonce = || {
            *nonces += 1;
            random.hash_one(*nonces)
        };
        let probes = proofs.probes(Instant::now(), &mut nonce);
        let mut known = BTreeMap::new();
        for probe in probes {
            let Way { device, next_hop, .. } = &probe.way;
            // Many probes at once go the same way.
            let way = (device.index, *next_hop);
            let way = match known.entry(way) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.tools.way(&probe.way).await),
            };
            let sent = match way {
                Ok((port, mac)) => self.tools.send(&probe, self.tag, port, *mac),
                Err(why) => Err(why.clone()),
            };
            match sent {
                Ok(()) => self.metrics.sent(),
                Err(why) => {
                    debug!(vip = %probe.vip, "no probe: {why}");
                    self.proofs.unsent(&probe, why);
                }
            }
        }
    }

    /// Tells what is known, if it is news.
    fn tell(&self) {
        let verdicts = self.proofs.verdicts(Instant::now());
        self.told.send_if_modified(|before| {
            if *before == verdicts {
                return false;
            }
            for (vip, verdict) in &verdicts {
                let earlier = before.get(vip);
                if earlier.map(|earlier| &earlier.proven) != Some(&verdict.proven) {
                    let blocks: Vec<_> = verdict.proven.iter().map(ToString::to_string).collect();
                    let blocks =
                        if blocks.is_empty() { "none".to_owned() } else { blocks.join(",") };
                    info!(%vip, blocks, "proven for the direct path: blocks {blocks}");
                }
                let why = verdict.message.as_str();
                let is_news = earlier.is_none_or(|earlier| earlier.message != why);
                if is_news && !["", BEING_PROVEN].contains(&why) {
                    warn!(%vip, "not proven for the direct path: {why}");
                }
            }
            *before = verdicts;
            true
        });
    }
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for answers. Cancel safe.
async fn hear(
    listeners: &BTreeMap<Family, AnswerListener>,
    tag: Tag,
    heard: &mut Vec<Answer>,
) -> Result<(), (Family, io::Error)> {
    let next = async |family: Family, heard: &mut Vec<Answer>| match listeners.get(&family) {
        Some(listener) => {
            let outcome = listener.next(|packet| heard.extend(answer(packet, tag))).await;
            outcome.map_err(|error| (family, error))
        }
        None => std::future::pending().await,
    };
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let outcome = tokio::select! {
        outcome = next(Family::V4, &mut v4) => outcome,
        outcome = next(Family::V6, &mut v6) => outcome,
    };
    heard.extend(v4);
    heard.extend(v6);
    outcome
}

/// With its cause, and what is to be done where that is known.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Unsent {
    let error = anyhow::Error::new(error);
    let denied = error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    });
    let advice = if denied { "; add NET_RAW to the capabilities of the container" } else { "" };
    Unsent::Failed(format!("{error:#}{advice}"))
}

impl Tools {
    /// Where a probe leaves, and for which neighbour.
    async fn way(&mut self, way: &Way) -> Result<(Port, Mac), Unsent> {
        let Way { device, next_hop, target: _ } = way;
        let port = Port::of(device.index).map_err(failed)?;
        let mac = self.neighbour(way).await?;
        let (next_hop, device) = (*next_hop, device.clone());
        mac.map(|mac| (port, mac)).ok_or(Unsent::NoNeighbour { next_hop, device })
    }

    async fn neighbour(&mut self, way: &Way) -> Result<Option<Mac>, Unsent> {
        let socket = match self.route_socket.take() {
            Some(socket) => socket,
            None => RouteSocket::open().map_err(failed)?,
        };
        let mac = link_address(&socket, way.next_hop, &way.device).await.map_err(failed)?;
        self.route_socket = Some(socket);
        Ok(mac)
    }

    /// Sends a probe, and sees to it that its answer is heard.
    fn send(&mut self, probe: &Probe, tag: Tag, port: &Port, to: Mac) -> Result<(), Unsent> {
        let family = Family::of(probe.vip.addr());
        if let Entry::Vacant(place) = self.listeners.entry(family) {
            place.insert(AnswerListener::open(family, tag).map_err(failed)?);
        }
        let sender = match self.sender.take() {
            Some(sender) => sender,
            None => FrameSender::open().map_err(failed)?,
        };
        let Some(frame) = frame(probe, tag, port.mac, to) else { return Ok(()) };
        sender.send(&frame, port).map_err(failed)?;
        self.sender = Some(sender);
        Ok(())
    }
}
