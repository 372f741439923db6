//! The desired state as text: what golden files compare and what a sync logs.
//!
//! Sorted and stable. Commands are those of `ip` and `nft`; loaded in this order they would make
//! the state by hand, but for the elements of the maps, which come last and by VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shared::{Block, PodIp, Vip};

use super::{Desired, Place};
use crate::routing::Family;
use crate::ruleset::TableNames;
use crate::unsure::{Unsure, Vouched};

impl Desired<'_> {
    /// The whole of it; the tables are called by `names`.
    pub fn as_text<'a>(&'a self, names: &'a TableNames) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| self.write(f, names))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, names: &TableNames) -> fmt::Result {
        let Self { rules, routes, later, ruleset, pods, vouched, loose, places } = self;
        for (id, Place { vip, here, blocks, shared }) in places {
            let place = if *here { "here" } else { "elsewhere" };
            write!(f, "VIP {vip}: route id {id}, {place}")?;
            if *shared {
                write!(f, ", on the direct path with blocks {}", List(blocks))?;
            }
            writeln!(f)?;
        }
        for rule in rules {
            writeln!(f, "{} rule {rule}", ip(rule.family))?;
        }
        for route in routes {
            writeln!(f, "{} route {route}", ip(route.family))?;
        }
        for route in later {
            writeln!(f, "{} route, once the VIP has left: {route}", ip(route.family))?;
        }
        for interface in loose {
            writeln!(f, "net.ipv4.conf.{interface}.rp_filter not strict")?;
        }
        write!(f, "{}", ruleset.as_nft(names))?;
        let mut by_vip: BTreeMap<Option<Vip>, Vec<PodIp>> = BTreeMap::new();
        for (pod, vip) in *pods {
            by_vip.entry(*vip).or_default().push(*pod);
        }
        for (vip, pods) in by_vip {
            match vip {
                Some(vip) => write!(f, "pods of {vip}:")?,
                None => write!(f, "pods held:")?,
            }
            pods.iter().try_for_each(|pod| write!(f, " {pod}"))?;
            writeln!(f)?;
        }
        let Vouched { known, unsure } = vouched;
        if *unsure != Unsure::No {
            writeln!(f, "{unsure}")?;
        }
        if !known.is_empty() {
            f.write_str("known:")?;
            known.iter().try_for_each(|pod| write!(f, " {pod}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Separated by commas; `none` if it is empty.
struct List<'a>(&'a BTreeSet<Block>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let blocks: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&blocks.join(","))
    }
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}
