//! From mappings and node facts to the desired state and the plan, as a person reads them.
//!
//! A case is a folder below `golden/`; adding one needs no code:
//! - `mappings/<object>/<key>`: what the agent reads with `--mappings-dir`;
//! - `node.json`: what the node is like;
//! - `from.txt`, optional: the case whose state the kernel holds before; without it, nothing;
//! - `state.txt`, `plan.txt`, `rejected.txt`: what comes of it, written anew by
//!   `UPDATE_GOLDEN=1 cargo test -p agent --test golden`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot be read fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use agent::desired::{Desired, Settings, desired, ruleset_input};
use agent::direct::Proven;
use agent::kernel_state::{
    Count, LoadedDigests, Observed, SeenChain, SeenHook, SeenRule, SeenTable,
};
use agent::node_facts::{Link, LocalAddress, NodeFacts, OnLink, Routed};
use agent::plan::plan;
use agent::pod_tables::PodTables;
use agent::routing::{Device, ObservedRouting};
use agent::ruleset::{Chain, Ruleset, Table, TableNames};
use ipnet::IpNet;
use serde::Deserialize;
use shared::MappingsStore;
use shared::mappings::{Change, Content};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    /// As given by `--interface`.
    interface: Option<String>,
    /// As given by `--node-name`.
    #[serde(default)]
    name: String,
    /// The blocks of VIPs that are proven.
    #[serde(default)]
    proven: BTreeMap<String, BTreeSet<u32>>,
    devices: BTreeMap<u32, NodeDevice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeDevice {
    name: String,
    #[serde(default)]
    down: bool,
    #[serde(default)]
    addresses: Vec<std::net::IpAddr>,
    /// Networks on its link.
    #[serde(default)]
    networks: Vec<IpNet>,
    /// Networks behind a gateway on its link.
    #[serde(default)]
    routed: Vec<IpNet>,
}

impl Node {
    fn proven(&self) -> Proven {
        let of = self.proven.iter().map(|(vip, blocks)| {
            let blocks = blocks.iter().map(|number| (*number).try_into().unwrap());
            (vip.parse().unwrap(), blocks.collect())
        });
        Proven::These(of.collect())
    }

    fn facts(&self) -> NodeFacts {
        let mut facts = NodeFacts::default();
        for (&index, node) in &self.devices {
            let NodeDevice { name, down, addresses, networks, routed } = node;
            let device = Device { index, name: name.clone() };
            facts.links.insert(index, Link { device, up: !down, loopback: name == "lo" });
            facts.addresses.extend(addresses.iter().map(|addr| LocalAddress {
                addr: *addr,
                device: index,
                usable: true,
            }));
            facts.on_link.extend(networks.iter().map(|network| OnLink {
                network: *network,
                device: index,
                metric: 0,
            }));
            let behind = routed.iter().map(|network| Routed { network: *network, device: index });
            facts.routed.extend(behind);
        }
        facts
    }
}

struct Case {
    store: MappingsStore,
    facts: NodeFacts,
    settings: Settings,
    from: Option<String>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Names of what is in a folder, ascending.
fn names_in(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = golden().join(name);
        let mut store = MappingsStore::default();
        let mappings = folder.join("mappings");
        for object in names_in(&mappings) {
            let folder = mappings.join(&object);
            let keys = names_in(&folder).into_iter().filter(|key| !key.starts_with('.'));
            let data = keys.map(|key| (key.clone(), read(&folder.join(key)))).collect();
            store.apply(Change { object, content: Content::Whole(data) });
        }
        let node: Node = serde_json::from_str(&read(&folder.join("node.json")))
            .unwrap_or_else(|error| panic!("{name}/node.json: {error}"));
        let from = folder.join("from.txt");
        Self {
            store,
            facts: node.facts(),
            settings: Settings {
                proven: node.proven(),
                interface: node.interface,
                node: node.name,
                ..Settings::default()
            },
            from: from.exists().then(|| read(&from).trim().to_owned()),
        }
    }

    fn ruleset(&self) -> Ruleset {
        let mappings = self.store.mappings().unwrap();
        Ruleset::render(&ruleset_input(mappings, &self.facts, &self.settings).0)
    }

    fn desired<'a>(&'a self, ruleset: &'a Ruleset) -> Desired<'a> {
        desired(self.store.mappings().unwrap(), &self.facts, &self.settings, ruleset)
    }

    /// The contents of the expected files, by their names.
    fn outcome(&self) -> [(&'static str, String); 3] {
        let ruleset = self.ruleset();
        let desired = self.desired(&ruleset);
        let observed = match &self.from {
            Some(before) => {
                let before = Case::read(before);
                let ruleset = before.ruleset();
                settled(&before.desired(&ruleset))
            }
            // Many distributions start with strict filters.
            None => Observed { strict: desired.loose.clone(), ..Observed::default() },
        };
        let marks = self.settings.ownership.marks();
        let steps = plan(&desired, &observed, None, &<[LoadedDigests; 3]>::default(), marks);
        let mappings = self.store.mappings().unwrap();
        let (_, notes) = ruleset_input(mappings, &self.facts, &self.settings);
        let mut rejected = lines(self.store.rejected());
        rejected.push_str(&lines(mappings.problems()));
        rejected.push_str(&lines(notes));
        let state = desired.as_text(&TableNames::of("egress")).to_string();
        [("state.txt", state), ("plan.txt", lines(steps)), ("rejected.txt", rejected)]
    }
}

fn lines<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().fold(String::new(), |mut text, item| {
        writeln!(text, "{item}").unwrap();
        text
    })
}

/// A kernel that holds just what is desired.
fn settled(desired: &Desired<'_>) -> Observed {
    let Desired { rules, routes, later: _, ruleset, pods, vouched: _, loose: _, places } = desired;
    let seen = |table: &Table| SeenTable {
        handle: 1,
        contents: BTreeMap::new(),
        dormant: false,
        chains: table
            .chains
            .iter()
            .map(|(name, chain)| (name.clone(), seen_chain(chain)))
            .collect(),
        declared: table.declared.iter().map(|(n, d)| (n.clone().into_owned(), Some(*d))).collect(),
        counters: table.counters.iter().map(|n| ((*n).to_owned(), Count::default())).collect(),
    };
    Observed {
        routing: ObservedRouting {
            rules: rules.clone(),
            routes: routes.clone(),
            ..ObservedRouting::default()
        },
        main: Some(seen(&ruleset.main)),
        guard: Some(seen(&ruleset.guard)),
        ingress: ruleset.ingress.as_ref().map(seen),
        pods: PodTables {
            vips: (*pods).clone(),
            guarded: pods.keys().copied().collect(),
            ..PodTables::default()
        },
        places: Some(places.clone()),
        ..Observed::default()
    }
}

fn seen_chain(chain: &Chain) -> SeenChain {
    let comments = chain.rules.iter().map(|rule| rule.comment.clone());
    SeenChain {
        hook: chain.hook.clone().map_or(SeenHook::None, SeenHook::Known),
        rules: comments.map(|comment| SeenRule { comment: Some(comment), digest: 0 }).collect(),
    }
}

#[test]
fn every_case_comes_out_as_it_is_written() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = names_in(&golden());
    assert!(!cases.is_empty());
    let mut different = Vec::new();
    for case in &cases {
        for (file, is) in Case::read(case).outcome() {
            let path = golden().join(case).join(file);
            let expected = fs::read_to_string(&path).unwrap_or_default();
            if is == expected && path.exists() {
                continue;
            }
            if update {
                fs::write(&path, is).unwrap();
            } else {
                different.push(format!("{case}/{file}: {}", first_difference(&expected, &is)));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}\nif this is right, write it anew with UPDATE_GOLDEN=1 and look at the difference",
        different.join("\n")
    );
}

#[test]
fn a_state_that_is_there_needs_no_plan() {
    for case in names_in(&golden()) {
        let case = Case::read(&case);
        let ruleset = case.ruleset();
        let desired = case.desired(&ruleset);
        let marks = case.settings.ownership.marks();
        let steps =
            plan(&desired, &settled(&desired), None, &<[LoadedDigests; 3]>::default(), marks);
        assert_eq!(steps, []);
    }
}

fn first_difference(expected: &str, is: &str) -> String {
    let (mut left, mut right) = (expected.lines(), is.lines());
    for number in 1.. {
        match (left.next(), right.next()) {
            (None, None) => break,
            (left, right) if left == right => {}
            (left, right) => {
                let [left, right] = [left, right].map(|line| line.unwrap_or("(end)"));
                return format!("line {number}\n  expected {left}\n  is       {right}");
            }
        }
    }
    "differs".to_owned()
}
