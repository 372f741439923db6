//! Directories of mappings, with as many pods as wanted.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Result;
use tests::{Lab, MappingsDir};

/// The VIP of the pods that are measured.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 222);
/// Its route id: where there are many VIPs, the policy rule that is asked last.
pub(crate) const ROUTE_ID: u8 = 252;
/// Pods that only exist in mappings.
const OTHER_PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const OTHER_PODS_NET: &str = "10.128.0.0/14";
/// A file system of memory: what is measured is the agent, not a disk.
const MEMORY: &str = "/dev/shm";

/// Writes mappings of so many pods, those of the laboratory among them as far as they are
/// `chosen`. `other_vips` share the other pods with [`VIP`].
pub(crate) fn mappings(
    lab: &Lab,
    pods: u32,
    other_vips: u8,
    chosen: &[Ipv4Addr],
) -> Result<MappingsDir> {
    let mut directory = MappingsDir::new_in(Path::new(MEMORY))?;
    directory.networks(lab)?;
    let pod_subnets = format!("{},{OTHER_PODS_NET}", lab.pod_subnet(tests::Family::V4));
    directory.set("egress-networks", "pod-subnets", &pod_subnets)?;
    directory.set_vip(VIP.into(), ROUTE_ID)?;
    for other in 1..=other_vips {
        directory.set_vip(other_vip(other), other)?;
    }
    let chosen_pods = chosen.iter().map(|&pod| (IpAddr::from(pod), IpAddr::from(VIP)));
    let others = (0..pods.saturating_sub(u32::try_from(chosen.len())?)).map(|number| {
        let vip = u8::try_from(number % (u32::from(other_vips) + 1)).unwrap_or(0);
        (other_pod(number), if vip == 0 { VIP.into() } else { other_vip(vip) })
    });
    directory.map_only(chosen_pods.chain(others))?;
    Ok(directory)
}

/// The `number`th of the pods that only exist in mappings.
pub(crate) fn other_pod(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(OTHER_PODS) + number).into()
}

/// Another VIP; nobody holds it.
pub(crate) fn other_vip(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 168, 123, number).into()
}
