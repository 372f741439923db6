//! Short connections one after the other, and round trips on one that lasts.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{
    ADDRESS, ANSWER_WITHIN, ANY, Load, Processor, TCP_PORT, TICK, address_bytes, bind_to,
    per_second,
};
use crate::host::Host;

/// The first byte of a client that wants an address and no more.
const WHOAMI: u8 = 1;
/// The first byte of a client that wants each byte back.
const ECHO: u8 = 2;
const CLIENTS: usize = 2;

/// What became of connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Connections with an answer, a second.
    pub succeeded: f64,
    /// Connections without, in all.
    pub failed: u64,
}

/// To where connections are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// The server's own address.
    One,
    /// One after the other of those that it is also at.
    Many,
}

pub(super) fn listen(host: &Host, port: u16) -> Result<TcpListener> {
    let listener = host
        .enter(|| TcpListener::bind((ANY.0, port)))?
        .with_context(|| format!("cannot listen on TCP port {port} of {}", host.name))?;
    let tick = i64::try_from(TICK.as_millis())?;
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::milliseconds(tick))?;
    Ok(listener)
}

pub(super) fn accept(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // A time-out, or a connection that is gone already.
        let Ok((stream, peer)) = listener.accept() else { continue };
        // A client that went away is the client's to tell.
        let _ = serve(stream, peer);
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut request = [0];
    stream.read_exact(&mut request)?;
    if request == [ECHO] {
        thread::spawn(move || echo(stream));
        return Ok(());
    }
    stream.write_all(&address_bytes(peer))
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    bind_to(&Processor::First);
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}

impl Load<'_> {
    /// Opens connections with a request and an answer, one after the other on two threads.
    pub fn connections(&self, duration: Duration, to: Destinations) -> Result<Connections> {
        let servers: Vec<SocketAddr> = match to {
            Destinations::One => vec![self.server.at(TCP_PORT)],
            Destinations::Many => {
                self.server.others.iter().map(|&addr| (addr, TCP_PORT).into()).collect()
            }
        };
        ensure!(!servers.is_empty(), "the server is at no other address");
        self.client.enter(|| servers.iter().try_for_each(|&server| self.whoami(server)))??;
        let (succeeded, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let start = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let client = || -> Result<()> {
                self.client.join_network()?;
                for &server in servers.iter().cycle() {
                    if start.elapsed() >= duration {
                        break;
                    }
                    let counter = if self.whoami(server).is_ok() { &succeeded } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        })?;
        let succeeded = per_second(succeeded.into_inner(), start.elapsed());
        Ok(Connections { succeeded, failed: failed.into_inner() })
    }

    fn whoami(&self, server: SocketAddr) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        // Closed by reset: no port waits in TIME_WAIT.
        setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
        stream.write_all(&[WHOAMI])?;
        let mut seen = [0; ADDRESS];
        stream.read_exact(&mut seen)?;
        self.check(seen)
    }

    /// Sends a byte on one connection, waits for it to come back, sends the next; says how often
    /// that went a second.
    pub fn tcp_round_trips(&self, duration: Duration) -> Result<f64> {
        let server = self.server.at(TCP_PORT);
        let trips = || -> io::Result<f64> {
            bind_to(&Processor::First);
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(&[ECHO])?;
            let mut byte = [0];
            let mut trip = || stream.write_all(&[0]).and_then(|()| stream.read_exact(&mut byte));
            trip()?;
            let (start, mut trips) = (Instant::now(), 0);
            while start.elapsed() < duration {
                trip()?;
                trips += 1;
            }
            Ok(per_second(trips, start.elapsed()))
        };
        match self.client.enter(trips)? {
            Ok(rate) => Ok(rate),
            Err(error) => bail!("no round trips of {}: {error}", self.client.name),
        }
    }
}
