//! Asking and telling the kernel's netfilter subsystems through one blocking socket.
//!
//! The kernel works through a request before `send` returns, and has queued every answer by then
//! (a dump's first part). So nothing here waits, except for the kernel's own locks.

mod wire;

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NlasIterator, parse_i32, parse_u32,
};
use netlink_packet_netfilter::{NetfilterProtoFamily, NetfilterSubsystem};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

pub(crate) use wire::{Kind, Message, Messages, find, name, number, value};

const BATCH_BEGIN: Kind = Kind(0x10);
const BATCH_END: Kind = Kind(0x11);

const ERROR_TEXT: u16 = 1; // NLMSGERR_ATTR_MSG
const ERROR_OFFSET: u16 = 2; // NLMSGERR_ATTR_OFFS
/// The error number and the header of the message it is about (never the rest: capped).
const ERROR_HEADER: usize = 20;

/// How the end of a dump says that what was being dumped has gone.
const GONE: i32 = -libc::ENOENT;

/// The kernel builds dump answers up to 32 KiB, once it has seen so large a buffer.
const INBOX: usize = 64 * 1024;
/// Room for some thousand refusals; one batch of a million elements has about a thousand messages.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Larger than any message the kernel's accounting adds to a datagram.
const SEND_MARGIN: usize = 4096;
/// Answers are there when `send` returns; a kernel that has none is not waited for for ever.
const PATIENCE: TimeVal = TimeVal::new(10, 0);
/// How often a read that others disturb is begun again.
pub(crate) const ATTEMPTS: usize = 8;

/// What went wrong between the agent and netfilter.
#[derive(Debug, thiserror::Error)]
pub enum NfnetlinkError {
    /// No socket: out of descriptors, or no `CAP_NET_ADMIN`.
    #[error("cannot open a netfilter socket")]
    Open(#[source] io::Error),
    /// The kernel did not take the request; nothing of it happened.
    #[error("cannot send a request of {bytes} bytes to netfilter")]
    Send {
        /// Its size.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
    /// The request was sent, its outcome is not known.
    #[error("cannot read netfilter's answer")]
    Receive(#[source] io::Error),
    /// The request was sent, its outcome is not known: answers were lost for want of room.
    #[error("netfilter's answers overran the socket")]
    Overrun,
    /// The request was sent, and no answer came.
    #[error("netfilter did not answer")]
    Silent,
    /// The kernel's reason for refusing a request as a whole.
    #[error("netfilter refused the request")]
    Refused(#[source] Errno),
    /// Others changed what was read, each time it was read.
    #[error("netfilter's state kept changing while it was read")]
    Interrupted,
    /// An answer that is not what the kernel's headers promise.
    #[error("cannot decode netfilter's answer")]
    Decode(#[from] DecodeError),
}

/// A message the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which message of the datagram, counted from 0; a batch's begin is 0.
    pub(crate) position: u32,
    pub(crate) errno: Errno,
    /// Where in the message the offending attribute begins, when the kernel says so.
    pub(crate) offset: Option<usize>,
    /// The kernel's words, when it has any.
    pub(crate) text: Option<String>,
}

/// A socket to netfilter in the network namespace of the thread that opened it.
pub(crate) struct Nfnetlink {
    socket: Socket,
    port_id: u32,
    sequence: u32,
    send_buffer: usize,
    inbox: Vec<u8>,
}

impl Nfnetlink {
    pub(crate) fn open() -> Result<Self, NfnetlinkError> {
        Self::open_socket().map_err(NfnetlinkError::Open)
    }

    fn open_socket() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port_id = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
        let inbox = Vec::with_capacity(INBOX);
        Ok(Self { socket, port_id, sequence: 1, send_buffer: 0, inbox })
    }

    /// What the kernel's notifications name as the origin of our changes.
    pub(crate) fn port_id(&self) -> u32 {
        self.port_id
    }

    /// An empty datagram of requests.
    pub(crate) fn requests(&self) -> Messages {
        Messages::new(self.sequence)
    }

    /// An empty transaction of this subsystem; give it to [`Nfnetlink::commit`].
    pub(crate) fn batch(&self, subsystem: NetfilterSubsystem) -> Messages {
        let mut batch = self.requests();
        batch_marker(&mut batch, BATCH_BEGIN, subsystem);
        batch
    }

    /// Carries out all of a batch or nothing. Ok with refusals: nothing was done.
    ///
    /// Also nothing was done after [`NfnetlinkError::Send`]; after other errors, look.
    pub(crate) fn commit(
        &mut self,
        mut batch: Messages,
        subsystem: NetfilterSubsystem,
    ) -> Result<(Messages, Vec<Refusal>), NfnetlinkError> {
        // One answer is enough, for refused messages always have one. It goes to the last message,
        // not to the end marker, which kernels before 6.10 do not answer.
        batch.flag_last(NLM_F_ACK);
        batch_marker(&mut batch, BATCH_END, subsystem);
        self.send(&batch)?;
        let (answers, refusals) = self.outcomes(&batch)?;
        if answers == 0 {
            return Err(NfnetlinkError::Silent);
        }
        Ok((batch, refusals))
    }

    /// Carries out each of the requests by itself, and returns which were refused.
    pub(crate) fn submit(
        &mut self,
        mut requests: Messages,
    ) -> Result<Vec<Refusal>, NfnetlinkError> {
        requests.flag_last(NLM_F_ACK);
        self.send(&requests)?;
        match self.outcomes(&requests)? {
            (0, _) => Err(NfnetlinkError::Silent),
            (_, refusals) => Ok(refusals),
        }
    }

    /// Sends one request and hands every message of the answer to `each`, in order.
    ///
    /// [`NfnetlinkError::Interrupted`] means that `each` has seen an inconsistent whole: drop what
    /// it gathered and begin again.
    pub(crate) fn read(
        &mut self,
        request: &Messages,
        mut each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), NfnetlinkError> {
        self.send(request)?;
        let mut interrupted = false;
        // An answer is read to its end whatever happens: the kernel refuses a second dump on a
        // socket that has not seen the end of the first.
        let mut undecodable = None;
        let mut began = false;
        let mut overrun = false;
        loop {
            match self.receive(0) {
                Err(NfnetlinkError::Overrun) => {
                    overrun = true;
                    continue;
                }
                result => result?,
            }
            for message in Datagram(&self.inbox) {
                let message = message?;
                if request.position(message.sequence_number()).is_none() {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                let errno = match message.message_type() {
                    NLMSG_NOOP | NLMSG_OVERRUN => continue,
                    NLMSG_DONE if message.payload().len() < 4 => 0,
                    NLMSG_DONE | NLMSG_ERROR => parse_i32(&message.payload()[..4])?,
                    _ => {
                        began = true;
                        let seen = Message::parse(message.payload()).and_then(&mut each);
                        undecodable = undecodable.or(seen.err());
                        continue;
                    }
                };
                return match (errno, undecodable) {
                    (GONE, _) if began => Err(NfnetlinkError::Interrupted),
                    (..0, _) => Err(NfnetlinkError::Refused(Errno::from_raw(-errno))),
                    _ if overrun => Err(NfnetlinkError::Overrun),
                    _ if interrupted => Err(NfnetlinkError::Interrupted),
                    (_, Some(error)) => Err(error.into()),
                    _ => Ok(()),
                };
            }
        }
    }

    /// How many of the requests were answered, and what was refused.
    fn outcomes(&mut self, requests: &Messages) -> Result<(usize, Vec<Refusal>), NfnetlinkError> {
        let mut answers = 0;
        let mut refusals = Vec::new();
        let mut overrun = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => {}
                Err(NfnetlinkError::Overrun) => {
                    overrun = true;
                    continue;
                }
                Err(NfnetlinkError::Silent) if overrun => return Err(NfnetlinkError::Overrun),
                Err(NfnetlinkError::Silent) => return Ok((answers, refusals)),
                Err(error) => return Err(error),
            }
            for message in Datagram(&self.inbox) {
                let message = message?;
                let Some(position) = requests.position(message.sequence_number()) else { continue };
                if message.message_type() != NLMSG_ERROR {
                    continue;
                }
                answers += 1;
                refusals.extend(refusal(position, message.payload())?);
            }
        }
    }

    fn send(&mut self, requests: &Messages) -> Result<(), NfnetlinkError> {
        let bytes = requests.bytes().len();
        self.send_whole(requests.bytes())
            .map_err(|source| NfnetlinkError::Send { bytes, source })?;
        self.sequence = requests.next_sequence();
        Ok(())
    }

    fn send_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() + SEND_MARGIN > self.send_buffer {
            self.send_buffer = (bytes.len() + SEND_MARGIN).next_power_of_two();
            setsockopt(&self.socket, sockopt::SndBufForce, &self.send_buffer)?;
        }
        loop {
            match self.socket.send(bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Fills the inbox with the next datagram from the kernel.
    fn receive(&mut self, flags: libc::c_int) -> Result<(), NfnetlinkError> {
        loop {
            self.inbox.clear();
            match self.socket.recv_from(&mut self.inbox, flags | libc::MSG_TRUNC) {
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > self.inbox.len() => {
                    return Err(NfnetlinkError::Overrun);
                }
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    Some(Errno::EAGAIN) => return Err(NfnetlinkError::Silent),
                    Some(Errno::ENOBUFS) => return Err(NfnetlinkError::Overrun),
                    _ => return Err(NfnetlinkError::Receive(error)),
                },
            }
        }
    }
}

/// Repeats a read until no one disturbs it, at most [`ATTEMPTS`] times.
pub(crate) fn undisturbed<T>(
    mut read: impl FnMut() -> Result<T, NfnetlinkError>,
) -> Result<T, NfnetlinkError> {
    for _ in 1..ATTEMPTS {
        match read() {
            Err(NfnetlinkError::Interrupted) => {}
            result => return result,
        }
    }
    read()
}

fn batch_marker(batch: &mut Messages, kind: Kind, subsystem: NetfilterSubsystem) {
    let resource = u16::from(u8::from(subsystem));
    batch.message(kind, NLM_F_REQUEST, NetfilterProtoFamily::Unspec, resource);
}

fn refusal(position: u32, payload: &[u8]) -> Result<Option<Refusal>, DecodeError> {
    let Some(code) = ErrorBuffer::new_checked(payload)?.code() else { return Ok(None) };
    let mut refusal =
        Refusal { position, errno: Errno::from_raw(-code.get()), offset: None, text: None };
    for attribute in NlasIterator::new(payload.get(ERROR_HEADER..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            ERROR_TEXT => refusal.text = Some(name(attribute.value())),
            ERROR_OFFSET => refusal.offset = usize::try_from(parse_u32(attribute.value())?).ok(),
            _ => {}
        }
    }
    Ok(Some(refusal))
}

/// The messages of one datagram.
struct Datagram<'a>(&'a [u8]);

impl<'a> Iterator for Datagram<'a> {
    type Item = Result<NetlinkBuffer<&'a [u8]>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(self.0);
        let length = message.as_ref().map_or(usize::MAX, |message| message.length() as usize);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}
