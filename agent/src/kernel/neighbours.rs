//! What this node believes about who answers for an address on a link.
//!
//! Forgets, for one address at a time: the kernel asks again when it has to send there. Or has the kernel
//! ask as if it had to.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::route_socket::{RequestError, RouteSocket};
use crate::proof::packet::Mac;
use crate::routing::Device;

/// What could not be done about a neighbour.
#[derive(Debug, thiserror::Error)]
pub enum NeighbourError {
    /// `ip neigh del ADDRESS dev DEVICE` failed.
    #[error("cannot forget which neighbour on {device} is {address}")]
    Forget { address: IpAddr, device: Device, source: RequestError },
    /// `ip neigh get ADDRESS dev DEVICE` failed.
    #[error("cannot look up which neighbour on {device} is {address}")]
    Look { address: IpAddr, device: Device, source: RequestError },
    /// `ip neigh add ADDRESS dev DEVICE use` failed.
    #[error("cannot ask which neighbour on {device} is {address}")]
    Ask { address: IpAddr, device: Device, source: RequestError },
}

/// Forgets which machine on the link of `device` answers for `address`. Nothing to forget is fine.
pub(super) async fn forget(
    socket: &RouteSocket,
    address: IpAddr,
    device: &Device,
) -> Result<(), NeighbourError> {
    let message = about(address, device);
    match socket.change(RouteNetlinkMessage::DelNeighbour(message), 0).await {
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(()),
        outcome => outcome.map_err(|source| NeighbourError::Forget {
            address,
            device: device.clone(),
            source,
        }),
    }
}

/// The link-layer address of a neighbour, as far as the kernel knows it. Unless it is sure of it, the
/// kernel is asked to make sure, just as if it had to send there: an answer may be there a moment later.
pub(super) async fn link_address(
    socket: &RouteSocket,
    address: IpAddr,
    device: &Device,
) -> Result<Option<Mac>, NeighbourError> {
    let question = RouteNetlinkMessage::GetNeighbour(about(address, device));
    let found = match socket.lookup(question).await {
        Ok(RouteNetlinkMessage::NewNeighbour(found)) => Some(found),
        Ok(_) => None,
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => None,
        Err(source) => {
            return Err(NeighbourError::Look { address, device: device.clone(), source });
        }
    };
    let state = found.as_ref().map_or(NeighbourState::None, |found| found.header.state);
    let (known, sure) = match state {
        // The first two are set by hand, and not to be touched.
        NeighbourState::Permanent
        | NeighbourState::Noarp
        | NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe => (true, true),
        NeighbourState::Stale => (true, false),
        NeighbourState::Incomplete => (false, true),
        _ => (false, false),
    };
    if !sure {
        let mut message = about(address, device);
        message.header.flags = NeighbourFlags::Use;
        let ask = socket.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE);
        ask.await.map_err(|source| NeighbourError::Ask {
            address,
            device: device.clone(),
            source,
        })?;
    }
    let attributes = found.into_iter().filter(|_| known).flat_map(|found| found.attributes);
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => address.try_into().ok(),
        _ => None,
    }))
}

fn about(address: IpAddr, device: &Device) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device.index;
    let destination = match address {
        IpAddr::V4(address) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(address)
        }
    };
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}
