//! Even loads, and the order of nodes that is a VIP's own.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

use shared::Vip as Address;
use xxhash_rust::xxh3::xxh3_64;

/// Nodes of one kind, by number in the order of their names.
#[derive(Debug)]
pub(super) struct Places<'a> {
    names: Vec<&'a str>,
    hashes: Vec<u64>,
}

impl<'a> Places<'a> {
    pub(super) fn of(names: &BTreeSet<&'a str>) -> Self {
        let names: Vec<&str> = names.iter().copied().collect();
        let hashes = names.iter().map(|name| xxh3_64(name.as_bytes())).collect();
        Self { names, hashes }
    }

    pub(super) fn all(&self) -> Range<usize> {
        0..self.names.len()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.names.binary_search(&name).ok()
    }

    /// The name of one of them; none is called so.
    pub(super) fn name(&self, node: usize) -> &'a str {
        self.names.get(node).copied().unwrap_or_default()
    }

    /// Those first, then the others that suit the VIP best, at most `most` in all.
    pub(super) fn best(&self, address: Address, first: &[usize], most: usize) -> Vec<&'a str> {
        let dislike = self.dislikes(address);
        let others = self.all().filter(|node| !first.contains(node));
        let mut rated: Vec<(u64, usize)> = others.map(|node| (dislike(node), node)).collect();
        let wanted = most.saturating_sub(first.len());
        if rated.len() > wanted {
            rated.select_nth_unstable(wanted);
            rated.truncate(wanted);
        }
        rated.sort_unstable();
        let order = first.iter().copied().chain(rated.into_iter().map(|(_, node)| node));
        order.take(most).map(|node| self.name(node)).collect()
    }

    /// How little each node suits the VIP: numbers that only the two decide.
    fn dislikes(&self, address: Address) -> impl Fn(usize) -> u64 {
        let of_vip = xxh3_64(address.to_string().as_bytes());
        move |node| mixed(of_vip ^ self.hashes.get(node).copied().unwrap_or_default())
    }
}

/// A number for each number, as if by chance (the end of `SplitMix64`).
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The VIPs of a node, by number in its [`Places`].
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    /// How many stay there.
    pub(super) stay: usize,
    /// Those that may as well be elsewhere.
    pub(super) movable: BTreeSet<Address>,
    /// It takes none.
    pub(super) lost: bool,
}

impl Load {
    pub(super) fn of(stay: usize) -> Self {
        Self { stay, ..Self::default() }
    }

    fn count(&self) -> usize {
        self.stay + self.movable.len()
    }
}

/// Gives each of these VIPs to a node with the fewest.
pub(super) fn settle(homeless: Vec<Address>, loads: &mut [Load], places: &Places<'_>) {
    for address in homeless {
        let dislike = places.dislikes(address);
        let takes = loads.iter_mut().enumerate().filter(|(_, load)| !load.lost);
        if let Some((_, load)) = takes.min_by_key(|(node, load)| (load.count(), dislike(*node))) {
            load.movable.insert(address);
        }
    }
}

/// Moves as few VIPs as it takes from the fullest nodes to the emptiest.
pub(super) fn even_out(loads: &mut [Load], places: &Places<'_>) {
    loop {
        let takes = || loads.iter().enumerate().filter(|(_, load)| !load.lost);
        let fullest = takes()
            .filter(|(_, load)| !load.movable.is_empty())
            .max_by_key(|(node, load)| (load.count(), Reverse(*node)));
        let emptiest = takes().min_by_key(|(node, load)| (load.count(), *node));
        let (Some((full, many)), Some((empty, few))) = (fullest, emptiest) else { return };
        if many.count() <= few.count() + 1 {
            return;
        }
        let which = many.movable.iter().copied();
        let Some(address) = which.min_by_key(|&of| (places.dislikes(of)(empty), of)) else {
            return;
        };
        if let Ok([full, empty]) = loads.get_disjoint_mut([full, empty]) {
            full.movable.remove(&address);
            empty.movable.insert(address);
        }
    }
}
