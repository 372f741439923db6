//! What leaves, from where and with which ports, while nothing changes.

use anyhow::Result;
use tests::{Capture, Family, Lab, Masquerade, ping, seen_as, vip, whoami};

use crate::scene::{SOON, arranged, leaves_from, server};

fn pods_leave_from_their_own_node_with_ports_of_its_blocks(masquerade: Masquerade) -> Result<()> {
    let lab = Lab::builder().pods_per_node(2).masquerade(masquerade).build()?;
    let mut cluster = arranged(lab)?;
    cluster.start_agents()?;
    let lab = &cluster.lab;
    let capture = Capture::start(lab)?;
    for family in Family::ALL {
        let vip = vip(family, 222);
        for host in [lab.outside(), lab.far()] {
            for node in 1..=3 {
                let pod = lab.pod(node, 1);
                capture.clear();
                for _ in 0..8 {
                    assert_eq!(seen_as(pod, server(host, family))?, [vip], "{}", pod.name);
                    assert_eq!(whoami(pod, server(host, family), SOON)?, vip, "{}", pod.name);
                }
                leaves_from(lab, &capture, node, vip, host.ip(family))?;
                assert_eq!(ping(pod, host.ip(family), 3)?, 3, "{}", pod.name);
                capture.assert_only_source(vip, host.ip(family), 8 * (3 + 4) + 3);
                // Others leave as before.
                let other = lab.pod(node, 2);
                assert_eq!(whoami(other, server(host, family), SOON)?, lab.node(node).ip(family));
            }
        }
    }
    Ok(())
}

#[test]
fn pods_leave_from_their_own_node_under_iptables_nft() -> Result<()> {
    pods_leave_from_their_own_node_with_ports_of_its_blocks(Masquerade::IptablesNft)
}
