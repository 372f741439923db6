//! What the nft tables contain: chains, rules, counters, declarations of maps.
//!
//! Pure. The *main* table decides per packet whether the VIP of its pod is on this node, and
//! translates; the *guard* table, which nothing depends on, drops what would leave with another
//! address. They are two so that a stranger who deletes or flushes either does not open a leak.
//! Where other nodes have blocks of a VIP's ports, the *ingress* table passes on to them what comes
//! for these, before anything else sees it.
//! Whatever changes with pods is in declared maps, which are filled natively (`kernel::elements`);
//! what changes with VIPs or networks is in anonymous sets inside the rules, so a rule is right or
//! wrong as a whole and can be compared by its tag.

mod chains;
mod declared;
mod forward;
mod loaded;
mod parts;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use shared::{RouteId, Vip};
use xxhash_rust::xxh3::xxh3_64;

use crate::direct::DirectVip;
use crate::routing::{Family, MarkMask};
use parts::Part;

pub use declared::{BURST_SECONDS, Declared, DeclaredKind, FRAGMENT_SECONDS, capacity};
pub use forward::{kept_echoes_set, kept_set, later_fragments, passes_on};
pub use loaded::{Loaded, Metered};

/// What the tables are called. The family of the first two is `inet`; the ingress table, of family
/// `netdev`, is called as the main one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableNames {
    /// The table that decides and translates.
    pub main: String,
    /// The table that drops what slipped through.
    pub guard: String,
}

impl TableNames {
    /// The main table by the name given, the guard's by the same name with `-guard`.
    pub fn of(main: &str) -> Self {
        Self { main: main.to_owned(), guard: format!("{main}-guard") }
    }

    /// The table that passes packets on.
    pub fn ingress(&self) -> &str {
        &self.main
    }
}

/// The name of a declared map or set of pods.
pub const fn pod_map(family: Family) -> &'static str {
    match family {
        Family::V4 => "pod_vip4",
        Family::V6 => "pod_vip6",
    }
}

/// The name of the guard's set of mapped pods.
pub const fn mapped_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "mapped4",
        Family::V6 => "mapped6",
    }
}

/// The name of the guard's set of pods that were mapped until a moment ago.
pub const fn leaving_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "leaving4",
        Family::V6 => "leaving6",
    }
}

/// The name of the set that is not empty while packets of unknown pods are held; see [`unsure_key`].
pub const fn unsure_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "unsure4",
        Family::V6 => "unsure6",
    }
}

/// What is in the sets of [`unsure_set`], if anything: every address under an empty mask.
pub const fn unsure_key(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The name of the set of addresses of this node's pods that are known.
pub const fn known_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "known4",
        Family::V6 => "known6",
    }
}

/// Room for more addresses than any node's pods have.
const MOST_KNOWN: u32 = 1 << 14;
/// Room for one, and for the one before it in the same transaction.
const MOST_UNSURE: u32 = 16;

/// How long an answer may be on its way to a pod that is not mapped any more, in seconds.
pub const LEAVING_SECONDS: u32 = 3;

/// Counters of the main table, in packets that were dropped, and why.
pub const MAIN_COUNTERS: [(&str, &str); 7] = [
    ("vip_closed", "packets to a VIP that belong to no connection of a pod"),
    ("invalid", "packets of mapped pods that connection tracking does not know what to do with"),
    ("not_holder", "packets of mapped pods sent here for a VIP that is not on this node"),
    ("held", "packets of mapped pods that have no usable VIP of the family"),
    ("uplink", "packets of pods unknown here that another node sent here to be translated"),
    ("unsure", "packets of unknown pods while a pod is expected whose address is not known"),
    ("stale", "packets of connections whose VIP is gone"),
];

/// Counters of the guard table, in packets that were dropped, and why.
pub const GUARD_COUNTERS: [(&str, &str); 3] = [
    ("guard", "packets that were neither leaving with a VIP of this node nor on the way to one"),
    ("undecided", "packets of mapped pods that the main table did not decide about"),
    ("unasked", "packets from outside to a mapped pod that no connection belongs to"),
];

/// Counters of the ingress table, in packets, and what became of them.
pub const INGRESS_COUNTERS: [(&str, &str); 1] =
    [("passed_on", "packets for ports of other nodes that were passed on to them")];

/// The kind of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
    /// Routing is asked again when the mark has changed.
    Route,
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        })
    }
}

/// The netfilter hooks that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// As soon as a device has received it.
    Ingress,
    Prerouting,
    Output,
    Postrouting,
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// Where a base chain is hooked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What the chain may do.
    pub kind: HookKind,
    /// When it is asked.
    pub point: HookPoint,
    /// Of which device; of an ingress hook alone.
    pub device: Option<String>,
    /// The netfilter priority: lower comes first.
    pub priority: i32,
}

/// As nft reads it.
impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, point, device, priority } = self;
        write!(f, "type {kind} hook {point} ")?;
        if let Some(device) = device {
            write!(f, "device \"{device}\" ")?;
        }
        write!(f, "priority {priority}; policy accept;")
    }
}

/// A rule: its statements, and how they read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule as nft prints and reads it, without its comment.
    pub text: String,
    /// Why it is there, and a digest of what it says. Two rules with the same comment are the same.
    pub comment: String,
    /// What is loaded; empty where that is the text.
    pub statements: Vec<Loaded>,
}

impl Rule {
    fn new(why: &str, parts: impl IntoIterator<Item = Part>) -> Self {
        let (texts, statements): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.text, part.json)).unzip();
        Self { statements, ..Self::of_text(why, texts.join(" ")) }
    }

    /// A rule that is loaded as it reads.
    fn of_text(why: &str, text: String) -> Self {
        // 32 bits: two of our own rules in one place of one chain have to differ, no more.
        let digest = xxh3_64(text.as_bytes()) & 0xffff_ffff;
        Self { comment: format!("{why} #{digest:08x}"), text, statements: Vec::new() }
    }
}

/// A chain, hooked in or jumped to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `None` for a chain that others go to.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// What a table holds, but for the elements of its maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Named counters.
    pub counters: BTreeSet<&'static str>,
    /// Declared maps (pod → VIP) and sets (pods), by name.
    pub declared: BTreeMap<Cow<'static, str>, Declared>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Which mark bits are ours.
    pub mask: MarkMask,
    /// How many elements each map and set of pods has room for.
    pub capacity: u32,
    /// Every accepted VIP.
    pub vips: BTreeMap<Vip, RouteId>,
    /// Those of `vips` of which nodes have blocks.
    pub direct: BTreeMap<Vip, DirectVip>,
    /// Those of `vips` that this node can send to when they are elsewhere.
    pub reachable: BTreeSet<Vip>,
    /// The interfaces over which other nodes send packets for a VIP that is here.
    pub uplinks: BTreeSet<String>,
    /// Where pods reach the API server, if that is known.
    pub api_server: Option<IpAddr>,
    /// The interfaces over which other nodes' pods are reached.
    pub overlays: BTreeSet<String>,
    /// Where pods live. Disjoint.
    pub pods: Vec<IpNet>,
    /// Destinations that are reached as if this program did not exist. Disjoint.
    pub internal: Vec<IpNet>,
}

/// The tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Decides and translates.
    pub main: Table,
    /// Drops what slipped through.
    pub guard: Table,
    /// Passes on what is for other nodes, if anything is.
    pub ingress: Option<Table>,
}

impl Ruleset {
    /// The tables for `input`.
    pub fn render(input: &Input) -> Self {
        let declared = |kind, family| Declared { kind, family, size: input.capacity };
        let map = |family| (pod_map(family).into(), declared(DeclaredKind::Map, family));
        let set = |family| (mapped_set(family).into(), declared(DeclaredKind::Set, family));
        let passing =
            |family| (leaving_set(family).into(), declared(DeclaredKind::Passing, family));
        let of_node = |family| {
            let known = Declared { kind: DeclaredKind::Set, family, size: MOST_KNOWN };
            let unsure = Declared { kind: DeclaredKind::Passing, family, size: MOST_UNSURE };
            [(known_set(family).into(), known), (unsure_set(family).into(), unsure)]
        };
        Self {
            main: Table {
                counters: MAIN_COUNTERS.iter().map(|(name, _)| *name).collect(),
                declared: Family::ALL
                    .map(map)
                    .into_iter()
                    .chain(Family::ALL.into_iter().flat_map(of_node))
                    .chain(chains::bursts(input))
                    .collect(),
                chains: chains::main(input),
            },
            guard: Table {
                counters: GUARD_COUNTERS.iter().map(|(name, _)| *name).collect(),
                declared: Family::ALL
                    .map(set)
                    .into_iter()
                    .chain(Family::ALL.map(passing))
                    .collect(),
                chains: chains::guard(input),
            },
            ingress: forward::ingress(input),
        }
    }

    /// The tables as nft reads them.
    pub fn as_nft<'a>(&'a self, names: &'a TableNames) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| {
            writeln!(f, "table inet {} {{\n{}}}", names.main, self.main)?;
            writeln!(f, "table inet {} {{\n{}}}", names.guard, self.guard)?;
            match &self.ingress {
                Some(ingress) => writeln!(f, "table netdev {} {{\n{ingress}}}", names.ingress()),
                None => Ok(()),
            }
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for counter in &self.counters {
            writeln!(f, "\tcounter {counter} {{ }}")?;
        }
        for (name, declared) in &self.declared {
            writeln!(f, "\t{} {name} {declared}", declared.keyword())?;
        }
        for (name, Chain { hook, rules }) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(hook) = hook {
                writeln!(f, "\t\t{hook}")?;
            }
            for Rule { text, comment, .. } in rules {
                writeln!(f, "\t\t{text} comment \"{comment}\"")?;
            }
            writeln!(f, "\t}}")?;
        }
        Ok(())
    }
}
