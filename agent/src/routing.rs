//! What policy routing of ours is: which numbers are ours, and the rules and routes we may have.
//!
//! On every node and for every VIP, a packet marked "away" is looked up in the VIP's own table,
//! which leads to the VIP's holder or, when it cannot, nowhere:
//!
//! ```text
//! 1000: from all fwmark 0/0x1000 goto 1253
//! 1064: from all fwmark 0x1040/0x10ff lookup 10064
//! 1253: from all nop
//! default via 192.168.122.222 dev eth0 table 10064 onlink
//! unreachable default table 10064 metric 4278198272
//! ```
//!
//! Pure types; the kernel's side of them is `kernel::routing`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use shared::Vip;

pub mod mark_mask;
pub mod ownership;

pub use mark_mask::{Decision, InvalidMarkMask, MarkMask};
pub use ownership::{InvalidOwnership, Ownership};

/// The metric of every table's `unreachable default`: the one the kernel's VRF documentation gives
/// to such a route, beaten by any other default, those of routing daemons included.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// An address family with rules and tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order in which they are observed and printed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A network device: the kernel goes by the index, people go by the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    pub index: u32,
    pub name: String,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A policy rule, for packets whose mark, under the mask, is `mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRule {
    pub family: Family,
    /// The lowest is asked first.
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    pub action: Action,
}

/// What a [`PolicyRule`] does with the packets it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Look them up in this table.
    Lookup(u32),
    /// Ask the rules from this priority on, and none between. Without a rule of just this
    /// priority it does nothing.
    Goto(u32),
    /// Nothing: somewhere to go to.
    Nop,
}

impl PolicyRule {
    /// The table that packets are looked up in.
    pub const fn table(&self) -> Option<u32> {
        match self.action {
            Action::Lookup(table) => Some(table),
            Action::Goto(_) | Action::Nop => None,
        }
    }

    /// Whether it only spares packets rules that are not for them.
    pub const fn is_shortcut(&self) -> bool {
        matches!(self.action, Action::Goto(_))
    }

    /// Whether packets go past rules of this priority without asking them.
    pub fn skips(&self, priority: u32) -> bool {
        match self.action {
            Action::Goto(target) => (self.priority..target).contains(&priority),
            Action::Lookup(_) | Action::Nop => false,
        }
    }
}

/// As `ip rule` prints it, less our protocol number.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family: _, priority, mark, mask, action } = self;
        write!(f, "{priority}: from all")?;
        // as C does: no prefix on a zero
        match (mark, mask) {
            (0, 0) => {}
            (0, _) => write!(f, " fwmark 0/{mask:#x}")?,
            _ => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
        }
        match action {
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Goto(target) => write!(f, " goto {target}"),
            Action::Nop => f.write_str(" nop"),
        }
    }
}

/// A default route in the table of one VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub family: Family,
    pub table: u32,
    pub kind: RouteKind,
}

/// Where a [`Route`] leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// To the node that answers for the VIP on the link of `device`.
    ///
    /// The kernel refuses to add it while the VIP is an address of this node, and keeps one that
    /// was there before the VIP came.
    ViaHolder { vip: Vip, device: Device },
    /// Nowhere: without it an empty table falls through to `main`, and the packet leaves with the
    /// node's address. It survives the uplink's going down.
    Unreachable,
}

impl Route {
    /// Whether this is the backstop that keeps a table from falling through to `main`.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self.kind, RouteKind::Unreachable)
    }
}

/// As `ip route show table all` prints it, less our protocol number.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family: _, table, kind } = self;
        match kind {
            RouteKind::ViaHolder { vip, device } => {
                write!(f, "default via {vip} dev {device} table {table} onlink")
            }
            RouteKind::Unreachable => {
                write!(f, "unreachable default table {table} metric {UNREACHABLE_METRIC}")
            }
        }
    }
}

/// Which kind of object a [`Stray`] or [`Foreign`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Rule,
    Route,
}

/// A rule or route that is ours by number, but in a form we never make: something to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stray {
    pub kind: ObjectKind,
    /// Much as `ip` prints it, for people.
    pub text: String,
    /// What the kernel said, attribute for attribute: with it exactly this one can be deleted.
    pub message: Vec<u8>,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A rule or route of somebody else that lies in our range: worth a note, never touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Foreign {
    pub kind: ObjectKind,
    pub family: Family,
    /// The rule's priority or the route's table.
    pub place: u32,
    /// It decides over packets of ours: it comes before our rule or our route.
    pub overrides_ours: bool,
    /// Much as `ip` prints it, for people.
    pub text: String,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the kernel has in our ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRouting {
    pub rules: BTreeSet<PolicyRule>,
    pub routes: BTreeSet<Route>,
    pub strays: BTreeSet<Stray>,
    pub foreign: BTreeSet<Foreign>,
}

impl ObservedRouting {
    /// The devices that lead to the holders of VIPs.
    pub fn holder_devices(&self) -> impl Iterator<Item = &Device> {
        self.routes.iter().filter_map(|route| match &route.kind {
            RouteKind::ViaHolder { device, .. } => Some(device),
            RouteKind::Unreachable => None,
        })
    }
}
