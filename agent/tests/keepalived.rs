//! From `ConfigMaps` to keepalived's configuration. A case is a folder below `keepalived/`; adding one needs no code:
//! - `<object>/<key>`: what the launcher reads;
//! - `keepalived.conf`, `faults.txt`: what comes of it on node `n1`, written anew by
//!   `UPDATE_GOLDEN=1 cargo test -p agent --test keepalived`.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use agent::keepalived::config::{Objects, Rendered, Settings};
use agent::node_facts::{Link, NodeFacts, OnLink};
use agent::routing::Device;
use shared::mappings::{Change, Content};

/// eth0 and eth1, each with a network of its own.
fn facts() -> NodeFacts {
    let mut facts = NodeFacts::default();
    for (index, name) in [(2, "eth0"), (3, "eth1")] {
        let device = Device { index, name: name.to_owned() };
        facts.links.insert(index, Link { device, up: true, loopback: false });
    }
    for (network, device) in [("192.168.122.0/24", 2), ("fd00:122::/64", 2), ("198.51.100.0/24", 3)]
    {
        facts.on_link.insert(OnLink { network: network.parse().unwrap(), device, metric: 0 });
    }
    facts
}

/// Names of folders, or of files, in a folder.
fn names_in(folder: &Path, folders: bool) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| entry.path().is_dir() == folders);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn objects(case: &Path) -> Objects {
    let mut objects = Objects::default();
    for object in names_in(case, true) {
        let folder = case.join(&object);
        let keys = names_in(&folder, false).into_iter();
        let data = keys.map(|key| (key.clone(), fs::read_to_string(folder.join(key)).unwrap()));
        objects.apply(Change { object, content: Content::Whole(data.collect()) });
    }
    objects
}

fn settings(node: &str) -> Settings {
    let advert_interval = Duration::from_millis(200);
    Settings { node: node.to_owned(), interface: None, advert_interval }
}

#[test]
fn every_case_is_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let cases = names_in(&root, true);
    assert!(cases.len() >= 4);
    for name in cases {
        let case = root.join(&name);
        let Rendered { text, faults } = objects(&case).render(&facts(), &settings("n1"));
        let faults: String = faults.into_iter().map(|fault| fault + "\n").collect();
        for (file, content) in
            [("keepalived.conf", text.unwrap_or_default()), ("faults.txt", faults)]
        {
            let path = case.join(file);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &content).unwrap();
            }
            assert_eq!(content, fs::read_to_string(&path).unwrap(), "{name}/{file}");
        }
    }
}

#[test]
fn what_is_missing_keeps_its_last_content() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let mut objects = objects(&root.join("candidates_decide"));
    let before = objects.render(&facts(), &settings("n1"));
    for object in ["vip-configmap", "vip-routeid-mappings", "vip-candidates"] {
        objects.apply(Change { object: object.to_owned(), content: Content::Missing });
    }
    assert_eq!(objects.render(&facts(), &settings("n1")), before);
}

#[test]
fn a_forced_interface_is_taken_for_every_vip() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let settings = Settings { interface: Some("eth1".to_owned()), ..settings("n1") };
    let text = objects(&root.join("left_out")).render(&facts(), &settings).text.unwrap();
    let lines = text.lines().filter(|line| line.trim_start().starts_with("interface "));
    assert_eq!(lines.collect::<Vec<_>>(), ["    interface eth1"; 2]);
}
