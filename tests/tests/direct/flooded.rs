//! Frames that a switch sends to everybody, for want of a holder.

use std::net::UdpSocket;

use anyhow::{Context, Result};
use tests::{Family, Host, Lab, eventually, vip};

use crate::scene::{SOON, direct};

/// In block 2, which is node 2's.
const PORT: u16 = 2050;
const PACKETS: u64 = 50;

/// Packets that a node has passed on to others.
fn passed_on(node: &Host) -> Result<u64> {
    counted(node, "nft list counter netdev egress passed_on")
}

fn counted(node: &Host, list: &str) -> Result<u64> {
    let text = node.sh(list)?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    Ok(words.next().context("no counter")?.parse()?)
}

#[test]
fn what_a_switch_sends_to_everybody_is_passed_on_by_nobody() -> Result<()> {
    let cluster = direct()?;
    let (lab, vip) = (&cluster.lab, vip(Family::V4, 222));
    let outside = lab.outside();
    let send_to = |mac: &str| -> Result<()> {
        outside.sh(&format!("ip neigh replace {vip} lladdr {mac} dev eth0 nud permanent"))?;
        let socket = outside.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        (0..PACKETS).try_for_each(|_| Ok(socket.send_to(b"x", (vip, PORT)).map(drop)?))
    };
    let all = || lab.nodes().iter().map(passed_on).sum::<Result<u64>>();
    let witness = "add table netdev witness
add counter netdev witness arrived
add chain netdev witness in { type filter hook ingress device eth0 priority -100; }
";
    let rule = format!("add rule netdev witness in ip daddr {vip} counter name arrived\n");
    lab.node(3).run_with_input(&["nft", "-f", "-"], &(witness.to_owned() + &rule))?;
    let before = all()?;
    send_to("02:00:00:00:00:99")?;
    let list = "nft list counter netdev witness arrived";
    let arrived = || counted(lab.node(3), list).is_ok_and(|packets| packets >= PACKETS);
    eventually(SOON, arrived);
    assert_eq!(all()?, before);
    let holder = Lab::lan_mac(lab.node(1)).map(|byte| format!("{byte:02x}")).join(":");
    send_to(&holder)?;
    eventually(SOON, || all().is_ok_and(|now| now >= before + PACKETS));
    Ok(())
}
