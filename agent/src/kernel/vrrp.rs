//! Hears the VRRP adverts of other nodes. Sends nothing.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket as StdSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::sleep;
use tracing::debug;

use crate::keepalived::hearing::Advert;

const VRRP: i32 = 112;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// Some thousand adverts.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Adverts are read together: there may be thousands a second.
const TOGETHER: Duration = Duration::from_millis(10);
/// An advert of 255 addresses of IPv6, and its header.
const LARGEST: usize = 5000;

/// Two sockets, one for each family; that of IPv6 where the kernel has it.
pub struct VrrpSocket {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    joined: Vec<u32>,
}

impl VrrpSocket {
    /// Takes `CAP_NET_RAW`; needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        Ok(Self { v4: raw(Domain::IPV4)?, v6: raw(Domain::IPV6).ok(), joined: Vec::new() })
    }

    /// Hears what is sent to everybody on these interfaces, also while no keepalived does.
    pub fn join(&mut self, interfaces: impl IntoIterator<Item = u32>) {
        for index in interfaces {
            if self.joined.contains(&index) {
                continue;
            }
            let interface = InterfaceIndexOrAddress::Index(index);
            let v4 = SockRef::from(&self.v4).join_multicast_v4_n(&GROUP_V4, &interface);
            let join_v6 = |socket| SockRef::from(socket).join_multicast_v6(&GROUP_V6, index);
            let v6 = self.v6.as_ref().map_or(Ok(()), join_v6);
            for error in [v4, v6].into_iter().filter_map(Result::err) {
                // An interface without IPv4, or without IPv6, is heard for the other.
                debug!("interface {index} is heard for one family only: {error}");
            }
            self.joined.push(index);
        }
    }

    /// Waits for adverts, and returns all that are there a moment later. Cancel safe.
    pub async fn next(&mut self) -> Vec<Advert> {
        let heard = tokio::select! {
            heard = self.v4.readable() => heard,
            heard = readable(self.v6.as_ref()) => heard,
        };
        sleep(TOGETHER).await;
        let mut adverts = Vec::new();
        if heard.is_ok() {
            drain(&self.v4, &mut adverts);
            self.v6.iter().for_each(|socket| drain(socket, &mut adverts));
        }
        adverts
    }
}

async fn readable(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

/// The standard library has no raw sockets; to receive from one is the same as from one of UDP.
fn raw(domain: Domain) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(VRRP)))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    UdpSocket::from_std(StdSocket::from(OwnedFd::from(socket)))
}

fn drain(socket: &UdpSocket, adverts: &mut Vec<Advert>) {
    let mut packet = [0; LARGEST];
    while let Ok((length, from)) = socket.try_recv_from(&mut packet) {
        let from = from.ip();
        // With its header, if it is of IPv4.
        let start = if from.is_ipv4() { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        adverts.extend(packet.get(start..length).and_then(|packet| Advert::read(packet, from)));
    }
}
