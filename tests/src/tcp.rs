//! TCP: a server, single requests, a session that lives on, and transfers that are checked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::Host;

mod transfer;

pub use transfer::{ConnectRate, TcpReport, TcpTransfer, connect_rate};

const TICK: Duration = Duration::from_millis(20);
/// How long a server waits for the next byte of a client before it lets go.
const IDLE: Duration = Duration::from_secs(30);
const BLOCK: usize = 16 << 10;
/// A trickle: so many bytes each time.
const DROP: usize = 1000;
const BETWEEN_DROPS: Duration = Duration::from_millis(10);

/// What a client asks for with its first byte.
#[derive(Clone, Copy)]
enum Request {
    /// The server says which address it sees and closes.
    WhoAmI = 1,
    /// The server sends back what comes.
    Echo = 2,
    /// The client sends the pattern and closes its side; the server says how many bytes were right.
    Upload = 3,
    /// The server sends the pattern until the client closes.
    Download = 4,
    /// As a download, but a little at a time.
    Trickle = 5,
}

/// A server on all addresses of a host, both families; ends when dropped.
#[derive(Debug)]
pub struct TcpServer {
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Starts a server; it can be reached when this returns.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host
            .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on TCP port {port} of {}", host.name))?;
        let peers = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let worker = {
            let (peers, stop) = (Arc::clone(&peers), Arc::clone(&stop));
            thread::spawn(move || accept(&listener, &peers, &stop))
        };
        Ok(Self { peers, stop, worker: Some(worker) })
    }

    /// The clients' addresses, in the order of their connections.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn accept(listener: &TcpListener, peers: &Mutex<Vec<SocketAddr>>, stop: &Arc<AtomicBool>) {
    let mut connections = Vec::new();
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wanted, PollTimeout::from(20_u8));
        while let Ok((stream, peer)) = listener.accept() {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
            let stop = Arc::clone(stop);
            connections.retain(|connection: &JoinHandle<_>| !connection.is_finished());
            connections.push(thread::spawn(move || serve(stream, peer, &stop)));
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(TICK))?;
    let mut request = [0];
    if read_some(&mut stream, &mut request, stop)? == 0 {
        return Ok(());
    }
    let mut block = vec![0; BLOCK];
    match request[0] {
        byte if byte == Request::Echo as u8 => loop {
            let length = read_some(&mut stream, &mut block, stop)?;
            if length == 0 {
                return Ok(());
            }
            stream.write_all(&block[..length])?;
        },
        byte if byte == Request::Upload as u8 => {
            let mut right = 0_u64;
            loop {
                let length = read_some(&mut stream, &mut block, stop)?;
                if length == 0 {
                    return stream.write_all(&right.to_be_bytes());
                }
                right += transfer::right_bytes(right, &block[..length]);
            }
        }
        byte if byte == Request::Download as u8 => send(&mut stream, &mut block, None, stop),
        byte if byte == Request::Trickle as u8 => {
            send(&mut stream, &mut block[..DROP], Some(BETWEEN_DROPS), stop)
        }
        _ => write!(stream, "{}", peer.ip()),
    }
}

/// Sends the pattern until the client closes, a block at a time.
fn send(
    stream: &mut TcpStream,
    block: &mut [u8],
    pause: Option<Duration>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        transfer::fill(sent, block);
        match stream.write(block) {
            Ok(length) => sent += length as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        if let Some(pause) = pause {
            // Nothing is to be read but the end.
            stream.set_read_timeout(Some(pause))?;
            if stream.read(&mut [0]).is_ok() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads what is there; waits for it until the server stops or the client has been silent for long.
fn read_some(stream: &mut TcpStream, block: &mut [u8], stop: &AtomicBool) -> io::Result<usize> {
    let end = Instant::now() + IDLE;
    loop {
        match stream.read(block) {
            Err(error)
                if is_timeout(&error) && !stop.load(Ordering::Relaxed) && Instant::now() < end => {}
            other => return other,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn connect(
    host: &Host,
    server: SocketAddr,
    request: Request,
    timeout: Duration,
) -> Result<TcpStream> {
    host.enter(|| connect_here(server, request, timeout))?
        .with_context(|| format!("cannot connect from {} to {server}", host.name))
}

/// From the calling thread's network.
fn connect_here(server: SocketAddr, request: Request, timeout: Duration) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(&[request as u8])?;
    Ok(stream)
}

/// Connects, asks the [`TcpServer`] which address it sees, and closes.
pub fn whoami(host: &Host, server: SocketAddr, timeout: Duration) -> Result<IpAddr> {
    let mut stream = connect(host, server, Request::WhoAmI, timeout)?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("no answer from {server} to {}", host.name))?;
    Ok(text.parse()?)
}

/// One connection to a [`TcpServer`], used for requests and answers as long as it lives.
#[derive(Debug)]
pub struct TcpSession {
    stream: TcpStream,
    exchanges: u64,
}

impl TcpSession {
    /// Connects.
    pub fn open(host: &Host, server: SocketAddr, timeout: Duration) -> Result<Self> {
        Ok(Self { stream: connect(host, server, Request::Echo, timeout)?, exchanges: 0 })
    }

    /// The local address of the connection.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends a line and waits for it to come back; says how long it took.
    ///
    /// # Errors
    /// A reset, the end of the connection, a wrong answer, or none in time.
    pub fn exchange(&mut self, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        let question = format!("exchange {:016}\n", self.exchanges);
        self.exchanges += 1;
        self.stream.set_read_timeout(Some(timeout))?;
        self.stream.write_all(question.as_bytes()).context("cannot send on the session")?;
        let mut answer = vec![0; question.len()];
        self.stream.read_exact(&mut answer).context("no answer on the session")?;
        ensure!(answer == question.as_bytes(), "a wrong answer on the session");
        Ok(start.elapsed())
    }

    /// Closes it in order.
    pub fn close(self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Both)?)
    }
}
