//! Takes VIPs off this node that nobody else will.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nix::errno::Errno;
use shared::Vip;

use super::route_socket::{RequestError, RouteSocket};
use super::routing::wire::wire_family;
use crate::routing::Family;

/// A VIP could not be taken off.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove VIP {vip} from this node")]
pub struct RemoveError {
    vip: Vip,
    source: RequestError,
}

/// Removes the VIP as keepalived has added it, as a single address, from the device with that index. An address of a
/// network is another's, and stays. One that is gone is fine.
pub async fn remove_vip(socket: &RouteSocket, vip: Vip, device: u32) -> Result<(), RemoveError> {
    let addr: IpAddr = vip.addr();
    let mut message = AddressMessage::default();
    message.header.family = wire_family(Family::of(addr));
    message.header.prefix_len = if addr.is_ipv4() { 32 } else { 128 };
    message.header.index = device;
    message.attributes.push(AddressAttribute::Local(addr));
    message.attributes.push(AddressAttribute::Address(addr));
    match socket.change(RouteNetlinkMessage::DelAddress(message), 0).await {
        Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(()),
        other => other.map_err(|source| RemoveError { vip, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::links::read_node_facts;
    use crate::kernel::scratch_netns::{in_scratch_netns, run};

    #[test]
    fn a_single_address_goes_and_that_of_a_network_stays() {
        in_scratch_netns(|| async {
            run("ip link add left type veth peer name right");
            run("ip link set left up; ip link set right up");
            run("ip addr add 192.0.2.10/24 dev left; ip addr add 192.0.2.77/32 dev left");
            run("ip addr add fd00::77/128 dev left nodad");
            let socket = RouteSocket::open().unwrap();
            let facts = read_node_facts(&socket).await.unwrap();
            let device = facts.holding("192.0.2.77".parse().unwrap()).unwrap().index;
            for vip in ["192.0.2.10", "192.0.2.77", "192.0.2.77", "fd00::77", "fd00::77"] {
                remove_vip(&socket, vip.parse().unwrap(), device).await.unwrap();
            }
            let left = run("ip -o addr show dev left scope global");
            let left: Vec<_> =
                left.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
            assert_eq!(left, ["192.0.2.10/24"]);
        });
    }
}
