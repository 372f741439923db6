//! From the kernel's numbers to our own types: what tables look like.

use crate::kernel_state::{Contents, SeenChain, SeenHook, SeenRule, SeenTable};
use crate::routing::Family;
use crate::ruleset::{Declared, DeclaredKind, Hook, HookKind, HookPoint};

use super::tables::{Base, Chain, Set, Table};

// linux/netfilter.h, linux/netfilter/nf_tables.h
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_OUT: u32 = 3;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_NETDEV_INGRESS: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFT_SET_MAP: u32 = 8;
const NFT_SET_TIMEOUT: u32 = 16;
const NFT_SET_EVAL: u32 = 32;
const FILLED_BY_RULES: u32 = NFT_SET_TIMEOUT | NFT_SET_EVAL;

pub(super) fn table(seen: Table) -> SeenTable {
    let Table { flags, handle, chains, sets, counters } = seen;
    SeenTable {
        handle,
        contents: sets
            .iter()
            .map(|(name, set)| (name.clone(), Contents { handle: set.handle, count: set.count }))
            .collect(),
        dormant: flags & NFT_TABLE_F_DORMANT != 0,
        chains: chains.into_iter().map(|(name, seen)| (name, chain(seen))).collect(),
        declared: sets.into_iter().map(|(name, set)| (name, declared(&set))).collect(),
        counters,
    }
}

fn chain(seen: Chain) -> SeenChain {
    let Chain { base, rules } = seen;
    let rules =
        rules.into_iter().map(|rule| SeenRule { comment: rule.comment, digest: rule.digest });
    SeenChain { hook: base.map_or(SeenHook::None, |base| hook(&base)), rules: rules.collect() }
}

fn hook(base: &Base) -> SeenHook {
    let Base { kind, hook, priority, policy, devices } = base;
    let kind = match kind.as_str() {
        "filter" => HookKind::Filter,
        "nat" => HookKind::Nat,
        "route" => HookKind::Route,
        _ => return SeenHook::Other,
    };
    let (point, device) = match (*hook, devices.as_slice()) {
        (NF_INET_PRE_ROUTING, []) => (HookPoint::Prerouting, None),
        (NF_INET_LOCAL_OUT, []) => (HookPoint::Output, None),
        (NF_INET_POST_ROUTING, []) => (HookPoint::Postrouting, None),
        (NF_NETDEV_INGRESS, [device]) => (HookPoint::Ingress, Some(device.clone())),
        _ => return SeenHook::Other,
    };
    if *policy != NF_ACCEPT {
        return SeenHook::Other;
    }
    SeenHook::Known(Hook { kind, point, device, priority: *priority })
}

/// nft's number of `inet_proto . ipv4_addr . inet_service`, or `ipv6_addr`: six bits for each.
const fn burst_key(family: Family) -> u32 {
    const PROTOCOL: u32 = 12;
    const SERVICE: u32 = 13;
    let address = match family {
        Family::V4 => 7,
        Family::V6 => 8,
    };
    (PROTOCOL << 12) | (address << 6) | SERVICE
}

/// `None` for anything that we never declare.
fn declared(set: &Set) -> Option<Declared> {
    let Set { key_type, key_len, data_len, flags, size, .. } = *set;
    if (flags, data_len) == (FILLED_BY_RULES, 0) {
        let of_bursts = |family: &Family| burst_key(*family) == key_type;
        if let Some(family) = Family::ALL.into_iter().find(of_bursts) {
            return Some(Declared { kind: DeclaredKind::Bursts, family, size });
        }
        // Two addresses and a number of 32 bits.
        let family = match key_len {
            12 => Family::V4,
            36 => Family::V6,
            _ => return None,
        };
        return Some(Declared { kind: DeclaredKind::Fragments, family, size });
    }
    // Two addresses and a number; and two more.
    let of_answers = match key_len {
        12 => Some((DeclaredKind::Echoes, Family::V4)),
        36 => Some((DeclaredKind::Echoes, Family::V6)),
        20 => Some((DeclaredKind::Connections, Family::V4)),
        44 => Some((DeclaredKind::Connections, Family::V6)),
        _ => None,
    };
    if let Some((kind, family)) = of_answers.filter(|_| (flags, data_len) == (0, 0)) {
        return Some(Declared { kind, family, size });
    }
    let family = match key_len {
        4 => Family::V4,
        16 => Family::V6,
        _ => return None,
    };
    let kind = match (flags, data_len) {
        (0, 0) => DeclaredKind::Set,
        (NFT_SET_TIMEOUT, 0) => DeclaredKind::Passing,
        (NFT_SET_MAP, len) if len == key_len => DeclaredKind::Map,
        _ => return None,
    };
    Some(Declared { kind, family, size })
}
