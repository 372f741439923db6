//! Which nodes may hold a VIP, and which first.
//!
//! Who holds a VIP is decided among the nodes, and the one that does keeps it: the order of the
//! list moves nothing by itself. What does: a node that is not in the list lets go while one that
//! is can take over. So a VIP that is to move to one node has only that one in its list until the
//! node reports it, and a node that is being emptied is in no list.
//!
//! The first node of each VIP is, in this order: the preferred one; the one that holds it; the one
//! that was first before; the one with the fewest. VIPs that may move are then spread evenly: those
//! that no usual node holds, and those that may move although they are fine ([`Vip::movable`]).
//! The nodes after the first are in an order of the VIP's own, so that the VIPs of a lost node
//! spread over all that are left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shared::Vip as Address;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How many nodes are named for a VIP: with more, the object would outgrow its limit of 1 MiB.
pub const MOST: usize = 32;

/// The nodes that may hold VIPs.
#[derive(Clone, Debug, Default)]
pub struct Nodes<'a> {
    /// Those that take VIPs.
    pub usual: BTreeSet<&'a str>,
    /// Those of the usual ones that are known to do their work.
    pub in_sync: BTreeSet<&'a str>,
    /// Those that keep what they have and take a VIP when no usual one can.
    pub spare: BTreeSet<&'a str>,
    /// Those that are to let go of what they have; named when there are no others.
    pub emptied: BTreeSet<&'a str>,
}

/// What decides where a VIP is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip<'a> {
    /// The node that holds it.
    pub holder: Option<&'a str>,
    /// The node that it is to be on.
    pub preferred: Option<&'a str>,
    /// It may move although it is fine where it is.
    pub movable: bool,
}

/// The nodes for each VIP, best first; `published` is what they were before.
pub fn candidates(
    vips: &BTreeMap<Address, Vip<'_>>,
    nodes: &Nodes<'_>,
    published: &BTreeMap<Address, Vec<String>>,
) -> BTreeMap<Address, Vec<String>> {
    let first = spread(vips, nodes, published);
    let list = |(&address, vip): (&Address, &Vip<'_>)| {
        let first = first.get(&address).copied();
        let names = match first.filter(|first| is_to_move(vip, first, nodes)) {
            Some(target) => vec![target],
            None => all(address, vip, first, nodes),
        };
        (address, names.into_iter().map(str::to_owned).collect())
    };
    vips.iter().map(list).collect()
}

/// Whether the VIP is to leave a node that may hold it for its first one. It does not set out for a
/// node that cannot be expected to take it.
fn is_to_move(vip: &Vip<'_>, first: &str, nodes: &Nodes<'_>) -> bool {
    let Vip { holder, preferred, movable } = *vip;
    let asked = movable || preferred == Some(first);
    asked && holder.is_some_and(|holder| holder != first) && nodes.in_sync.contains(first)
}

/// Every node that may hold the VIP, best first, at most [`MOST`].
fn all<'a>(
    address: Address,
    vip: &Vip<'a>,
    first: Option<&'a str>,
    nodes: &Nodes<'a>,
) -> Vec<&'a str> {
    let Nodes { usual, in_sync: _, spare, emptied } = nodes;
    let mut names: Vec<&str> = first.into_iter().collect();
    names.extend(best(address, usual.iter().copied().filter(|&node| Some(node) != first)));
    names.extend(best(address, spare.iter().copied()));
    if names.is_empty() {
        names = best(address, emptied.iter().copied());
    }
    let holder = vip.holder.filter(|holder| usual.contains(holder) || spare.contains(holder));
    names.truncate(MOST);
    if let Some(holder) = holder.filter(|holder| !names.contains(holder)) {
        // It is fine where it is.
        names.truncate(MOST - 1);
        names.push(holder);
    }
    names
}

/// The first node of each VIP, if there are usual ones.
fn spread<'a>(
    vips: &BTreeMap<Address, Vip<'a>>,
    nodes: &Nodes<'a>,
    published: &BTreeMap<Address, Vec<String>>,
) -> BTreeMap<Address, &'a str> {
    let mut loads: BTreeMap<&str, Load> =
        nodes.usual.iter().map(|&node| (node, Load::default())).collect();
    let mut homeless = Vec::new();
    for (&address, vip) in vips {
        let Vip { holder, preferred, movable } = *vip;
        let names = published.get(&address).map_or(&[][..], Vec::as_slice);
        let before = names.first().and_then(|name| nodes.usual.get(name.as_str()).copied());
        let usual = |node: &&str| nodes.usual.contains(node);
        let under_way = names.len() == 1;
        // A node that holds it and does not do its work is none to prefer to the one before.
        let holder = holder.filter(|node| nodes.in_sync.contains(node) || before == Some(*node));
        let (place, stays) = match (preferred.filter(usual), holder.filter(usual)) {
            (Some(preferred), _) => (Some(preferred), true),
            (None, Some(holder)) if !movable => (Some(holder), true),
            // A move that was begun is brought to its end.
            (None, holder) if under_way => (before.or(holder), false),
            (None, holder) => (holder.or(before), false),
        };
        match place.and_then(|place| loads.get_mut(place)) {
            Some(load) => load.add(address, stays),
            None => homeless.push(address),
        }
    }
    for address in homeless {
        let dislikes = dislikes(address);
        let least = loads.iter_mut().min_by_key(|(node, load)| (load.count(), dislikes(node)));
        if let Some((_, load)) = least {
            load.add(address, false);
        }
    }
    even_out(&mut loads);
    let firsts = loads.iter().flat_map(|(&node, load)| {
        load.stay.iter().chain(&load.movable).map(move |&address| (address, node))
    });
    firsts.collect()
}

/// The VIPs of which a node is the first.
#[derive(Debug, Default)]
struct Load {
    stay: BTreeSet<Address>,
    movable: BTreeSet<Address>,
}

impl Load {
    fn count(&self) -> usize {
        self.stay.len() + self.movable.len()
    }

    fn add(&mut self, address: Address, stays: bool) {
        if stays { &mut self.stay } else { &mut self.movable }.insert(address);
    }
}

/// Moves as few VIPs as it takes from the fullest nodes to the emptiest.
fn even_out(loads: &mut BTreeMap<&str, Load>) {
    loop {
        let fullest = loads
            .iter()
            .filter(|(_, load)| !load.movable.is_empty())
            .max_by_key(|(node, load)| (load.count(), Reverse(**node)));
        let emptiest = loads.iter().min_by_key(|(node, load)| (load.count(), **node));
        let (Some((&full, many)), Some((&empty, few))) = (fullest, emptiest) else { return };
        if many.count() <= few.count() + 1 {
            return;
        }
        let which = many.movable.iter().copied();
        let Some(address) = which.min_by_key(|&of| (dislikes(of)(empty), of)) else { return };
        for (node, load) in loads.iter_mut() {
            if *node == full {
                load.movable.remove(&address);
            } else if *node == empty {
                load.movable.insert(address);
            }
        }
    }
}

/// The best of these nodes for the VIP, best first, at most [`MOST`].
fn best<'a>(address: Address, nodes: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let dislikes = dislikes(address);
    let mut rated: Vec<_> = nodes.map(|node| (dislikes(node), node)).collect();
    if rated.len() > MOST {
        rated.select_nth_unstable(MOST);
        rated.truncate(MOST);
    }
    rated.sort_unstable();
    rated.into_iter().map(|(_, node)| node).collect()
}

/// How little each node suits the VIP: numbers that only the two decide.
fn dislikes(address: Address) -> impl Fn(&str) -> u64 {
    let seed = xxh3_64(address.to_string().as_bytes());
    move |node| xxh3_64_with_seed(node.as_bytes(), seed)
}

#[cfg(test)]
mod tests;
