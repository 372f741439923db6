//! Which nodes may hold which VIP, best first: how it is written and read.

use std::collections::BTreeMap;

use super::decode::{Spelled, Spelling, vip_key};
use super::{Decoded, Reason, key};
use crate::Vip;

/// The data of [`CANDIDATES`](super::CANDIDATES): names of nodes, best first, separated by commas.
pub fn encode_candidates<'a>(
    candidates: impl IntoIterator<Item = (&'a Vip, &'a Vec<String>)>,
) -> BTreeMap<String, String> {
    candidates.into_iter().map(|(vip, nodes)| (key(vip.addr()), nodes.join(","))).collect()
}

/// Reads `object` as [`CANDIDATES`](super::CANDIDATES): names of nodes, best first.
///
/// A name that no node can have is rejected by itself; of a repeated name the first counts.
pub fn decode_candidates(
    object: &str,
    data: &BTreeMap<String, String>,
) -> Decoded<BTreeMap<Vip, Vec<String>>> {
    let mut spelled = Spelled::new(object);
    for (key, value) in data {
        match vip_key(key) {
            Err(reason) => spelled.reject(key, value, reason),
            Ok(vip) => {
                let mut meaning: Vec<String> = Vec::new();
                for name in value.split([',', ' ', '\n', '\t', '\r']).filter(|n| !n.is_empty()) {
                    if !is_node_name(name) {
                        spelled.reject(key, name, Reason::NoNodeName);
                    } else if !meaning.iter().any(|node| node == name) {
                        meaning.push(name.to_owned());
                    }
                }
                let named = false;
                spelled.add(vip, vip.addr(), Spelling { key, value, meaning, named });
            }
        }
    }
    spelled.finish(|entry| entry.meaning)
}

/// Whether it is a DNS subdomain, as names of nodes are.
fn is_node_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            label.starts_with(edge)
                && label.ends_with(edge)
                && label.chars().all(|c| edge(c) || c == '-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::CANDIDATES;
    use super::*;

    proptest! {
        #[test]
        fn candidates_survive_being_written_and_read(
            vips in btree_map(1..250u8, vec("[a-z0-9]([a-z0-9-]{0,3}[a-z0-9])?", 0..5), 0..6)
        ) {
            let distinct = |nodes: Vec<String>| {
                let mut kept = Vec::new();
                for node in nodes {
                    if !kept.contains(&node) {
                        kept.push(node);
                    }
                }
                kept
            };
            let vip = |n| format!("192.168.0.{n}").parse::<Vip>().unwrap();
            let candidates: BTreeMap<_, _> =
                vips.into_iter().map(|(n, nodes)| (vip(n), distinct(nodes))).collect();
            let decoded = decode_candidates(CANDIDATES, &encode_candidates(&candidates));
            prop_assert_eq!(decoded, Decoded { entries: candidates, rejected: vec![] });
        }
    }

    #[test]
    fn bad_names_are_named_and_the_others_keep_their_order() {
        let data = [("fd00--1", "n2, n1\nn2,N3"), ("192.168.0.1", ""), ("x", "n1")];
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let Decoded { entries, rejected } = decode_candidates(CANDIDATES, &data);
        let expected = [("192.168.0.1", vec![]), ("fd00::1", vec!["n2".to_owned(), "n1".into()])];
        assert_eq!(entries, expected.map(|(vip, nodes)| (vip.parse().unwrap(), nodes)).into());
        let texts: Vec<_> = rejected.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "vip-candidates, key \"fd00--1\", value \"N3\": it is not the name of a node; write \
                 names as kubectl get nodes shows them, separated by commas",
                "vip-candidates, key \"x\", value \"n1\": the key is not a VIP: it is not an IP \
                 address; write one address, such as 192.0.2.10 or fd00::10 (in IPv6 '-' stands for \
                 ':')",
            ]
        );
    }

    #[rstest]
    #[case("node-1", true)]
    #[case("ip-10-0-0-1.eu.compute.internal", true)]
    #[case("", false)]
    #[case("a..b", false)]
    #[case("-a", false)]
    #[case("a_b", false)]
    fn a_node_name_is_a_dns_subdomain(#[case] name: &str, #[case] valid: bool) {
        assert_eq!(is_node_name(name), valid);
    }
}
