//! When an element of the agent's map of pods changes, as the kernel announces it.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tests::Host;

/// `NFNLGRP_NFTABLES` as a bit of a socket's groups.
const NFTABLES_GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWSETELEM`.
const NEW_ELEMENT: [u8; 2] = [12, 10];
/// The length of a netlink message's header.
const HEADER: usize = 16;

/// A listener to a node's nftables.
pub(crate) struct KernelNews {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl KernelNews {
    /// Listens from now on.
    pub(crate) fn subscribe(node: &Host) -> Result<Self> {
        let open = || {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )
        };
        let socket = node.enter(open)??;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
        Ok(Self { socket, buffer: vec![0; 1 << 16] })
    }

    /// Waits until the pod has that VIP, and says when that was.
    pub(crate) fn wait_mapped(&mut self, pod: Ipv4Addr, vip: Ipv4Addr) -> Result<Instant> {
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
                .with_context(|| format!("no news of {pod} → {vip} from the kernel"))?;
            let now = Instant::now();
            let mut rest = &self.buffer[..length];
            while let Some(message) = first_message(rest)? {
                let names = |address: Ipv4Addr| {
                    message[HEADER..].windows(4).any(|bytes| bytes == address.octets())
                };
                if message[4..6] == NEW_ELEMENT && names(pod) && names(vip) {
                    return Ok(now);
                }
                rest = &rest[message.len().next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn first_message(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let Some(length) = bytes.first_chunk() else {
        ensure!(bytes.is_empty(), "a netlink message without a header");
        return Ok(None);
    };
    let length = usize::try_from(u32::from_ne_bytes(*length))?;
    match bytes.get(..length) {
        Some(message) if length >= HEADER => Ok(Some(message)),
        _ => bail!("a netlink message of length {length}"),
    }
}
