//! How much may wait for a neighbour that does not answer.
//!
//! What waits counts as unsent of the socket that it was sent by. A node that is gone would so keep adverts from all
//! others: by default as much may wait for one neighbour as a socket may send.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter,
};

use super::route_socket::{RequestError, RouteSocket};
use super::routing::wire::wire_family;
use crate::routing::Family;

/// Some ten packets: more than any kernel before 3.3 had.
const BYTES: u32 = 8192;

/// The queue of an interface cannot be made shorter.
#[derive(Debug, thiserror::Error)]
#[error("cannot shorten the queue of packets for neighbours that do not answer, interface {index}")]
pub struct QueueError {
    index: u32,
    source: RequestError,
}

/// Shortens it on the interface with that index, for both families: `ip ntable change name arp_cache dev eth0 …`.
pub async fn shorten_queue(socket: &RouteSocket, index: u32) -> Result<(), QueueError> {
    for family in Family::ALL {
        let table = match family {
            Family::V4 => "arp_cache",
            Family::V6 => "ndisc_cache",
        };
        let mut message = NeighbourTableMessage::default();
        message.header.family = wire_family(family);
        message.attributes = vec![
            NeighbourTableAttribute::Name(table.to_owned()),
            NeighbourTableAttribute::Parms(vec![
                NeighbourTableParameter::Ifindex(index),
                NeighbourTableParameter::QueueLenbytes(BYTES),
            ]),
        ];
        let change = RouteNetlinkMessage::SetNeighbourTable(message);
        socket.change(change, 0).await.map_err(|source| QueueError { index, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::links::read_node_facts;
    use crate::kernel::scratch_netns::{in_scratch_netns, run};

    #[test]
    fn the_queue_of_one_interface_is_shortened() {
        in_scratch_netns(|| async {
            run("ip link add left type veth peer name right");
            let socket = RouteSocket::open().unwrap();
            let facts = read_node_facts(&socket).await.unwrap();
            let left = facts.links.values().find(|link| link.device.name == "left").unwrap();
            shorten_queue(&socket, left.device.index).await.unwrap();
            for family in ["ipv4", "ipv6"] {
                let of = |name: &str| {
                    run(&format!("cat /proc/sys/net/{family}/neigh/{name}/unres_qlen_bytes"))
                };
                assert_eq!(of("left").trim(), "8192");
                assert_ne!(of("right").trim(), "8192");
            }
        });
    }
}
