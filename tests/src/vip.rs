//! VIPs moved by hand, the way keepalived does it.

use std::net::IpAddr;

use anyhow::Result;

use crate::announce::announce;
use crate::lab::{Family, Lab};

/// What a move of a VIP does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveOrder {
    /// The new holder takes it, then the old one lets go: for a moment two nodes hold it.
    MakeBeforeBreak,
    /// The old holder lets go, then the new one takes it: for a moment no node holds it.
    BreakBeforeMake,
}

impl Lab {
    /// Puts the VIP on the node's `eth0` and announces it to the LAN.
    pub fn hold_vip(&self, node: usize, vip: IpAddr) -> Result<()> {
        let node = self.node(node);
        node.sh(&match Family::of(vip) {
            Family::V4 => format!("ip addr add {vip}/32 dev eth0"),
            // Deprecated, as keepalived has it: the node's own traffic does not take it as source.
            Family::V6 => format!("ip addr add {vip}/128 dev eth0 nodad preferred_lft 0"),
        })?;
        announce(node, vip)
    }

    /// Takes the VIP off the node.
    pub fn drop_vip(&self, node: usize, vip: IpAddr) -> Result<()> {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        self.node(node).sh(&format!("ip addr del {vip}/{length} dev eth0")).map(drop)
    }

    /// Moves the VIP from one node to another.
    pub fn move_vip(&self, from: usize, to: usize, vip: IpAddr, order: MoveOrder) -> Result<()> {
        match order {
            MoveOrder::MakeBeforeBreak => {
                self.hold_vip(to, vip)?;
                self.drop_vip(from, vip)
            }
            MoveOrder::BreakBeforeMake => {
                self.drop_vip(from, vip)?;
                self.hold_vip(to, vip)
            }
        }
    }
}
