//! The witness: which IP packets reached the machines outside, and with what source.
//!
//! It listens inside `outside` and the router, on their own LAN interfaces, and counts only frames
//! that were sent to their MAC address. So the hop of a packet from the pod's node to the holder,
//! which crosses the LAN with the pod's own address, is no leak, and VXLAN does not appear.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};

use crate::host::Host;
use crate::lab::Lab;

/// Enough for any header; the rest of a frame is cut off.
const SNAPLEN: usize = 128;
const RECEIVE_BUFFER: usize = 64 << 20;
/// `PACKET_HOST`, `PACKET_BROADCAST`, `PACKET_MULTICAST`: for this machine. 3 is for others, 4 sent.
const TO_THIS_MACHINE: std::ops::RangeInclusive<u8> = 0..=2;

/// Packets with these in common are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number: 1 ICMP, 6 TCP, 17 UDP, 58 `ICMPv6`.
    pub protocol: u8,
    /// Source port; the type of an ICMP message; 0 for other protocols and later fragments.
    pub source_port: u16,
    /// Destination port; 0 where there is none.
    pub destination_port: u16,
    /// The MAC address the frame came from, which says which node sent it.
    pub source_mac: [u8; 6],
}

/// How often and when a [`Flow`] was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Number of packets.
    pub packets: u64,
    /// The first of them.
    pub first: Instant,
    /// The last of them.
    pub last: Instant,
}

/// A running capture; ends when dropped.
#[derive(Debug)]
pub struct Capture {
    taps: Vec<Arc<Tap>>,
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Tap {
    place: String,
    socket: OwnedFd,
    interface: usize,
    /// MAC addresses whose frames do not count.
    left_out: Vec<[u8; 6]>,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    flows: BTreeMap<Flow, Seen>,
    lost: u32,
    failed: Option<Errno>,
}

impl Capture {
    /// Captures what reaches `outside` and the router from the nodes; it runs when this returns.
    ///
    /// What these two send to each other is left out, whatever the source address.
    pub fn start(lab: &Lab) -> Result<Self> {
        let places = [(lab.outside(), "eth0"), (lab.router(), "lan")];
        Self::without_senders(&places, &places.map(|(host, _)| Lab::lan_mac(host)))
    }

    /// Captures what reaches these hosts by these interfaces.
    pub fn on(places: &[(&Host, &str)]) -> Result<Self> {
        Self::without_senders(places, &[])
    }

    fn without_senders(places: &[(&Host, &str)], left_out: &[[u8; 6]]) -> Result<Self> {
        let taps: Vec<Arc<Tap>> = places
            .iter()
            .map(|(host, interface)| Tap::open(host, interface, left_out).map(Arc::new))
            .collect::<Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let readers = taps
            .iter()
            .map(|tap| {
                let (tap, stop) = (Arc::clone(tap), Arc::clone(&stop));
                thread::spawn(move || tap.read_until(&stop))
            })
            .collect();
        Ok(Self { taps, stop, readers })
    }

    /// All that was seen up to now. A packet that a program outside has received is in it.
    ///
    /// # Errors
    /// When the capture lost frames: it is no witness then.
    pub fn flows(&self) -> Result<BTreeMap<Flow, Seen>> {
        let mut all: BTreeMap<Flow, Seen> = BTreeMap::new();
        for tap in &self.taps {
            let mut record = tap.lock();
            tap.drain(&mut record);
            ensure!(record.lost == 0, "the capture on {} lost {} frames", tap.place, record.lost);
            if let Some(errno) = record.failed {
                return Err(errno).with_context(|| format!("cannot capture on {}", tap.place));
            }
            for (flow, seen) in &record.flows {
                all.entry(*flow)
                    .and_modify(|sum| {
                        sum.packets += seen.packets;
                        sum.first = sum.first.min(seen.first);
                        sum.last = sum.last.max(seen.last);
                    })
                    .or_insert(*seen);
            }
        }
        Ok(all)
    }

    /// Forgets what was seen up to now.
    pub fn clear(&self) {
        for tap in &self.taps {
            let mut record = tap.lock();
            tap.drain(&mut record);
            record.flows.clear();
        }
    }

    /// Packets towards `destination`, by source address. Neighbour discovery does not count.
    pub fn sources_towards(&self, destination: IpAddr) -> Result<BTreeMap<IpAddr, u64>> {
        self.sources_where(|flow| flow.destination == destination && !is_discovery(flow))
    }

    /// Packets of the flows that `wanted` picks, by source address.
    pub fn sources_where(&self, wanted: impl Fn(&Flow) -> bool) -> Result<BTreeMap<IpAddr, u64>> {
        let mut sources = BTreeMap::new();
        for (flow, seen) in self.flows()?.into_iter().filter(|(flow, _)| wanted(flow)) {
            *sources.entry(flow.source).or_default() += seen.packets;
        }
        Ok(sources)
    }

    /// Asserts that at least `at_least` packets went to `destination`, all of them from `source`.
    ///
    /// # Panics
    /// When another source was seen, fewer packets flowed, or the capture lost frames.
    #[track_caller]
    pub fn assert_only_source(&self, source: IpAddr, destination: IpAddr, at_least: u64) {
        let sources = self.sources_towards(destination);
        let wrong = sources.as_ref().err().map(|error| format!("{error:#}")).or_else(|| {
            let sources = sources.as_ref().ok()?;
            let good = sources.get(&source).copied().unwrap_or(0);
            (good < at_least || sources.len() > 1).then(|| {
                format!("{destination} was to see {at_least} or more packets from {source} only")
            })
        });
        assert!(wrong.is_none(), "{}; seen:\n{}", wrong.unwrap_or_default(), self.text());
    }

    /// Asserts that no packet went to `destination`.
    ///
    /// # Panics
    /// When one was seen, or the capture lost frames.
    #[track_caller]
    pub fn assert_silent(&self, destination: IpAddr) {
        let sources = self.sources_towards(destination);
        assert!(
            sources.as_ref().is_ok_and(BTreeMap::is_empty),
            "{destination} was to see nothing, but saw {sources:?}; seen:\n{}",
            self.text()
        );
    }

    /// All flows, one a line, for people.
    pub fn text(&self) -> String {
        let flows = match self.flows() {
            Ok(flows) => flows,
            Err(error) => return format!("{error:#}"),
        };
        let mut text = String::new();
        for (flow, seen) in flows {
            let Flow { source, destination, protocol, source_port, destination_port, source_mac } =
                flow;
            let mac: Vec<String> = source_mac.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(
                text,
                "{source} {source_port} > {destination} {destination_port}, protocol {protocol}, \
                 from {}: {} packets",
                mac.join(":"),
                seen.packets
            );
        }
        text
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Router and neighbour discovery, redirects: `ICMPv6` 133 to 137.
fn is_discovery(flow: &Flow) -> bool {
    flow.protocol == 58 && (133..=137).contains(&flow.source_port)
}

impl Tap {
    fn open(host: &Host, interface: &str, left_out: &[[u8; 6]]) -> Result<Self> {
        let place = format!("{}:{interface}", host.name);
        let (socket, interface) = host
            .enter(|| -> nix::Result<_> {
                let index = if_nametoindex(interface)?;
                let socket = socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                    SockProtocol::EthAll,
                )?;
                setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
                setsockopt(&socket, sockopt::RxqOvfl, &1)?;
                Ok((socket, index as usize))
            })?
            .with_context(|| format!("cannot capture on {place}"))?;
        let left_out = left_out.to_vec();
        Ok(Self { place, socket, interface, left_out, record: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut wanted, PollTimeout::from(20_u8));
            let mut record = self.lock();
            match ready {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => self.drain(&mut record),
                Err(errno) => record.failed = Some(errno),
            }
            if record.failed.is_some() {
                return;
            }
        }
    }

    /// Takes in all frames that have arrived: they are queued before a program can receive them.
    fn drain(&self, record: &mut Record) {
        let mut frame = [0; SNAPLEN];
        let mut control = cmsg_space!(u32);
        loop {
            let mut parts = [IoSliceMut::new(&mut frame)];
            let received = recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(errno) => {
                    record.failed = Some(errno);
                    return;
                }
            };
            for part in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::RxqOvfl(lost) = part {
                    record.lost = record.lost.max(lost);
                }
            }
            let for_us = message.address.is_some_and(|address| {
                address.ifindex() == self.interface && TO_THIS_MACHINE.contains(&address.pkttype())
            });
            let length = message.bytes;
            if for_us
                && let Some(flow) = parse(&frame[..length])
                && !self.left_out.contains(&flow.source_mac)
            {
                let now = Instant::now();
                let seen =
                    record.flows.entry(flow).or_insert(Seen { packets: 0, first: now, last: now });
                seen.packets += 1;
                seen.last = now;
            }
        }
    }
}

/// Reads an Ethernet frame; none when it has no IP packet.
fn parse(frame: &[u8]) -> Option<Flow> {
    let source_mac = frame.get(6..12)?.try_into().ok()?;
    let packet = frame.get(14..)?;
    let (source, destination, protocol, payload): (IpAddr, IpAddr, u8, Option<&[u8]>) = match frame
        .get(12..14)?
    {
        [0x08, 0x00] => {
            let header = packet.get(..20)?;
            let first_fragment = u16::from_be_bytes([header[6], header[7]]).trailing_zeros() >= 13;
            let length = usize::from(header[0] & 0x0f) * 4;
            (
                Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?).into(),
                Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?).into(),
                header[9],
                packet.get(length..).filter(|_| first_fragment),
            )
        }
        [0x86, 0xdd] => {
            let header = packet.get(..40)?;
            (
                Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?).into(),
                Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?).into(),
                header[6],
                packet.get(40..),
            )
        }
        _ => return None,
    };
    let (source_port, destination_port) = match (protocol, payload) {
        (6 | 17, Some([a, b, c, d, ..])) => {
            (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        }
        (1 | 58, Some([kind, ..])) => (u16::from(*kind), 0),
        _ => (0, 0),
    };
    Some(Flow { source, destination, protocol, source_port, destination_port, source_mac })
}
