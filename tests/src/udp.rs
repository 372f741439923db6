//! UDP as a witness: a probe that numbers its packets and a server that says whom it saw.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::host::Host;

/// A probe is its number, 8 bytes; an answer adds the source the server saw, 16 bytes.
const PROBE: usize = 8;
const ANSWER: usize = PROBE + 16;
const TICK: Duration = Duration::from_millis(20);
/// How long the last answers may take after a probe was stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// What a [`UdpServer`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpServerReport {
    /// Packets by source address.
    pub sources: BTreeMap<IpAddr, u64>,
    /// Longest time between two packets.
    pub longest_gap: Duration,
}

/// A server on all addresses of a host, both families; answers every probe; ends when dropped.
#[derive(Debug)]
pub struct UdpServer {
    report: Arc<Mutex<UdpServerReport>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Starts a server that answers; it can be reached when this returns.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, true)
    }

    /// Starts a server that only counts.
    pub fn start_silent(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, false)
    }

    fn start_with(host: &Host, port: u16, answers: bool) -> Result<Self> {
        let socket = host
            .enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on UDP port {port} of {}", host.name))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        socket.set_read_timeout(Some(TICK))?;
        let report = Arc::<Mutex<UdpServerReport>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let worker = {
            let (report, stop) = (Arc::clone(&report), Arc::clone(&stop));
            thread::spawn(move || serve(&socket, answers, &report, &stop))
        };
        Ok(Self { report, stop, worker: Some(worker) })
    }

    /// What it has seen up to now.
    pub fn report(&self) -> UdpServerReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packets up to now, by source address.
    pub fn sources(&self) -> BTreeMap<IpAddr, u64> {
        self.report().sources
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn serve(socket: &UdpSocket, answers: bool, report: &Mutex<UdpServerReport>, stop: &AtomicBool) {
    let mut packet = [0; 2048];
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        // A time-out, or an ICMP error about an earlier answer.
        let Ok((length, peer)) = socket.recv_from(&mut packet) else { continue };
        let source = peer.ip().to_canonical();
        {
            let now = Instant::now();
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            *report.sources.entry(source).or_default() += 1;
            if let Some(last) = last.replace(now) {
                report.longest_gap = report.longest_gap.max(now - last);
            }
        }
        if answers && length >= PROBE {
            let mut answer = [0; ANSWER];
            answer[..PROBE].copy_from_slice(&packet[..PROBE]);
            answer[PROBE..].copy_from_slice(&to_v6(source).octets());
            // What cannot be sent is lost, as on a network.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Sends packets of that many bytes from one socket as fast as it goes, for that long; returns how
/// many the kernel took. A [`UdpServer::start_silent`] counts those that arrive.
pub fn udp_flood(host: &Host, server: SocketAddr, bytes: usize, duration: Duration) -> Result<u64> {
    let flood = || -> std::io::Result<u64> {
        let socket = connected(server, 0)?;
        let packet = vec![0; bytes];
        let (start, mut taken) = (Instant::now(), 0);
        while start.elapsed() < duration {
            for _ in 0..64 {
                taken += u64::from(socket.send(&packet).is_ok());
            }
        }
        Ok(taken)
    };
    host.enter(flood)?.with_context(|| format!("cannot send from {} to {server}", host.name))
}

/// A socket of the calling thread's network.
fn connected(server: SocketAddr, port: u16) -> std::io::Result<UdpSocket> {
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, port))?;
    socket.connect(server)?;
    Ok(socket)
}

/// How many lost packets a report names.
const FEW: usize = 8;

/// What became of a [`UdpProbe`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Packets sent, numbered from 0, counting those the kernel refused to send.
    pub sent: u64,
    /// Of these, packets the kernel refused (no route, an ICMP error about an earlier one).
    pub refused: u64,
    /// Packets that were answered.
    pub received: u64,
    /// Packets that were not.
    pub lost: u64,
    /// The numbers of the first few of these.
    pub first_lost: Vec<u64>,
    /// Longest time in which no packet was sent that was answered; 0 when none were lost.
    pub longest_outage: Duration,
    /// Answered packets by the source address the server saw.
    pub sources: BTreeMap<IpAddr, u64>,
    /// The address it saw, in the order of the numbers, where it changed: (number, source).
    pub changes: Vec<(u64, IpAddr)>,
}

/// A steady sender from one socket of a host to one server; runs until stopped.
#[derive(Debug)]
pub struct UdpProbe {
    log: Arc<Mutex<Log>>,
    /// The sender, then the receiver, each with what stops it: the last packet has to be sent
    /// before its answer can be the last one.
    workers: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
}

#[derive(Debug, Default)]
struct Log {
    /// When each packet was sent, and the source in its answer.
    packets: Vec<(Instant, Option<IpAddr>)>,
    refused: u64,
    received: u64,
}

impl UdpProbe {
    /// Sends `per_second` packets a second from a port of the kernel's choice.
    pub fn start(host: &Host, server: SocketAddr, per_second: u32) -> Result<Self> {
        Self::start_from_port(host, 0, server, per_second)
    }

    /// As [`UdpProbe::start`], from that port; 0 leaves it to the kernel.
    pub fn start_from_port(
        host: &Host,
        port: u16,
        server: SocketAddr,
        per_second: u32,
    ) -> Result<Self> {
        let socket = host
            .enter(|| connected(server, port))?
            .with_context(|| format!("cannot send from {} to {server}", host.name))?;
        socket.set_read_timeout(Some(TICK))?;
        let receiver = socket.try_clone()?;
        let log = Arc::<Mutex<Log>>::default();
        let interval = Duration::from_secs(1) / per_second.max(1);
        let [sending, receiving] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (sender_log, sender_stop) = (Arc::clone(&log), Arc::clone(&sending));
        let (receiver_log, receiver_stop) = (Arc::clone(&log), Arc::clone(&receiving));
        let workers = vec![
            (sending, thread::spawn(move || send(&socket, interval, &sender_log, &sender_stop))),
            (receiving, thread::spawn(move || receive(&receiver, &receiver_log, &receiver_stop))),
        ];
        Ok(Self { log, workers })
    }

    /// Number of answers up to now.
    pub fn received(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).received
    }

    /// Number of packets sent up to now.
    pub fn sent(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).packets.len() as u64
    }

    /// The source address in the answer to the last packet that was answered.
    pub fn seen_as(&self) -> Option<IpAddr> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.packets.iter().rev().find_map(|(_, source)| *source)
    }

    /// What became of the packets sent up to now; the last ones may still be under way.
    pub fn report(&self) -> UdpReport {
        summarize(&self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops sending, waits up to half a second for the last answers, and reports.
    pub fn stop(mut self) -> Result<UdpReport> {
        self.halt()?;
        Ok(self.report())
    }

    fn halt(&mut self) -> Result<()> {
        self.workers.drain(..).try_for_each(|(stop, worker)| {
            stop.store(true, Ordering::Relaxed);
            worker.join().map_err(|_| anyhow!("a probe's thread panicked"))
        })
    }
}

impl Drop for UdpProbe {
    fn drop(&mut self) {
        let _ = self.halt();
    }
}

fn send(socket: &UdpSocket, interval: Duration, log: &Mutex<Log>, stop: &AtomicBool) {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next += interval;
        let number = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.packets.push((Instant::now(), None));
            log.packets.len() as u64 - 1
        };
        if socket.send(&number.to_be_bytes()).is_err() {
            log.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
        }
    }
}

fn receive(socket: &UdpSocket, log: &Mutex<Log>, stop: &AtomicBool) {
    let mut packet = [0; ANSWER];
    let mut end = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            let end = *end.get_or_insert_with(|| Instant::now() + LAST_ANSWERS);
            let all = {
                let log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.received == log.packets.len() as u64
            };
            if all || Instant::now() >= end {
                return;
            }
        }
        // A time-out, or an ICMP error about an earlier packet.
        let Ok(ANSWER) = socket.recv(&mut packet) else { continue };
        let (number, source) = packet.split_at(PROBE);
        let (Ok(number), Ok(source)) = (number.try_into(), <[u8; 16]>::try_from(source)) else {
            continue;
        };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(u64::from_be_bytes(number)).unwrap_or(usize::MAX);
        let Some((_, seen @ None)) = log.packets.get_mut(index) else { continue };
        *seen = Some(Ipv6Addr::from(source).to_canonical());
        log.received += 1;
    }
}

fn summarize(log: &Log) -> UdpReport {
    let sent = log.packets.len() as u64;
    let mut report = UdpReport {
        sent,
        refused: log.refused,
        received: log.received,
        lost: sent - log.received,
        ..UdpReport::default()
    };
    // The outage begins with the first packet that was lost and ends with the next answered one.
    let mut since = None;
    for (number, (at, source)) in (0..).zip(&log.packets) {
        if let Some(source) = source {
            *report.sources.entry(*source).or_default() += 1;
            if report.changes.last().is_none_or(|(_, last)| last != source) {
                report.changes.push((number, *source));
            }
            if let Some(since) = since.take() {
                report.longest_outage = report.longest_outage.max(*at - since);
            }
        } else {
            if report.first_lost.len() < FEW {
                report.first_lost.push(number);
            }
            since.get_or_insert(*at);
        }
    }
    if let (Some(since), Some((last, _))) = (since, log.packets.last()) {
        report.longest_outage = report.longest_outage.max(*last - since);
    }
    report
}
