//! Sends frames of our own making, and hears answers to them on any interface, before the kernel decides
//! whom they are for: the VIP is their destination, and need not be an address of this node.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{LinkAddr, MsgFlags, sendto};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::proof::packet::{ICMP, ICMPV6, Mac, Tag, V4_FIRST_BYTE, V4_REPLY, V6_REPLY, offset};
use crate::routing::Family;

/// Longer than any answer.
const LARGEST: usize = 256;
/// All of a datagram.
const WHOLE: u32 = u32::MAX;

/// Sends frames; takes `CAP_NET_RAW`. Hears nothing.
#[derive(Debug)]
pub(super) struct FrameSender {
    socket: Socket,
}

/// An interface as a sender of frames knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    link: LinkAddr,
    /// Its own address.
    pub(super) mac: Mac,
}

impl FrameSender {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends a frame as it is.
    pub(super) fn send(&self, frame: &[u8], port: &Port) -> io::Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &port.link, MsgFlags::empty())?;
        Ok(())
    }
}

impl Port {
    /// That of the interface, which has to be one of Ethernet.
    pub(super) fn of(index: u32) -> io::Result<Self> {
        let mut links = getifaddrs()?.filter_map(|found| found.address?.as_link_addr().copied());
        let link = links.find(|link| u32::try_from(link.ifindex()) == Ok(index));
        let link = link.ok_or(Errno::ENODEV)?;
        let ethernet = link.hatype() == libc::ARPHRD_ETHER;
        let mac = link.addr().filter(|_| ethernet).ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "the interface is not one of Ethernet")
        })?;
        Ok(Self { link, mac })
    }
}

/// Hears answers to probes, on any interface. While it is open the kernel looks at a byte or two more of
/// every packet; it copies answers only.
#[derive(Debug)]
pub(super) struct AnswerListener {
    socket: AsyncFd<OwnedFd>,
}

impl AnswerListener {
    /// Hears answers with this tag; takes `CAP_NET_RAW` and needs a tokio runtime.
    pub(super) fn open(family: Family, tag: Tag) -> io::Result<Self> {
        let protocol = match family {
            Family::V4 => libc::ETH_P_IP,
            Family::V6 => libc::ETH_P_IPV6,
        };
        let protocol = u16::try_from(protocol).map_err(io::Error::other)?.to_be();
        // Not bound to an interface: packets that one keeps aside for it are cloned for the kernel's own
        // use, each of them, and an answer may come to another one (a VIP with a MAC of its own).
        let socket =
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(protocol))))?;
        socket.attach_filter(&filter(family, tag))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: waited_for(OwnedFd::from(socket))? })
    }

    /// Waits for packets, and hands those that are there to `each`, from the network layer on. Cancel
    /// safe.
    pub(super) async fn next(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let mut packet = [0; LARGEST];
        loop {
            match nix::unistd::read(self.socket.as_fd(), &mut packet) {
                Ok(length) => packet.get(..length).into_iter().for_each(&mut each),
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                // The interface it came by is down.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[expect(deprecated, reason = "the descriptor is owned, and whatever replaces this is unsafe")]
fn waited_for(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Answers of a family with the tag. Asks first what most packets fail: their protocol.
fn filter(family: Family, tag: Tag) -> Vec<SockFilter> {
    use libc::{BPF_B, BPF_W};
    let tag = u32::from_be_bytes(tag);
    match family {
        Family::V4 => program(&[
            (BPF_B, 9, ICMP.into()),
            // without options
            (BPF_B, 0, V4_FIRST_BYTE.into()),
            (BPF_B, offset::V4_HEADER, V4_REPLY.into()),
            (BPF_W, offset::V4_HEADER + offset::TAG, tag),
        ]),
        Family::V6 => program(&[
            (BPF_B, 6, ICMPV6.into()),
            (BPF_B, offset::V6_HEADER, V6_REPLY.into()),
            (BPF_W, offset::V6_HEADER + offset::TAG, tag),
        ]),
    }
}

/// Takes packets that have each value, of such a size, at its place.
fn program(tests: &[(u32, usize, u32)]) -> Vec<SockFilter> {
    let operation = |code: u32, to_drop: usize, operand: u32| {
        let code = u16::try_from(code).unwrap_or_default();
        SockFilter::new(code, 0, u8::try_from(to_drop).unwrap_or(u8::MAX), operand)
    };
    let mut program = Vec::new();
    for (index, &(size, at, value)) in tests.iter().enumerate() {
        let to_drop = 2 * (tests.len() - index) - 1;
        let at = u32::try_from(at).unwrap_or_default();
        program.push(operation(libc::BPF_LD | libc::BPF_ABS | size, 0, at));
        program.push(operation(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_drop, value));
    }
    program.push(operation(libc::BPF_RET | libc::BPF_K, 0, WHOLE));
    program.push(operation(libc::BPF_RET | libc::BPF_K, 0, 0));
    program
}
