//! Pure: what of all pods the one object for people and older tools shows.

use std::collections::BTreeMap;

use shared::config_map::key;
use shared::{PodIp, Vip};

/// How many entries it holds at most: an object of Kubernetes has at most a megabyte, and every
/// reader receives all of it whenever any pod comes or goes.
pub const LIMIT: usize = 1000;

/// The annotation that says that it does not show all.
pub const TRUNCATED: &str = "egress.mapper.com/truncated";

/// What it holds next, and what the annotation says.
///
/// Entries that are shown already stay while they are right, so that beyond the limit nothing is
/// written but what has changed.
pub fn aggregate<'a>(
    shards: impl Iterator<Item = &'a BTreeMap<PodIp, Option<Vip>>> + Clone,
    shown: &BTreeMap<String, String>,
) -> (BTreeMap<String, String>, Option<String>) {
    let entries = shards.clone().flatten();
    let total: usize = shards.map(BTreeMap::len).sum();
    let text = |vip: &Option<Vip>| vip.map_or_else(String::new, |vip| vip.to_string());
    let entries = entries.map(|(pod, vip)| (key(pod.addr()), text(vip)));
    if total <= LIMIT {
        return (entries.collect(), None);
    }
    let (mut kept, mut others) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in entries {
        if shown.contains_key(&key) && kept.len() < LIMIT {
            kept.insert(key, value);
        } else {
            others.insert(key, value);
        }
    }
    let room = LIMIT.saturating_sub(kept.len());
    kept.extend(others.into_iter().take(room));
    let note = format!(
        "shows {LIMIT} pod addresses, and there are more; podip-vip-mappings-<node> have all"
    );
    (kept, Some(note))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn pods(numbers: std::ops::Range<u32>) -> BTreeMap<PodIp, Option<Vip>> {
        let vip: Vip = "192.168.0.1".parse().unwrap();
        let pod = |n| PodIp::try_from(std::net::IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
        numbers.map(|n| (pod(n).unwrap(), Some(vip))).collect()
    }

    #[test]
    fn all_are_shown_up_to_the_limit() {
        let shards = [pods(1..601), pods(601..1001)];
        let (data, note) = aggregate(shards.iter(), &BTreeMap::new());
        assert_eq!((data.len(), note), (1000, None));
        assert_eq!(data["10.0.0.1"], "192.168.0.1");
    }

    #[test]
    fn beyond_the_limit_it_neither_grows_nor_churns_and_says_so() {
        let shards = [pods(1000..3000)];
        let (first, note) = aggregate(shards.iter(), &BTreeMap::new());
        assert_eq!(first.len(), LIMIT);
        assert!(note.is_some());
        // Lower addresses come: they would be the first ones of all, but there is no room.
        let (second, _) = aggregate([pods(1..3000)].iter(), &first);
        assert_eq!(second, first);
        // One of those shown goes: one other takes its place.
        let mut fewer = pods(1000..3000);
        fewer.pop_first();
        let (third, _) = aggregate([fewer].iter(), &second);
        assert_eq!(third.len(), LIMIT);
        assert_eq!(third.keys().filter(|key| !second.contains_key(*key)).count(), 1);
    }
}
