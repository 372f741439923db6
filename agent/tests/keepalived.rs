//! From `ConfigMaps` to keepalived's configuration. A case is a folder below `keepalived/`; adding one needs no code:
//! - `<object>/<key>`: what the launcher reads;
//! - `keepalived.conf`, `places.txt`, `faults.txt`: what comes of it on node `n1`, written anew by
//!   `UPDATE_GOLDEN=1 cargo test -p agent --test keepalived`.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use agent::keepalived::config::{Adverts, Instance, Objects, Settings, Wanted};
use agent::keepalived::render::{render, vips_in};
use agent::node_facts::{Link, LocalAddress, NodeFacts, OnLink};
use agent::routing::Device;
use shared::Vip;
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
    Settings {
        node: node.to_owned(),
        interface: None,
        advert_interval,
        may_raise_priority: false,
        adverts: Adverts::Multicast,
    }
}

fn wanted(objects: &Objects, settings: &Settings) -> Wanted {
    objects.wanted(&facts(), settings, &BTreeMap::new())
}

fn text(wanted: &Wanted, settings: &Settings) -> Option<String> {
    render(
        &wanted.instances,
        wanted.peers.as_ref(),
        &facts(),
        settings,
        Path::new("/run/x/priorities"),
    )
}

#[test]
fn every_case_is_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let cases = names_in(&root, true);
    assert!(cases.len() >= 4);
    for name in cases {
        let case = root.join(&name);
        let settings = settings("n1");
        let wanted = wanted(&objects(&case), &settings);
        let text = text(&wanted, &settings).unwrap_or_default();
        assert!(vips_in(&text).iter().eq(wanted.instances.keys()));
        let faults = wanted.faults.into_iter().map(|fault| fault + "\n").collect();
        let place = |(vip, instance): (&Vip, &Instance)| {
            let [waits, holds] = [false, true].map(|holds| instance.place.adds(holds, true));
            format!("{vip}: adds {waits}, {holds} while it is here, if the agent is ready\n")
        };
        let places: String = wanted.instances.iter().map(place).collect();
        for (file, content) in
            [("keepalived.conf", text), ("places.txt", places), ("faults.txt", faults)]
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
    let before = wanted(&objects, &settings("n1"));
    for object in ["vip-configmap", "vip-routeid-mappings", "vip-candidates"] {
        objects.apply(Change { object: object.to_owned(), content: Content::Missing });
    }
    assert_eq!(wanted(&objects, &settings("n1")), before);
}

#[test]
fn a_forced_interface_is_taken_for_every_vip() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let settings = Settings { interface: Some("eth1".to_owned()), ..settings("n1") };
    let text = text(&wanted(&objects(&root.join("left_out")), &settings), &settings).unwrap();
    let lines = text.lines().filter(|line| line.trim_start().starts_with("interface "));
    assert_eq!(lines.collect::<Vec<_>>(), ["    interface eth1"; 2]);
}

#[test]
fn a_vip_keeps_its_interface_while_that_is_gone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let objects = objects(&root.join("candidates_decide"));
    let before = wanted(&objects, &settings("n1"));
    let after = objects.wanted(&NodeFacts::default(), &settings("n1"), &before.instances);
    assert_eq!(after.instances, before.instances);
    assert_eq!(after.faults.len(), before.instances.len());
}

#[test]
fn a_node_that_is_not_named_as_a_gateway_holds_nothing_where_adverts_go_to_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let mut objects = objects(&root.join("candidates_decide"));
    let settings = Settings { adverts: Adverts::ToGateways, ..settings("n1") };
    let mut facts = facts();
    let addr = "192.168.122.11".parse().unwrap();
    facts.addresses.insert(LocalAddress { addr, device: 2, usable: true });
    let mut wanted = |gateways: &str| {
        let data = [("gateway-addresses".to_owned(), gateways.to_owned())].into();
        let object = "egress-networks".to_owned();
        objects.apply(Change { object, content: Content::Whole(data) });
        objects.wanted(&facts, &settings, &BTreeMap::new())
    };
    let others = wanted("192.168.122.12,192.168.122.13");
    assert!(others.instances.is_empty());
    let fault = "no VIP can be held here: adverts are to be sent to each gateway by itself, and \
                 egress-networks does not name this node among gateway-addresses";
    assert!(others.faults.iter().any(|told| told == fault), "{:?}", others.faults);
    let named = wanted("192.168.122.11,192.168.122.12");
    assert!(!named.instances.is_empty() && named.faults.iter().all(|told| told != fault));
    let peers = named.peers.as_ref();
    let text = render(&named.instances, peers, &facts, &settings, Path::new("/run/x")).unwrap();
    let of_v4 =
        "    unicast_src_ip 192.168.122.11\n    unicast_peer {\n        192.168.122.12\n    }\n";
    assert!(text.contains(of_v4), "{text}");
}

#[test]
fn adverts_go_to_the_other_nodes_of_the_family_where_these_are_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived");
    let peers = ["192.168.122.11", "192.168.122.12", "192.168.122.13", "fd00:122::12"];
    let settings = Settings {
        adverts: Adverts::To(peers.iter().map(|peer| peer.parse().unwrap()).collect()),
        may_raise_priority: true,
        ..settings("n1")
    };
    let mut facts = facts();
    let addr = "192.168.122.11".parse().unwrap();
    facts.addresses.insert(LocalAddress { addr, device: 2, usable: true });
    let wanted = wanted(&objects(&root.join("candidates_decide")), &settings);
    let peers = wanted.peers.as_ref();
    let text = render(&wanted.instances, peers, &facts, &settings, Path::new("/run/x")).unwrap();
    let lists: Vec<Vec<&str>> = text
        .split("unicast_peer {")
        .skip(1)
        .map(|rest| rest.split('}').next().unwrap().split_whitespace().collect())
        .collect();
    let v4 = vec!["192.168.122.12", "192.168.122.13"];
    assert_eq!(lists.len(), wanted.instances.len());
    for (list, vip) in lists.iter().zip(wanted.instances.keys()) {
        assert_eq!(*list, if vip.is_ipv4() { v4.clone() } else { vec!["fd00:122::12"] });
    }
    assert!(text.contains("    vrrp_priority -20\n"), "{text}");
}
