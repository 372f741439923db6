//! Load, and how much of it gets through a second: for measuring. Other modules are the witnesses.
//!
//! Threads are bound to processors, so that the same work meets the same conditions each time: what
//! a sender's packets cost on their way, across all namespaces, is done by the sender's processor,
//! the first; the receiver of a flood has the last one. Both ends of round trips share the first:
//! waking another processor would cost more than the way.

mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::host::Host;

pub use tcp::{Connections, Destinations};
pub use udp::Packets;

const FLOOD_PORT: u16 = 7101;
const UDP_ECHO_PORT: u16 = 7102;
const TCP_PORT: u16 = 7103;
const POUR_PORT: u16 = 7104;
/// How often a server looks whether it should end.
const TICK: Duration = Duration::from_millis(500);
/// How long an answer may take before it is asked for again.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// An address in an answer: 16 bytes, IPv4 in its mapped form.
const ADDRESS: usize = 16;

/// Counts what arrives on a host, and answers where it is asked to. IPv4 only. Ends within half a
/// second of being dropped.
#[derive(Debug)]
pub struct LoadServer {
    host: Host,
    others: Vec<Ipv4Addr>,
    packets: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl LoadServer {
    /// Starts it; it can be reached when this returns.
    pub fn start(host: &Host) -> Result<Self> {
        let (packets, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let flood = udp::listen(host, FLOOD_PORT)?;
        let echo = udp::listen(host, UDP_ECHO_PORT)?;
        let source = udp::listen(host, POUR_PORT)?;
        let listener = tcp::listen(host, TCP_PORT)?;
        let (counter, until) = (Arc::clone(&packets), Arc::clone(&stop));
        thread::spawn(move || udp::count(&flood, &counter, &until));
        let until = Arc::clone(&stop);
        thread::spawn(move || udp::echo(&echo, &until));
        let until = Arc::clone(&stop);
        thread::spawn(move || udp::pour(&source, &until));
        for listener in [listener.try_clone()?, listener] {
            let until = Arc::clone(&stop);
            thread::spawn(move || tcp::accept(&listener, &until));
        }
        Ok(Self { host: host.clone(), others: Vec::new(), packets, stop })
    }

    /// Lets it be reached at every address of a network, too, as if it were many. Others need a route.
    pub fn also_at(&mut self, network: Ipv4Net) -> Result<()> {
        self.host.run(&["ip", "route", "add", "local", &network.to_string(), "dev", "lo"])?;
        self.others.extend(network.hosts());
        Ok(())
    }

    /// Packets of floods that it has received.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.host.v4, port).into()
    }
}

impl Drop for LoadServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// From where load comes, and as whom the server has to see it.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Who sends.
    pub client: &'a Host,
    /// Who receives.
    pub server: &'a LoadServer,
    /// The client's address as the server sees it; with any other, a measurement fails.
    pub source: IpAddr,
}

impl Load<'_> {
    fn check(&self, seen: [u8; ADDRESS]) -> Result<()> {
        let seen = Ipv6Addr::from(seen).to_canonical();
        ensure!(
            seen == self.source,
            "{} is seen as {seen} instead of {}",
            self.client.name,
            self.source
        );
        Ok(())
    }
}

fn address_bytes(peer: SocketAddr) -> [u8; ADDRESS] {
    match peer.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Everything of a rate: how many in that time.
fn per_second(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let count = count as f64;
    count / time.as_secs_f64()
}

/// Any address of IPv4, port of the kernel's choice.
const ANY: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);

enum Processor {
    First,
    Last,
}

/// Binds the calling thread to a processor, where there are two.
fn bind_to(processor: &Processor) {
    let count = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut set = CpuSet::new();
    let number = match processor {
        Processor::First => 0,
        Processor::Last => count - 1,
    };
    // Not being allowed to makes figures vary more, no more than that.
    if set.set(number).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
