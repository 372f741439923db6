//! Floods of small packets, and round trips of one.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use nix::unistd::{Pid, gettid};

use super::{
    ADDRESS, ANSWER_WITHIN, ANY, FLOOD_PORT, Load, POUR_PORT, Processor, TICK, UDP_ECHO_PORT,
    address_bytes, bind_to, per_second,
};
use crate::host::Host;

/// Bytes of a packet of a flood, without headers.
const SMALL: usize = 16;
/// Packets for one call of the kernel.
const BATCH: usize = 64;
/// A flood has several connections, so that no single one's luck decides.
const FLOWS: usize = 4;
/// The first byte of a packet that asks for the address it came from.
const ASK: u8 = 1;
/// The first byte of a packet that asks to be flooded for as many milliseconds as the next two say.
const POUR: u8 = 2;
/// How often it is asked before giving up.
const ASKED: usize = 10;
/// A flood before it is counted: queues are full by then.
const WARM_UP: Duration = Duration::from_millis(30);

/// What became of a flood.
#[derive(Clone, Copy, Debug)]
pub struct Packets {
    /// Packets the receiver has read, a second.
    pub received: f64,
    /// The same for each second that a processor worked at sending and forwarding them: what else
    /// the machine does disturbs this less.
    pub per_second_of_work: f64,
    /// Packets the receiver's kernel dropped because it did not read fast enough, as a part of
    /// all that arrived: if this is not near 0, the receiver is what was measured.
    pub dropped_by_receiver: f64,
}

pub(super) fn listen(host: &Host, port: u16) -> Result<UdpSocket> {
    let socket = host
        .enter(|| UdpSocket::bind((ANY.0, port)))?
        .with_context(|| format!("cannot listen on UDP port {port} of {}", host.name))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

/// Counts packets; those that ask get an answer, which makes their connection an established one.
pub(super) fn count(socket: &UdpSocket, packets: &AtomicU64, stop: &AtomicBool) {
    bind_to(&Processor::Last);
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut buffers = [[0; SMALL]; BATCH];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let wait = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), wait, None);
        // A time-out, or an ICMP error about an answer.
        let Ok(messages) = received else { continue };
        let mut counted = 0;
        for message in messages {
            counted += 1;
            let asks = message.iovs().next().and_then(<[u8]>::first) == Some(&ASK);
            if let Some(peer) = message.address.filter(|_| asks) {
                let peer = SocketAddr::from(SocketAddrV4::from(peer));
                // What cannot be sent is asked for again.
                let _ = socket.send_to(&address_bytes(peer), peer);
            }
        }
        packets.fetch_add(counted, Ordering::Relaxed);
    }
}

/// Floods who asks for it, one after the other; answers others with the address they came from.
pub(super) fn pour(socket: &UdpSocket, stop: &AtomicBool) {
    bind_to(&Processor::First);
    let mut packet = [0; SMALL];
    let payload = [0; SMALL];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, peer)) = socket.recv_from(&mut packet) else { continue };
        let (SocketAddr::V4(to), [POUR, high, low, ..]) = (peer, packet) else {
            // What cannot be sent is asked for again.
            let _ = socket.send_to(&address_bytes(peer), peer);
            continue;
        };
        let time = Duration::from_millis(u16::from_be_bytes([high, low]).into());
        let (start, addresses) = (Instant::now(), [Some(SockaddrIn::from(to)); BATCH]);
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            let none = MsgFlags::empty();
            // What the kernel does not take does not arrive.
            let _ = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, [], none);
        }
    }
}

/// Answers each packet with the address it came from.
pub(super) fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    bind_to(&Processor::First);
    let mut packet = [0; SMALL];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut packet) {
            // What cannot be sent is asked for again.
            let _ = socket.send_to(&address_bytes(peer), peer);
        }
    }
}

impl Load<'_> {
    /// Sends small packets as fast as one processor can, and says how many arrive.
    pub fn packets(&self, duration: Duration) -> Result<Packets> {
        let server = self.server.at(FLOOD_PORT);
        let sockets: Vec<_> = (0..FLOWS).map(|_| self.asked(server)).collect::<Result<_>>()?;
        let dropped_before = dropped_by(&self.server.host)?;
        let work = Work::of_first_processor()?;
        let (stop, (tell, told)) = (AtomicBool::new(false), mpsc::channel());
        let (count, time, worked) = thread::scope(|scope| {
            let sender = scope.spawn(|| flood(&sockets, &stop, &tell));
            // Whatever happens from here on, the sender has to end.
            let measured = told.recv().context("the sender has not begun").and_then(|thread| {
                thread::sleep(WARM_UP);
                let (start, before) = (Instant::now(), self.server.packets());
                let worked = work.since_start(thread)?;
                thread::sleep(duration);
                let worked = work.since_start(thread)?.saturating_sub(worked);
                Ok((self.server.packets() - before, start.elapsed(), worked))
            });
            stop.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| anyhow!("the sender's thread panicked"))?;
            measured
        })?;
        let dropped = per_second(dropped_by(&self.server.host)? - dropped_before, time);
        let received = per_second(count, time);
        Ok(Packets {
            received,
            per_second_of_work: per_second(count, worked.max(Duration::from_micros(1))),
            dropped_by_receiver: dropped / (dropped + received).max(1.0),
        })
    }

    /// Has the server send small packets on a connection of the client's as fast as one processor can;
    /// says how many arrive a second.
    pub fn replies(&self, duration: Duration) -> Result<f64> {
        let socket = self.asked(self.server.at(POUR_PORT))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
        let dropped_before = dropped_by(self.client)?;
        let time = WARM_UP + duration;
        let [high, low] = u16::try_from(time.as_millis())?.to_be_bytes();
        socket.send(&[POUR, high, low])?;
        let count = move || {
            bind_to(&Processor::Last);
            let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
            let mut buffers = [[0; SMALL]; BATCH];
            let (start, mut counted) = (Instant::now(), 0);
            while start.elapsed() < time {
                let mut slices: Vec<_> =
                    buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
                let wait = MsgFlags::MSG_WAITFORONE;
                let fd = socket.as_raw_fd();
                // A time-out: the flood has ended a moment before the count.
                let Ok(messages) = recvmmsg(fd, &mut headers, slices.iter_mut(), wait, None) else {
                    break;
                };
                let some = u64::try_from(messages.count()).unwrap_or_default();
                counted += if start.elapsed() < WARM_UP { 0 } else { some };
            }
            per_second(counted, duration)
        };
        let received = thread::spawn(count).join().map_err(|_| anyhow!("a client panicked"))?;
        ensure!(received > 0.0, "no flood to {}", self.client.name);
        let dropped = dropped_by(self.client)? - dropped_before;
        ensure!(dropped == 0, "{} did not read {dropped} packets in time", self.client.name);
        Ok(received)
    }

    /// Sends a packet, waits for the answer, sends the next; says how often that went a second.
    pub fn udp_round_trips(&self, duration: Duration) -> Result<f64> {
        let socket = self.asked(self.server.at(UDP_ECHO_PORT))?;
        let trips = move || -> io::Result<f64> {
            bind_to(&Processor::First);
            let (start, mut trips) = (Instant::now(), 0);
            let mut answer = [0; ADDRESS];
            while start.elapsed() < duration {
                socket.send(&[0])?;
                socket.recv(&mut answer)?;
                trips += 1;
            }
            Ok(per_second(trips, start.elapsed()))
        };
        let trips = thread::spawn(trips).join().map_err(|_| anyhow!("a client panicked"))?;
        trips.with_context(|| format!("no answer to {}", self.client.name))
    }

    /// A socket whose first packet was answered, and seen with the right address.
    fn asked(&self, server: SocketAddr) -> Result<UdpSocket> {
        let socket = self.client.enter(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(ANY)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(socket)
        })??;
        let mut seen = [0; ADDRESS];
        let answered = (0..ASKED).any(|_| {
            socket.send(&[ASK]).is_ok() && socket.recv(&mut seen).is_ok_and(|n| n == ADDRESS)
        });
        ensure!(answered, "{} gets no answer from {server}", self.client.name);
        self.check(seen)?;
        Ok(socket)
    }
}

/// Who works for a flood: its sender's thread, which forwards its own packets in between, and the
/// kernel's thread that does so when that has become much.
struct Work {
    softirqs: PathBuf,
}

impl Work {
    fn of_first_processor() -> Result<Self> {
        let of_kernel = |process: &PathBuf| {
            fs::read_to_string(process.join("comm")).is_ok_and(|name| name == "ksoftirqd/0\n")
        };
        let mut processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        let softirqs = processes.find(of_kernel).context("there is no ksoftirqd/0")?;
        Ok(Self { softirqs })
    }

    fn since_start(&self, sender: Pid) -> Result<Duration> {
        let sender = PathBuf::from(format!("/proc/self/task/{sender}"));
        let mut all = Duration::ZERO;
        for task in [&sender, &self.softirqs] {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
            all += Duration::from_nanos(nanoseconds.context("no time in schedstat")?);
        }
        Ok(all)
    }
}

fn flood(sockets: &[UdpSocket], stop: &AtomicBool, began: &mpsc::Sender<Pid>) {
    bind_to(&Processor::First);
    // Nobody listens any more when the measurement has failed.
    let _ = began.send(gettid());
    let packet = [0; SMALL];
    let slices = [[IoSlice::new(&packet)]; BATCH];
    let addresses = [None::<()>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    while !stop.load(Ordering::Relaxed) {
        for socket in sockets {
            // What the kernel does not take does not arrive.
            let _ = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                &slices,
                addresses,
                [],
                MsgFlags::empty(),
            );
        }
    }
}

/// Packets dropped on a host since its namespace was made because a socket's buffer was full.
fn dropped_by(host: &Host) -> Result<u64> {
    let text = host.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (rows.next().unwrap_or(""), rows.next().unwrap_or(""));
    let mut columns = names.split(' ').zip(values.split(' '));
    columns
        .find(|(name, _)| *name == "RcvbufErrors")
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| anyhow!("/proc/net/snmp of {} has no RcvbufErrors", host.name))
}
