//! A rtnetlink socket that tells "done" from "cut off".
//!
//! It asks the kernel and changes it, one message at a time. What is asked and changed is decided
//! by the modules that use it.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;

/// `NLM_F_DUMP_INTR`: the tables changed while they were being read.
const DUMP_INTERRUPTED: u16 = 0x10;

/// How often a dump that was interrupted is begun anew.
const DUMP_ATTEMPTS: usize = 8;

/// A connection to the rtnetlink of the network namespace in which it was opened. Clones share it.
#[derive(Clone, Debug)]
pub struct RouteSocket {
    handle: rtnetlink::Handle,
    port: u32,
    #[cfg_attr(not(test), expect(dead_code, reason = "its end is the connection's"))]
    task: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("cannot open a rtnetlink socket")]
    Open(#[source] io::Error),
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
    /// The socket is of no more use: open another.
    #[error("the rtnetlink socket was closed before the kernel had answered")]
    Lost,
    #[error("the kernel's tables changed during each of {DUMP_ATTEMPTS} attempts to read them")]
    Interrupted,
}

impl RequestError {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::Open(_) | Self::Lost | Self::Interrupted => None,
        }
    }
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace; needs a tokio runtime.
    pub fn open() -> Result<Self, RequestError> {
        // without strict checking the kernel ignores what a dump is limited to
        let (mut connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(RequestError::Open)?;
        let port = connection.socket_mut().socket_mut().bind_auto().map_err(RequestError::Open)?;
        // the end of an answer is only known to be its end by these
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let task = tokio::spawn(connection);
        Ok(Self { handle, port: port.port_number(), task: Arc::new(AbortOnDrop(task)) })
    }

    /// The port id that notifications of changes made over this socket carry.
    pub const fn port(&self) -> u32 {
        self.port
    }

    #[cfg(test)]
    pub(crate) fn close_for_test(&self) {
        self.task.0.abort();
    }

    /// Makes one change. `flags` are those beyond "request" and "acknowledge".
    ///
    /// The message is on its way, in order, as soon as the future is first polled, so many changes
    /// may be under way together.
    pub async fn change(
        &self,
        change: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), RequestError> {
        let mut message = NetlinkMessage::from(change);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(message).map_err(|_| RequestError::Lost)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return outcome(error.raw_code());
            }
        }
        Err(RequestError::Lost)
    }

    /// The one object that `question` names.
    pub async fn lookup(
        &self,
        question: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, RequestError> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(message).map_err(|_| RequestError::Lost)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(message),
                NetlinkPayload::Error(error) => outcome(error.raw_code())?,
                _ => {}
            }
        }
        Err(RequestError::Lost)
    }

    /// Everything that matches `question`, as of one moment. One dump at a time: the kernel answers
    /// a second one on the same socket with "busy".
    pub async fn dump(
        &self,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, RequestError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(question.clone()).await? {
                return Ok(found);
            }
        }
        Err(RequestError::Interrupted)
    }

    /// `None` when the tables changed meanwhile.
    async fn dump_once(
        &self,
        question: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, RequestError> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(message).map_err(|_| RequestError::Lost)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & DUMP_INTERRUPTED != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Done(done) => {
                    outcome(done.code)?;
                    return Ok((!interrupted).then_some(found));
                }
                NetlinkPayload::Error(error) => {
                    outcome(error.raw_code())?;
                    return Ok(Some(found));
                }
                _ => {}
            }
        }
        Err(RequestError::Lost)
    }
}

fn outcome(code: i32) -> Result<(), RequestError> {
    if code == 0 {
        Ok(())
    } else {
        Err(RequestError::Refused(io::Error::from_raw_os_error(code.abs())))
    }
}
