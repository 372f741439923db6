//! Long transfers, whose content is checked, and rates of connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::{BLOCK, Request, TICK, connect, connect_here, is_timeout};
use crate::host::Host;

/// How long an upload waits for the server's count.
const COUNT_WITHIN: Duration = Duration::from_secs(10);

/// The byte at a place of every transfer.
fn pattern(place: u64) -> u8 {
    // 251 is prime: a lost or doubled block of any usual size shows.
    u8::try_from(place % 251).unwrap_or_default()
}

/// Fills a block that begins at a place.
pub(super) fn fill(from: u64, block: &mut [u8]) {
    for (place, byte) in (from..).zip(block) {
        *byte = pattern(place);
    }
}

/// How many bytes of a block that begins at a place are right, up to the first that is not.
pub(super) fn right_bytes(from: u64, block: &[u8]) -> u64 {
    (from..).zip(block).take_while(|(place, byte)| pattern(*place) == **byte).count() as u64
}

/// What became of a [`TcpTransfer`].
#[derive(Clone, Debug)]
pub struct TcpReport {
    /// Bytes that arrived, in order and unchanged.
    pub bytes: u64,
    /// From the first byte to the end.
    pub duration: Duration,
    /// Longest time without progress: received bytes of a download, bytes the kernel took of an
    /// upload (its send buffer is kept small, so that a silent network shows).
    pub longest_stall: Duration,
    /// Segments the client's host sent again meanwhile; those of all its connections.
    pub retransmits: u64,
    /// What ended it before it was stopped: a reset, a wrong byte, a missing count.
    pub error: Option<String>,
}

/// An upload or download that runs until stopped.
#[derive(Debug)]
pub struct TcpTransfer {
    host: Host,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    retransmits_before: u64,
    worker: Option<JoinHandle<TcpReport>>,
}

impl TcpTransfer {
    /// The client sends, at most `bytes_per_second` (`None`: as fast as it goes).
    pub fn upload(host: &Host, server: SocketAddr, bytes_per_second: Option<u64>) -> Result<Self> {
        let stream = connect(host, server, Request::Upload, COUNT_WITHIN)?;
        setsockopt(&stream, sockopt::SndBuf, &(64 << 10))?;
        Self::run(host, stream, move |stream, bytes, stop| {
            upload(stream, bytes_per_second, bytes, stop)
        })
    }

    /// The server sends, as fast as it goes; the client only acknowledges.
    pub fn download(host: &Host, server: SocketAddr) -> Result<Self> {
        let stream = connect(host, server, Request::Download, COUNT_WITHIN)?;
        Self::run(host, stream, |mut stream, bytes, stop| download(&mut stream, bytes, stop))
    }

    /// The server sends a little at a time, some 100 kB a second; the client only acknowledges.
    pub fn trickle(host: &Host, server: SocketAddr) -> Result<Self> {
        let stream = connect(host, server, Request::Trickle, COUNT_WITHIN)?;
        Self::run(host, stream, |mut stream, bytes, stop| {
            let report = download(&mut stream, bytes, stop);
            // In order: what came after the end would be answered with a reset.
            let ended = stream.shutdown(Shutdown::Write).is_ok();
            let mut rest = vec![0; BLOCK];
            while ended && stream.read(&mut rest).is_ok_and(|length| length > 0) {}
            report
        })
    }

    fn run(
        host: &Host,
        stream: TcpStream,
        act: impl FnOnce(TcpStream, &AtomicU64, &AtomicBool) -> TcpReport + Send + 'static,
    ) -> Result<Self> {
        let retransmits_before = host.tcp_counters()?.retransmits;
        let (bytes, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let worker = {
            let (bytes, stop) = (Arc::clone(&bytes), Arc::clone(&stop));
            thread::spawn(move || act(stream, &bytes, &stop))
        };
        Ok(Self { host: host.clone(), bytes, stop, retransmits_before, worker: Some(worker) })
    }

    /// Bytes sent or received up to now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends it in order and reports.
    pub fn stop(mut self) -> Result<TcpReport> {
        self.stop.store(true, Ordering::Relaxed);
        let worker = self.worker.take().ok_or_else(|| anyhow!("the transfer has ended"))?;
        let mut report = worker.join().map_err(|_| anyhow!("the transfer's thread panicked"))?;
        report.retransmits = self.host.tcp_counters()?.retransmits - self.retransmits_before;
        Ok(report)
    }
}

impl Drop for TcpTransfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Keeps the time of the last progress.
struct Progress {
    start: Instant,
    last: Instant,
    longest_stall: Duration,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, longest_stall: Duration::ZERO }
    }

    fn made(&mut self) {
        self.look();
        self.last = Instant::now();
    }

    fn look(&mut self) {
        self.longest_stall = self.longest_stall.max(self.last.elapsed());
    }

    fn report(mut self, bytes: u64, error: Option<String>) -> TcpReport {
        self.look();
        let duration = self.start.elapsed();
        TcpReport { bytes, duration, longest_stall: self.longest_stall, retransmits: 0, error }
    }
}

fn upload(
    mut stream: TcpStream,
    bytes_per_second: Option<u64>,
    bytes: &AtomicU64,
    stop: &AtomicBool,
) -> TcpReport {
    let mut progress = Progress::new();
    // Twenty pieces a second at least, so that a pause of the sender is no stall.
    let piece = bytes_per_second
        .and_then(|rate| usize::try_from(rate / 20).ok())
        .map_or(BLOCK, |piece| piece.clamp(1, BLOCK));
    let mut block = vec![0; piece];
    let mut sent = 0_u64;
    let result = (|| -> io::Result<u64> {
        stream.set_write_timeout(Some(TICK))?;
        while !stop.load(Ordering::Relaxed) {
            fill(sent, &mut block);
            match stream.write(&block) {
                Ok(length) => {
                    sent += length as u64;
                    bytes.store(sent, Ordering::Relaxed);
                    progress.made();
                }
                Err(error) if is_timeout(&error) => progress.look(),
                Err(error) => return Err(error),
            }
            if let Some(rate) = bytes_per_second {
                let due = Duration::from_micros(sent.saturating_mul(1_000_000) / rate.max(1));
                thread::sleep(due.saturating_sub(progress.start.elapsed()));
            }
        }
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(COUNT_WITHIN))?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok(u64::from_be_bytes(count))
    })();
    match result {
        Ok(right) if right == sent => progress.report(sent, None),
        Ok(right) => {
            progress.report(right, Some(format!("{right} of {sent} bytes arrived unchanged")))
        }
        Err(error) => progress.report(sent, Some(error.to_string())),
    }
}

fn download(stream: &mut TcpStream, bytes: &AtomicU64, stop: &AtomicBool) -> TcpReport {
    let mut progress = Progress::new();
    let mut block = vec![0; BLOCK];
    let mut received = 0_u64;
    let error = loop {
        if stop.load(Ordering::Relaxed) {
            break None;
        }
        match stream.read(&mut block) {
            Ok(0) => break Some("the server closed the connection".to_owned()),
            Ok(length) => {
                let right = right_bytes(received, &block[..length]);
                received += right;
                if right < length as u64 {
                    break Some(format!("byte {received} is wrong"));
                }
                bytes.store(received, Ordering::Relaxed);
                progress.made();
            }
            Err(error) if is_timeout(&error) => progress.look(),
            Err(error) => break Some(error.to_string()),
        }
    };
    progress.report(received, error)
}

/// What [`connect_rate`] measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnectRate {
    /// Connections with a complete answer.
    pub succeeded: u64,
    /// Connections that failed.
    pub failed: u64,
    /// Of the successful ones.
    pub per_second: f64,
}

/// Opens connections to a [`TcpServer`](super::TcpServer) one after the other on `parallel` threads,
/// each with a request and an answer, for that long.
pub fn connect_rate(
    host: &Host,
    server: SocketAddr,
    parallel: usize,
    duration: Duration,
) -> Result<ConnectRate> {
    let (succeeded, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let client = || -> Result<()> {
            host.join_network()?;
            while start.elapsed() < duration {
                let counter = if one(server).is_ok() { &succeeded } else { &failed };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let clients: Vec<_> = (0..parallel).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let (succeeded, failed) = (succeeded.into_inner(), failed.into_inner());
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_second = succeeded as f64 / start.elapsed().as_secs_f64();
    Ok(ConnectRate { succeeded, failed, per_second })
}

fn one(server: SocketAddr) -> io::Result<()> {
    let mut stream = connect_here(server, Request::WhoAmI, Duration::from_secs(1))?;
    // Closed by reset: no port waits in TIME_WAIT.
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(())
}
