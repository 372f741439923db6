//! What a node says of itself: how its report is written and read.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::blocks::{blocks, list};
use super::pod_addresses;
use super::{Decoded, Reason, Rejected, report_keys};
use crate::{Block, PodIp, PodUid, Vip, VipPath};

/// What the agent of one node reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// The VIPs that are an address of the node, each with the time since when it is.
    pub holds: BTreeMap<Vip, Timestamp>,
    /// The node's kernel holds all that the mappings ask for.
    pub synced: bool,
    /// Why it does not, or what else a person should know; may be empty.
    pub message: String,
    /// Addresses of pods that the node has learnt when they were assigned, before the API server.
    pub pods: BTreeMap<PodUid, Vec<PodIp>>,
    /// The version of the agent.
    pub agent_version: String,
    /// What was seen of other machines that use one of our VIPs or its VRRP id, in one line.
    pub conflicts: BTreeMap<Vip, String>,
    /// What the node makes of the blocks that are its own.
    pub blocks: BTreeMap<Vip, BlockUse>,
}

/// What a node makes of its blocks of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockUse {
    /// Those that packets of the node may leave with: all that are open, and those draining that
    /// connections still have. One that is not here may be given to another node.
    pub blocks: BTreeSet<Block>,
    /// How new connections leave.
    pub path: VipPath,
    /// How many ports are in use towards the destination (protocol, address and port) with the
    /// most.
    pub used: u16,
    /// Why the path is not the direct one, or what else a person should know; may be empty.
    pub message: String,
}

/// The longest text about one conflict, in characters.
const LONGEST_CONFLICT: usize = 300;

/// The data of one node's object: always all keys but conflicts and blocks, which are there if there
/// are any.
pub fn encode_node_report(report: &NodeReport) -> BTreeMap<String, String> {
    let NodeReport { holds, synced, message, pods, agent_version, conflicts, blocks } = report;
    let holds: Vec<String> = holds.iter().map(|(vip, since)| format!("{vip} {since}")).collect();
    let ips = |ips: &[PodIp]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let pods: Vec<String> = pods.iter().map(|(uid, of)| format!("{uid} {}", ips(of))).collect();
    let conflicts: Vec<String> =
        conflicts.iter().map(|(vip, seen)| format!("{vip} {}", in_one_line(seen))).collect();
    let conflicts =
        (!conflicts.is_empty()).then(|| (report_keys::CONFLICTS.to_owned(), conflicts.join("\n")));
    let blocks: Vec<String> = blocks.iter().map(|(vip, of)| line_of(*vip, of)).collect();
    let blocks = (!blocks.is_empty()).then(|| (report_keys::BLOCKS.to_owned(), blocks.join("\n")));
    let always = [
        (report_keys::HOLDS, holds.join("\n")),
        (report_keys::PODS, pods.join("\n")),
        (report_keys::SYNCED, synced.to_string()),
        (report_keys::MESSAGE, message.clone()),
        (report_keys::VERSION, agent_version.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    always.into_iter().chain(conflicts).chain(blocks).collect()
}

fn in_one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(LONGEST_CONFLICT).collect::<String>().trim_end().to_owned()
}

/// Reads `object` as the report of a node. A key that is missing says nothing: no VIP, not in sync.
///
/// Unknown keys are passed over: an agent may be newer than the controller. A VIP that is named
/// twice counts since the earlier time; what is said of it twice is joined.
pub fn decode_node_report(object: &str, data: &BTreeMap<String, String>) -> Decoded<NodeReport> {
    let text = |key: &str| data.get(key).map(|value| value.trim()).unwrap_or_default();
    let lines = |key: &str| text(key).lines().map(str::trim).filter(|line: &&str| !line.is_empty());
    let mut rejected = Vec::new();
    let mut pods = BTreeMap::new();
    for line in lines(report_keys::PODS) {
        match learnt(line) {
            Ok((uid, ips)) => {
                pods.insert(uid, ips);
            }
            Err(reason) => rejected.push(Rejected::new(object, report_keys::PODS, line, reason)),
        }
    }
    let mut holds: BTreeMap<Vip, Timestamp> = BTreeMap::new();
    for line in lines(report_keys::HOLDS) {
        match held(line) {
            Ok((vip, since)) => {
                holds.entry(vip).and_modify(|other| *other = since.min(*other)).or_insert(since);
            }
            Err(reason) => {
                rejected.push(Rejected::new(object, report_keys::HOLDS, line, reason));
            }
        }
    }
    let synced = match text(report_keys::SYNCED) {
        "true" => true,
        "false" | "" => false,
        other => {
            rejected.push(Rejected::new(object, report_keys::SYNCED, other, Reason::NoTruth));
            false
        }
    };
    let mut conflicts: BTreeMap<Vip, String> = BTreeMap::new();
    for line in text(report_keys::CONFLICTS).lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (vip, seen) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match vip.parse::<Vip>() {
            Ok(vip) => {
                let known = conflicts.remove(&vip).map(|known| format!("{known}; "));
                conflicts.insert(vip, in_one_line(&(known.unwrap_or_default() + seen)));
            }
            Err(invalid) => {
                let reason = Reason::NoHeldVip(invalid.why);
                rejected.push(Rejected::new(object, report_keys::CONFLICTS, line, reason));
            }
        }
    }
    let mut blocks = BTreeMap::new();
    for line in lines(report_keys::BLOCKS) {
        match block_use(line) {
            Ok((vip, of)) => {
                blocks.insert(vip, of);
            }
            Err(reason) => rejected.push(Rejected::new(object, report_keys::BLOCKS, line, reason)),
        }
    }
    rejected.sort();
    let message = text(report_keys::MESSAGE).to_owned();
    let agent_version = text(report_keys::VERSION).to_owned();
    let entries = NodeReport { holds, synced, message, pods, agent_version, conflicts, blocks };
    Decoded { entries, rejected }
}

/// A VIP and since when, separated by white space.
fn held(line: &str) -> Result<(Vip, Timestamp), Reason> {
    let (vip, since) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let vip = vip.parse::<Vip>().map_err(|invalid| Reason::NoHeldVip(invalid.why))?;
    let since = since.trim().parse().map_err(|_| Reason::NoTime)?;
    Ok((vip, since))
}

/// A pod and its addresses, separated by white space.
fn learnt(line: &str) -> Result<(PodUid, Vec<PodIp>), Reason> {
    let (uid, ips) = line.split_once(char::is_whitespace).ok_or(Reason::NoPod)?;
    let uid = uid.parse().map_err(|_| Reason::NoPod)?;
    Ok((uid, pod_addresses(ips)?))
}

/// VIP, blocks (`-` for none), path, ports in use and the message, separated by white space.
fn line_of(vip: Vip, BlockUse { blocks, path, used, message }: &BlockUse) -> String {
    let blocks = if blocks.is_empty() { NONE.to_owned() } else { list(blocks) };
    format!("{vip} {blocks} {path} {used} {}", in_one_line(message)).trim_end().to_owned()
}

const NONE: &str = "-";

/// What [`line_of`] has written.
fn block_use(line: &str) -> Result<(Vip, BlockUse), Reason> {
    let mut words = line.split_whitespace();
    let vip = words.next().unwrap_or_default().parse::<Vip>();
    let vip = vip.map_err(|invalid| Reason::NoHeldVip(invalid.why))?;
    let mut word = || words.next().ok_or(Reason::NoUseOfBlocks);
    let of = match word()? {
        NONE => BTreeSet::new(),
        text => blocks(text)?,
    };
    let path = word()?.parse().map_err(|_| Reason::NoUseOfBlocks)?;
    let used = word()?.parse().map_err(|_| Reason::NoUseOfBlocks)?;
    let message = words.collect::<Vec<_>>().join(" ");
    Ok((vip, BlockUse { blocks: of, path, used, message }))
}

/// The name of the object with that node's report.
pub fn report_of_node(node: &str) -> String {
    format!("{}{node}", super::NODE_REPORT_PREFIX)
}

/// The value of a label that stands for a node: its name, cut off where labels end.
pub fn label_of_node(node: &str) -> &str {
    const LONGEST: usize = 63;
    let end = node.len().min(LONGEST);
    node.get(..end).unwrap_or_default().trim_end_matches(['-', '.', '_'])
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    proptest! {
        #[test]
        fn a_report_survives_being_written_and_read(
            holds in btree_map(1..250u8, 0..4_000_000_000_000i64, 0..5),
            synced: bool,
            message in "([a-z:]{1,5} ?[a-z]{1,5})?",
            conflicts in btree_map(1..250u8, "([a-z:]{1,5} ?[a-z]{1,5})?", 0..3),
            pods in btree_map(0..99u8, 1..250u8, 0..4),
            blocks in btree_map(1..250u8, (btree_set(1..=47u32, 0..5), any::<(bool, u16)>()), 0..4),
            why in "([a-z:]{1,5} ?[a-z]{1,5})?",
        ) {
            let blocks = blocks
                .into_iter()
                .map(|(n, (of, (direct, used)))| {
                    let vip = format!("192.168.0.{n}").parse().unwrap();
                    let blocks = of.into_iter().map(|n| n.try_into().unwrap()).collect();
                    let path = if direct { VipPath::Direct } else { VipPath::ViaHolder };
                    (vip, BlockUse { blocks, path, used, message: why.clone() })
                })
                .collect();
            let conflicts = conflicts
                .into_iter()
                .map(|(n, seen)| (format!("192.168.0.{n}").parse().unwrap(), seen))
                .collect();
            let holds = holds.into_iter().map(|(n, at)| {
                let vip = if n % 2 == 0 { format!("192.168.0.{n}") } else { format!("fd00::{n}") };
                (vip.parse().unwrap(), Timestamp::from_millisecond(at).unwrap())
            });
            let agent_version = "0.1.0".to_owned();
            let pods = pods.into_iter().map(|(uid, n)| {
                let uid = format!("8f14e45f-ceea-467f-a0e6-5d1c5a3b{uid:04}").parse().unwrap();
                let ips = [format!("10.0.0.{n}"), format!("fd00::{n}")];
                (uid, ips[..=usize::from(n % 2)].iter().map(|ip| ip.parse().unwrap()).collect())
            });
            let (holds, pods) = (holds.collect(), pods.collect());
            let report =
                NodeReport { holds, synced, message, pods, agent_version, conflicts, blocks };
            let decoded = decode_node_report("egress-node-a", &encode_node_report(&report));
            prop_assert_eq!(decoded, Decoded { entries: report, rejected: vec![] });
        }

        #[test]
        fn nonsense_is_no_report_and_no_failure(holds: String, synced: String, key: String) {
            let data = data(&[("holds", &holds), ("synced", &synced), (&key, "x")]);
            let Decoded { entries, rejected } = decode_node_report("egress-node-a", &data);
            let lines = holds.lines().filter(|line| !line.trim().is_empty()).count();
            let names_holds = rejected.iter().filter(|rejected| rejected.key == "holds").count();
            prop_assert!(entries.holds.len() + names_holds >= lines.min(1));
        }
    }

    #[test]
    fn bad_lines_are_named_and_the_others_count() {
        let holds = "192.168.0.1 2026-11-23T10:00:00Z\nfd00::1\n127.0.0.1 2026-11-23T10:00:00Z\n\
                     192.168.0.1\t2026-11-23T09:00:00+00:00";
        let pods = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21 10.0.0.1,fd00::1\n8f14e45f 10.0.0.1\n\
                    8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22 127.0.0.1";
        let data = data(&[("holds", holds), ("synced", "yes"), ("pods", pods), ("later", "1")]);
        let Decoded { entries, rejected } = decode_node_report("egress-node-a", &data);
        let expected = data_of(&entries);
        assert_eq!(
            expected,
            "holds=192.168.0.1 2026-11-23T09:00:00Z\nmessage=\n\
             pods=8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21 10.0.0.1,fd00::1\nsynced=false\nversion="
        );
        let texts: Vec<_> = rejected.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "egress-node-a, key \"holds\", value \"127.0.0.1 2026-11-23T10:00:00Z\": it does \
                 not begin with a VIP: it is a loopback address; use one that other hosts can reach",
                "egress-node-a, key \"holds\", value \"fd00::1\": it does not end with a time; write \
                 one as 2026-01-31T12:00:00Z",
                "egress-node-a, key \"pods\", value \"8f14e45f 10.0.0.1\": it does not begin with the \
                 UID of a pod, or no address follows; write UID ADDRESS",
                "egress-node-a, key \"pods\", value \"8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22 \
                 127.0.0.1\": it is not the address of a pod: it is a loopback address; use one that \
                 other hosts can reach",
                "egress-node-a, key \"synced\", value \"yes\": it is neither true nor false; write \
                 one of the two",
            ]
        );
    }

    #[test]
    fn conflicts_are_lines_and_what_is_said_twice_is_joined() {
        let lines = "192.168.0.1 is at\t00:11:22\nnonsense x\n192.168.0.1 route id 7\nfd00::1";
        let Decoded { entries, rejected } =
            decode_node_report("egress-node-a", &data(&[("conflicts", lines)]));
        let seen: Vec<_> = entries.conflicts.values().map(String::as_str).collect();
        assert_eq!(seen, ["is at 00:11:22; route id 7", ""]);
        assert_eq!(rejected.len(), 1);
        let report = NodeReport {
            conflicts: [("192.168.0.1".parse().unwrap(), format!("a\nb{}", "x".repeat(999)))]
                .into(),
            ..NodeReport::default()
        };
        let line = &encode_node_report(&report)["conflicts"];
        assert_eq!(line, &format!("192.168.0.1 a b{}", "x".repeat(297)));
    }

    #[test]
    fn bad_lines_about_blocks_are_named_and_the_others_count() {
        let lines = "192.168.0.1 1,2 Direct 12\nfd00::1 - ViaHolder 0 no answer\n192.168.0.2 1\n\
                     192.168.0.3 48 Direct 0\n192.168.0.4 1 Sideways 0";
        let Decoded { entries, rejected } =
            decode_node_report("egress-node-a", &data(&[("blocks", lines)]));
        let again = &encode_node_report(&entries)["blocks"];
        assert_eq!(again, "192.168.0.1 1,2 Direct 12\nfd00::1 - ViaHolder 0 no answer");
        assert_eq!(rejected.len(), 3);
    }

    #[test]
    fn the_label_of_a_node_is_legal() {
        assert_eq!(label_of_node("node-1.example"), "node-1.example");
        let long = format!("{}.{}", "a".repeat(62), "b".repeat(62));
        assert_eq!(label_of_node(&long), "a".repeat(62));
    }

    fn data_of(report: &NodeReport) -> String {
        let lines: Vec<_> = encode_node_report(report)
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        lines.join("\n")
    }
}
