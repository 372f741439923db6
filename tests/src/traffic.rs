//! Traffic that runs while something is done to the cluster, and what became of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use crate::host::{Host, TcpCounters};
use crate::tcp::{TcpReport, TcpSession, TcpTransfer};
use crate::udp::{UdpProbe, UdpReport};
use crate::wait::wait_until;

/// How long a session may be silent before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);
const UPLOAD_BYTES_PER_SECOND: u64 = 100_000;
const EXCHANGES_EVERY: Duration = Duration::from_millis(5);
/// More than a few packets: what flows is seen to flow.
const FLOWING: u64 = 10;

/// One TCP session on which a question is asked every few milliseconds; ends when dropped.
#[derive(Debug)]
pub struct EchoLoop {
    log: Arc<Mutex<EchoReport>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

/// What became of an [`EchoLoop`].
#[derive(Clone, Debug, Default)]
pub struct EchoReport {
    /// Questions that were answered.
    pub exchanges: u64,
    /// The longest time an answer took.
    pub longest: Duration,
    /// What ended the session before it was stopped.
    pub error: Option<String>,
}

impl EchoLoop {
    /// Opens the session to a [`TcpServer`](crate::TcpServer) and goes on until stopped.
    pub fn start(host: &Host, server: SocketAddr) -> Result<Self> {
        let mut session = TcpSession::open(host, server, PATIENCE)?;
        let (log, stop) = (Arc::<Mutex<EchoReport>>::default(), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&log), Arc::clone(&stop));
        let worker = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let outcome = session.exchange(PATIENCE);
                let mut log = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(time) => {
                        log.exchanges += 1;
                        log.longest = log.longest.max(time);
                    }
                    Err(error) => {
                        log.error = Some(format!("{error:#}"));
                        return;
                    }
                }
                drop(log);
                thread::sleep(EXCHANGES_EVERY);
            }
            // Nothing more is asked of the session.
            let _ = session.close();
        });
        Ok(Self { log, stop, worker: Some(worker) })
    }

    /// What became of it up to now.
    pub fn report(&self) -> EchoReport {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for EchoLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// UDP packets each of which is a connection of its own, as seen by connection tracking.
#[derive(Debug)]
pub struct NewFlows {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl NewFlows {
    /// Sends `per_second` packets a second, each from another port; ends when dropped.
    pub fn start(host: &Host, server: SocketAddr, per_second: u32) -> Result<Self> {
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::new(AtomicBool::new(false)));
        let (count, stopped, host) = (Arc::clone(&sent), Arc::clone(&stop), host.clone());
        let local: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let interval = Duration::from_secs(1) / per_second.max(1);
        let worker = thread::spawn(move || {
            if host.join_network().is_err() {
                return;
            }
            while !stopped.load(Ordering::Relaxed) {
                let taken = UdpSocket::bind((local, 0))
                    .and_then(|socket| socket.send_to(b"new flow", server));
                count.fetch_add(u64::from(taken.is_ok()), Ordering::Relaxed);
                thread::sleep(interval);
            }
        });
        Ok(Self { sent, stop, worker: Some(worker) })
    }

    /// Packets sent up to now.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for NewFlows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// From some pods to one server: a UDP probe, a TCP upload and a TCP session with answers each, and a
/// download if that is asked for.
///
/// The server needs a [`UdpServer`](crate::UdpServer) and a [`TcpServer`](crate::TcpServer) on
/// that port.
#[derive(Debug)]
pub struct Traffic {
    server: SocketAddr,
    pods: Vec<PodTraffic>,
}

#[derive(Debug)]
struct PodTraffic {
    pod: Host,
    counters: TcpCounters,
    udp: UdpProbe,
    upload: TcpTransfer,
    echo: EchoLoop,
    download: Option<TcpTransfer>,
}

/// What became of one pod's part of [`Traffic`].
#[derive(Clone, Debug)]
pub struct PodReport {
    /// The pod's name.
    pub pod: String,
    /// Its UDP probe.
    pub udp: UdpReport,
    /// Its upload.
    pub upload: TcpReport,
    /// Its session.
    pub echo: EchoReport,
    /// Its download, if it had one.
    pub download: Option<TcpReport>,
    /// TCP resets that the pod sent or received.
    pub resets: u64,
}

impl Traffic {
    /// Starts it; `per_second` packets a second of each UDP probe. All of it flows on return.
    pub fn start(pods: &[&Host], server: SocketAddr, per_second: u32) -> Result<Self> {
        Self::begin(pods, server, per_second, false)
    }

    /// As [`start`](Self::start), with downloads: sessions on which the pods only acknowledge.
    pub fn start_with_downloads(
        pods: &[&Host],
        server: SocketAddr,
        per_second: u32,
    ) -> Result<Self> {
        Self::begin(pods, server, per_second, true)
    }

    fn begin(pods: &[&Host], server: SocketAddr, per_second: u32, downloads: bool) -> Result<Self> {
        let start = |pod: &&Host| -> Result<PodTraffic> {
            let download = downloads.then(|| TcpTransfer::trickle(pod, server));
            Ok(PodTraffic {
                pod: (*pod).clone(),
                counters: pod.tcp_counters()?,
                udp: UdpProbe::start(pod, server, per_second)?,
                upload: TcpTransfer::upload(pod, server, Some(UPLOAD_BYTES_PER_SECOND))?,
                echo: EchoLoop::start(pod, server)?,
                download: download.transpose()?,
            })
        };
        let traffic = Self { server, pods: pods.iter().map(start).collect::<Result<_>>()? };
        traffic.flows_within(Duration::from_secs(5))?;
        Ok(traffic)
    }

    /// Waits until all parts of it have made progress from now on.
    pub fn flows_within(&self, deadline: Duration) -> Result<Duration> {
        let start = Instant::now();
        let progress = || -> Vec<[u64; 4]> {
            let of = |pod: &PodTraffic| {
                // Without a download, that of the upload stands for it.
                let download = pod.download.as_ref().unwrap_or(&pod.upload);
                let exchanges = pod.echo.report().exchanges;
                [pod.udp.received(), exchanges, pod.upload.bytes(), download.bytes()]
            };
            self.pods.iter().map(of).collect()
        };
        let before = progress();
        let wanted = [FLOWING, 2, 1, 1];
        let flows = wait_until(deadline, || {
            progress().iter().zip(&before).all(|(now, before)| {
                now.iter().zip(before).zip(wanted).all(|((now, before), more)| now - before >= more)
            })
        });
        let now = progress();
        ensure!(
            flows,
            "not all traffic to {} flows within {deadline:?}: UDP answers, exchanges and bytes of \
             uploads and downloads of {:?} were {before:?} and are {now:?}",
            self.server,
            self.pods.iter().map(|pod| &pod.pod.name).collect::<Vec<_>>()
        );
        Ok(start.elapsed())
    }

    /// UDP packets sent up to now, by all pods.
    pub fn udp_sent(&self) -> u64 {
        self.pods.iter().map(|pod| pod.udp.sent()).sum()
    }

    /// Stops it and reports, in the order of the pods.
    ///
    /// # Errors
    /// When a TCP session broke: with its error.
    pub fn stop(self) -> Result<Vec<PodReport>> {
        // At once: each waits a while for its last answers.
        let stopping: Vec<_> =
            self.pods.into_iter().map(|pod| thread::spawn(move || pod.stop(self.server))).collect();
        stopping
            .into_iter()
            .map(|pod| pod.join().map_err(|_| anyhow!("a thread of the traffic panicked"))?)
            .collect()
    }
}

impl PodTraffic {
    fn stop(self, server: SocketAddr) -> Result<PodReport> {
        let Self { pod, counters, udp, upload, echo, download } = self;
        let now = pod.tcp_counters()?;
        let report = PodReport {
            udp: udp.stop()?,
            upload: upload.stop()?,
            echo: echo.report(),
            download: download.map(TcpTransfer::stop).transpose()?,
            resets: now.resets_sent + now.connections_reset
                - counters.resets_sent
                - counters.connections_reset,
            pod: pod.name,
        };
        let download = report.download.as_ref().and_then(|download| download.error.as_ref());
        let broken = report.upload.error.as_ref().or(report.echo.error.as_ref()).or(download);
        if let Some(error) = broken {
            bail!("a TCP session of {} to {server} broke: {error}", report.pod);
        }
        ensure!(report.resets == 0, "{} saw {} resets", report.pod, report.resets);
        Ok(report)
    }
}

impl fmt::Display for PodReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: UDP {} of {} lost, outage {} ms; longest answer {} ms",
            self.pod,
            self.udp.lost,
            self.udp.sent,
            self.udp.longest_outage.as_millis(),
            self.echo.longest.as_millis()
        )
    }
}
