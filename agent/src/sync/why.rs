//! The reasons for a look at the kernel, as logs have them.

use std::fmt;

use crate::kernel::notifications::Notice;

/// Why the kernel is looked at, the most telling reason of all that have come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Time has passed.
    Interval,
    /// Something of ours was changed by somebody else.
    Stranger,
    /// An attempt has failed.
    Retry,
    /// An address, a device or a network of the node has changed.
    Node,
    /// It was proven that answers come back, or no longer; or ports have run out, or no longer.
    Proofs,
    /// The mappings have changed.
    Mappings,
    /// The agent has started.
    Start,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interval => "found at a regular look",
            Self::Stranger => "changed by somebody else",
            Self::Retry => "tried again",
            Self::Node => "the node changed",
            Self::Proofs => "another path is to be taken",
            Self::Mappings => "mappings changed",
            Self::Start => "agent started",
        })
    }
}

impl Why {
    /// What a notice of the kernel is about.
    pub(super) const fn of(notice: &Notice) -> Self {
        match notice {
            Notice::Address { .. }
            | Notice::Networks
            | Notice::Routed { .. }
            | Notice::Link { .. }
            | Notice::LinkGone { .. } => Self::Node,
            Notice::Routing
            | Notice::NetConf { .. }
            | Notice::Nftables { .. }
            | Notice::Elements { .. } => Self::Stranger,
            Notice::Overrun => Self::Interval,
        }
    }
}
