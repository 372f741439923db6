//! What this node believes about who answers for an address on a link.
//!
//! Only ever forgets, for one address at a time: the kernel asks again when it has to send there.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::route_socket::{RequestError, RouteSocket};
use crate::routing::Device;

/// `ip neigh del ADDRESS dev DEVICE` failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot forget which neighbour on {device} is {address}")]
pub struct NeighbourError {
    address: IpAddr,
    device: Device,
    source: RequestError,
}

/// Forgets which machine on the link of `device` answers for `address`. Nothing to forget is fine.
pub(super) async fn forget(
    socket: &RouteSocket,
    address: IpAddr,
    device: &Device,
) -> Result<(), NeighbourError> {
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
    match socket.change(RouteNetlinkMessage::DelNeighbour(message), 0).await {
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(()),
        outcome => {
            outcome.map_err(|source| NeighbourError { address, device: device.clone(), source })
        }
    }
}
