//! Hears what changes in the kernel, and tells what of it can concern us.
//!
//! Nothing is decided by a notice but that it is time to look. Changes that are made over sockets
//! of our own are passed over, and so is, as far as a message shows it, what others do among
//! themselves: pods come and go all the time. Touches nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::routing::Ownership;

mod message;

/// Something changed; look at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// An address came, went, or became usable or unusable; no link-local one of IPv6.
    Address { addr: IpAddr, device: u32, usable: bool },
    /// A device came or was renamed, switched on or off. IPv4 routes by a device that is switched
    /// off are gone without a notice of their own.
    Link { index: u32, name: String, up: bool },
    /// A device is gone, and all that led to it.
    LinkGone { index: u32 },
    /// A rule or route with our protocol number or in our ranges was changed by somebody else.
    Routing,
    /// An on-link network or a default route of table `main` changed.
    Networks,
    /// A network is reached through a gateway by this device, which has not been heard of in such
    /// a part: it may be an overlay.
    Routed { device: u32 },
    /// `rp_filter` or forwarding was set. The interface's index; `None` is all, or the default.
    NetConf { device: Option<u32> },
    /// Somebody else changed this nft table: its chains, rules, maps or sets.
    Nftables { table: String },
    /// Somebody else changed elements in this nft table, or may have.
    Elements { table: String },
    /// Notices were lost: look at everything.
    Overrun,
}

/// What a subscriber wants to hear of.
#[derive(Clone, Debug)]
pub struct Interest {
    pub owned: Ownership,
    /// The names of our nft tables.
    pub tables: BTreeSet<String>,
    /// Whose changes to pass over.
    pub own_ports: OwnPorts,
}

/// What tells our own changes: the port ids of our netlink sockets, and the numbers of nftables
/// transactions that others (`nft`) made for us. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct OwnPorts(Arc<Mutex<Own>>);

#[derive(Debug, Default)]
struct Own {
    ports: BTreeSet<(isize, u32)>,
    /// Those of which not all was heard yet.
    generations: BTreeSet<u32>,
}

impl OwnPorts {
    /// Changes made over this rtnetlink socket are our own.
    pub fn add_route(&self, port: u32) {
        self.add(NETLINK_ROUTE, port);
    }

    /// Changes made over this netfilter socket are our own.
    pub fn add_netfilter(&self, port: u32) {
        self.add(NETLINK_NETFILTER, port);
    }

    /// The nftables transaction with this number was made for us. To be told before what it
    /// brought is heard.
    pub fn add_generation(&self, generation: u32) {
        self.own().generations.insert(generation);
    }

    fn add(&self, protocol: isize, port: u32) {
        self.own().ports.insert((protocol, port));
    }

    fn contain(&self, protocol: isize, port: u32) -> bool {
        self.own().ports.contains(&(protocol, port))
    }

    /// Whether the transaction whose number ends like this was made for us. `end` is all of the
    /// number, when nothing of that transaction or of those before it is left to hear.
    fn contain_generation(&self, number: u16, end: Option<u32>) -> bool {
        let mut own = self.own();
        // Told in order, so of an earlier number that ends alike everything was heard.
        let ours = own.generations.iter().any(|ours| ours & 0xffff == u32::from(number));
        if let Some(end) = end {
            own.generations.retain(|ours| end.wrapping_sub(*ours).cast_signed() < 0);
        }
        ours
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing more will be heard: subscribe anew, then look at everything.
#[derive(Debug, thiserror::Error)]
pub enum NotificationError {
    #[error("cannot subscribe to the kernel's notifications")]
    Subscribe(#[source] io::Error),
    #[error("cannot read the kernel's notifications")]
    Read(#[source] io::Error),
}

/// `RTNLGRP_*`: links, addresses, routes and rules of IPv4 and IPv6, and IPv4's settings.
const ROUTE_GROUPS: [u32; 8] = [1, 5, 9, 7, 11, 8, 19, 24];
/// `NFNLGRP_NFTABLES`
const NFTABLES_GROUP: u32 = 7;

/// Room for some ten thousand notifications that have not been read yet.
const RECEIVE_BUFFER: usize = 8 << 20;
/// No more than these fit into it.
const IN_BUFFER: usize = RECEIVE_BUFFER / 256;
/// No notification of the kernel is larger.
const LARGEST_DATAGRAM: usize = 64 << 10;
/// How many datagrams are read in a row before others get a turn.
const AT_ONCE: usize = 256;

/// The subscription.
pub struct Notifications {
    interest: Interest,
    route: TokioSocket,
    netfilter: TokioSocket,
    /// What is known of each device, so that only what is new of it is told.
    links: BTreeMap<u32, (String, bool)>,
    /// The devices that were told of as [`Notice::Routed`].
    routed: BTreeSet<u32>,
    pending: VecDeque<Notice>,
    buffer: Vec<u8>,
}

impl Notifications {
    /// Subscribes to all but changes of tables, in the calling thread's network namespace; needs a tokio runtime. Whatever
    /// changes after this returns is heard.
    pub fn subscribe(interest: Interest) -> Result<Self, NotificationError> {
        let route = open(NETLINK_ROUTE, &ROUTE_GROUPS).map_err(NotificationError::Subscribe)?;
        let netfilter = open(NETLINK_NETFILTER, &[]).map_err(NotificationError::Subscribe)?;
        Ok(Self {
            interest,
            route,
            netfilter,
            links: BTreeMap::new(),
            routed: BTreeSet::new(),
            pending: VecDeque::new(),
            buffer: Vec::with_capacity(LARGEST_DATAGRAM),
        })
    }

    /// Subscribes to changes of tables as well. Not at once, because the kernel tells us of our own
    /// changes too: with 100 000 pods to add, that takes it nearly as long as to add them. What has
    /// changed before this returns is not heard.
    pub fn hear_tables(&mut self) -> Result<(), NotificationError> {
        let socket = self.netfilter.socket_mut();
        socket.add_membership(NFTABLES_GROUP).map_err(NotificationError::Subscribe)
    }

    /// The next notice, once there is one. No notice is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Notice, NotificationError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Notice, NotificationError>> {
        for _ in 0..AT_ONCE {
            if let Some(notice) = self.pending.pop_front() {
                return Poll::Ready(Ok(notice));
            }
            self.buffer.clear();
            if let Poll::Ready(got) = self.route.poll_recv_from(context, &mut self.buffer) {
                self.take_in(NETLINK_ROUTE, got)?;
            } else if let Poll::Ready(got) =
                self.netfilter.poll_recv_from(context, &mut self.buffer)
            {
                self.take_in(NETLINK_NETFILTER, got)?;
            } else {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// The notices of everything that has happened by now, without waiting and each only once.
    pub fn drain(&mut self) -> Result<BTreeSet<Notice>, NotificationError> {
        let mut notices: BTreeSet<Notice> = self.pending.drain(..).collect();
        for protocol in [NETLINK_ROUTE, NETLINK_NETFILTER] {
            for _ in 0..IN_BUFFER {
                self.buffer.clear();
                let socket = if protocol == NETLINK_ROUTE { &self.route } else { &self.netfilter };
                let got = socket.socket_ref().recv_from(&mut self.buffer, libc::MSG_DONTWAIT);
                if got.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                    break;
                }
                self.take_in(protocol, got.map(|(_, sender)| sender))?;
            }
        }
        notices.extend(self.pending.drain(..));
        Ok(notices)
    }

    /// Turns what was received into notices.
    fn take_in(
        &mut self,
        protocol: isize,
        got: io::Result<SocketAddr>,
    ) -> Result<(), NotificationError> {
        match got {
            // the kernel's port; nobody else has anything to tell us
            Ok(sender) if sender.port_number() == 0 => {}
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                self.overrun();
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(NotificationError::Read(error)),
        }
        let buffer = std::mem::take(&mut self.buffer);
        for message in message::messages(&buffer) {
            match message {
                Ok(message) if self.interest.own_ports.contain(protocol, message.port) => {}
                Ok(message)
                    if protocol == NETLINK_NETFILTER
                        && message::generation(&message).is_some_and(|(number, end)| {
                            self.interest.own_ports.contain_generation(number, end)
                        }) => {}
                Ok(message) => match message::notices(protocol, &message, &self.interest) {
                    Ok(notices) => {
                        for notice in notices {
                            if self.is_news(&notice) {
                                self.pending.push_back(notice);
                            }
                        }
                    }
                    Err(message::Unreadable) => self.overrun(),
                },
                Err(message::Unreadable) => self.overrun(),
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    fn overrun(&mut self) {
        self.links.clear();
        self.routed.clear();
        self.pending.push_back(Notice::Overrun);
    }

    /// A device is told of whenever anything about it changes, such as the state of a bridge port.
    fn is_news(&mut self, notice: &Notice) -> bool {
        match notice {
            Notice::Link { index, name, up } => {
                let state = (name.clone(), *up);
                self.links.insert(*index, state.clone()) != Some(state)
            }
            Notice::LinkGone { index } => {
                self.links.remove(index);
                self.routed.remove(index);
                true
            }
            Notice::Routed { device } => self.routed.insert(*device),
            _ => true,
        }
    }
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let inner = socket.socket_mut();
    // beyond the limit for all, which takes CAP_NET_ADMIN
    setsockopt(inner, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    inner.bind_auto()?;
    for group in groups {
        inner.add_membership(*group)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;
