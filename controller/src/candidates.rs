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
//! The second node is the one that takes the VIP when the first is lost: chosen so that the VIPs of
//! any one node that is lost spread evenly over all that are left. The nodes after that are in an
//! order of the VIP's own.

mod balance;

use std::collections::{BTreeMap, BTreeSet};

use shared::Vip as Address;

use self::balance::{Load, Places, even_out, settle};

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
    let [usual, spare, emptied] = [&nodes.usual, &nodes.spare, &nodes.emptied].map(Places::of);
    let firsts = spread(vips, nodes, &usual, published);
    let seconds = seconds(&firsts, &usual, published);
    let list = |(&address, vip): (&Address, &Vip<'_>)| {
        let names = match firsts.get(&address).map(|first| usual.name(*first)) {
            Some(first) if is_to_move(vip, first, nodes) => vec![first],
            Some(_) | None => {
                let foremost = [&firsts, &seconds].into_iter().filter_map(|of| of.get(&address));
                let mut names = usual.best(address, &foremost.copied().collect::<Vec<_>>(), MOST);
                names.extend(spare.best(address, &[], MOST - names.len()));
                if names.is_empty() {
                    names = emptied.best(address, &[], MOST);
                }
                with_holder(names, vip, nodes)
            }
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

/// The node that holds it is fine where it is, though it may not be among the best.
fn with_holder<'a>(mut names: Vec<&'a str>, vip: &Vip<'a>, nodes: &Nodes<'_>) -> Vec<&'a str> {
    let may = |holder: &&str| nodes.usual.contains(holder) || nodes.spare.contains(holder);
    if let Some(holder) = vip.holder.filter(may).filter(|holder| !names.contains(holder)) {
        names.truncate(MOST - 1);
        names.push(holder);
    }
    names
}

/// The first node of each VIP, if there are usual ones.
fn spread(
    vips: &BTreeMap<Address, Vip<'_>>,
    nodes: &Nodes<'_>,
    usual: &Places<'_>,
    published: &BTreeMap<Address, Vec<String>>,
) -> BTreeMap<Address, usize> {
    let mut loads: Vec<Load> = usual.all().map(|_| Load::default()).collect();
    let (mut firsts, mut homeless) = (BTreeMap::new(), Vec::new());
    for (&address, vip) in vips {
        let Vip { holder, preferred, movable } = *vip;
        let names = published.get(&address).map_or(&[][..], Vec::as_slice);
        let before = names.first().and_then(|name| usual.find(name));
        let under_way = names.len() == 1;
        // A node that holds it and does not do its work is none to prefer to the one before.
        let works = |node: &usize| nodes.in_sync.contains(usual.name(*node));
        let holder = holder.and_then(|holder| usual.find(holder));
        let holder = holder.filter(|node| works(node) || before == Some(*node));
        let (place, stays) = match (preferred.and_then(|name| usual.find(name)), holder) {
            (Some(preferred), _) => (Some(preferred), true),
            (None, Some(holder)) if !movable => (Some(holder), true),
            // A move that was begun is brought to its end.
            (None, holder) if under_way => (before.or(holder), false),
            (None, holder) => (holder.or(before), false),
        };
        match place.and_then(|place| Some((place, loads.get_mut(place)?))) {
            Some((place, load)) if stays => {
                load.stay += 1;
                firsts.insert(address, place);
            }
            Some((_, load)) => drop(load.movable.insert(address)),
            None => homeless.push(address),
        }
    }
    settle(homeless, &mut loads, usual);
    even_out(&mut loads, usual);
    for (node, load) in loads.iter().enumerate() {
        firsts.extend(load.movable.iter().map(|&address| (address, node)));
    }
    firsts
}

/// The second node of each VIP, if there are two usual ones: as if its first were lost, and what is on the others
/// stayed there. As few as it takes are others than `published`.
fn seconds(
    firsts: &BTreeMap<Address, usize>,
    usual: &Places<'_>,
    published: &BTreeMap<Address, Vec<String>>,
) -> BTreeMap<Address, usize> {
    let mut of_node: BTreeMap<usize, Vec<Address>> = BTreeMap::new();
    for (&address, &first) in firsts {
        of_node.entry(first).or_default().push(address);
    }
    let count = |node: usize| of_node.get(&node).map_or(0, Vec::len);
    let stay: Vec<usize> = usual.all().map(count).collect();
    let mut seconds = BTreeMap::new();
    for (&lost, addresses) in &of_node {
        let load = |(node, stay): (usize, &usize)| Load { lost: node == lost, ..Load::of(*stay) };
        let mut loads: Vec<Load> = stay.iter().enumerate().map(load).collect();
        let mut homeless = Vec::new();
        for &address in addresses {
            let names = published.get(&address).map_or(&[][..], Vec::as_slice);
            let mut others = names.iter().take(2).filter_map(|name| usual.find(name));
            let before = others.find(|node| *node != lost);
            match before.and_then(|node| loads.get_mut(node)) {
                Some(load) => drop(load.movable.insert(address)),
                None => homeless.push(address),
            }
        }
        settle(homeless, &mut loads, usual);
        even_out(&mut loads, usual);
        for (node, load) in loads.iter().enumerate() {
            seconds.extend(load.movable.iter().map(|&address| (address, node)));
        }
    }
    seconds
}

#[cfg(test)]
mod tests;
