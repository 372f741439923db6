//! What an operator has to go by: the dump, the clean-up, probes, metrics and logs.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

mod dump;
mod health;
mod logs;
mod removal;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tests::{Family, Host, Lab, MappingsDir, UdpProbe, eventually};

pub(crate) const PORT: u16 = 7000;
pub(crate) const SOON: Duration = Duration::from_secs(5);

pub(crate) fn here() -> IpAddr {
    [192, 168, 122, 222].into()
}

pub(crate) fn elsewhere() -> IpAddr {
    [192, 168, 122, 223].into()
}

pub(crate) fn here6() -> IpAddr {
    [0xfd00, 0x122, 0, 0, 0, 0, 0, 0x222].into()
}

/// Node 1 holds 64 and 66, nobody holds 65; pod 1 has them, pod 2 has 65, and is held with IPv6.
pub(crate) fn mappings_of(lab: &Lab) -> Result<MappingsDir> {
    let mut mappings = MappingsDir::of(lab)?;
    for (vip, id) in [(here(), 64), (elsewhere(), 65), (here6(), 66)] {
        mappings.set_vip(vip, id)?;
    }
    let [first, second] = [lab.pod(1, 1), lab.pod(1, 2)];
    mappings.map(first.ip(Family::V4), here())?;
    mappings.map(first.ip(Family::V6), here6())?;
    mappings.map(second.ip(Family::V4), elsewhere())?;
    mappings.hold(second.ip(Family::V6))?;
    lab.hold_vip(1, here())?;
    lab.hold_vip(1, here6())?;
    Ok(mappings)
}

/// Sends some packets that nobody answers, and waits until the kernel took them.
pub(crate) fn send_in_vain(pod: &Host, server: IpAddr) -> Result<()> {
    let probe = UdpProbe::start(pod, SocketAddr::new(server, PORT), 200)?;
    eventually(SOON, || probe.sent() >= 20);
    assert_eq!(probe.stop()?.received, 0);
    Ok(())
}
