//! The two ways on which the packets of a VIP's pods leave.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How packets of pods leave with their VIP: over the node that holds it (ViaHolder), or translated on
/// the pod's own node with ports of the VIP that are that node's alone (Direct). A Vip that does not
/// say it has the defaultPath of the EgressMapper, and that is ViaHolder by default. It can be changed
/// at any time: connections end on the path that they began on.
#[expect(clippy::doc_markdown, reason = "kubectl shows it as it is")]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub enum VipPath {
    /// The pod's node sends them to the node that holds the VIP, which translates them. Works
    /// wherever VRRP works.
    #[default]
    ViaHolder,
    /// The pod's node translates them with a block of the VIP's ports that is its own and sends them
    /// straight out; the holder only passes answers on, by block, without connection state. Needs
    /// nodes in the VIP's network, and a network that does not drop addresses that are not the
    /// sender's.
    Direct,
}

/// The text is the name of no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("it is no path; use ViaHolder or Direct")]
pub struct InvalidVipPath;

impl FromStr for VipPath {
    type Err = InvalidVipPath;

    fn from_str(text: &str) -> Result<Self, InvalidVipPath> {
        match text {
            "ViaHolder" => Ok(Self::ViaHolder),
            "Direct" => Ok(Self::Direct),
            _ => Err(InvalidVipPath),
        }
    }
}

impl fmt::Display for VipPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ViaHolder => "ViaHolder",
            Self::Direct => "Direct",
        })
    }
}
