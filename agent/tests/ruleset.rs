//! What rules say and what is loaded are the same, and nft accepts every change between two states.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "what the tests of this file share says what is missing"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use agent::direct::DirectVip;
use agent::kernel::nft::Nft;
use agent::plan::{IngressChange, TableChange, TablesChange};
use agent::port_use::Destination;
use agent::routing::MarkMask;
use agent::ruleset::{Input, Ruleset, TableNames};
use shared::{Block, Vip};

fn in_new_netns<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("these tests need root: they make network namespaces");
        body()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn nft(args: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn input(vips: &[(&str, u32)]) -> Input {
    let vips: BTreeMap<_, _> =
        vips.iter().map(|(vip, id)| (vip.parse().unwrap(), (*id).try_into().unwrap())).collect();
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect();
    Input {
        mask: MarkMask::default(),
        capacity: 1 << 17,
        direct: BTreeMap::new(),
        reachable: vips.keys().copied().collect(),
        vips,
        uplinks: BTreeSet::from(["eth0".to_owned(), "bond0.12".to_owned()]),
        api_server: Some("10.96.0.1".parse().unwrap()),
        overlays: BTreeSet::from(["flannel.1".to_owned()]),
        pods: nets(&["10.244.0.0/16", "fd00:244::/56"]),
        internal: nets(&[
            "10.96.0.0/12",
            "10.244.0.0/16",
            "127.0.0.0/8",
            "192.168.122.11/32",
            "224.0.0.0/3",
            "fd00:244::/56",
            "fe80::/10",
            "ff00::/8",
            "::1/128",
        ]),
    }
}

fn names() -> TableNames {
    TableNames::of("egress")
}

fn load(change: &TablesChange) {
    block_on(Nft::new("nft", names()).change(change)).unwrap();
}

fn load_ingress(change: &IngressChange) {
    block_on(Nft::new("nft", names()).change_ingress(change)).unwrap();
}

fn anew(ruleset: &Ruleset) -> TablesChange {
    TablesChange {
        main: Some(TableChange::Replace(ruleset.main.clone())),
        guard: Some(TableChange::Replace(ruleset.guard.clone())),
    }
}

#[test]
fn what_rules_say_is_what_is_loaded() {
    for vips in [
        &[][..],
        &[("192.168.122.222", 64)],
        &[
            ("192.168.122.222", 64),
            ("192.168.122.9", 252),
            ("fd00:122::de", 1),
            ("fd00:122::df", 2),
        ],
    ] {
        for direct in [false, true] {
            let direct = if direct { blocks_of(vips) } else { BTreeMap::new() };
            let ruleset = Ruleset::render(&Input { direct, ..input(vips) });
            let text = ruleset.as_nft(&names()).to_string();
            let as_text = in_new_netns(move || {
                uplink();
                nft(&["-f", "-"], &text);
                nft(&["list", "ruleset"], "")
            });
            let as_commands = in_new_netns(move || {
                uplink();
                load(&anew(&ruleset));
                if let Some(ingress) = ruleset.ingress {
                    load_ingress(&IngressChange::Make(TableChange::Replace(ingress)));
                }
                nft(&["list", "ruleset"], "")
            });
            pretty_assertions(&sorted(&as_text), &sorted(&as_commands));
        }
    }
}

/// Some of each VIP are this node's, some another's.
fn blocks_of(vips: &[(&str, u32)]) -> BTreeMap<Vip, DirectVip> {
    let blocks = |numbers: &[u32]| numbers.iter().map(|n| (*n).try_into().unwrap()).collect();
    let of_vip = |(vip, _): &(&str, u32)| {
        let vip: Vip = vip.parse().unwrap();
        let via = if vip.is_ipv4() { "192.168.122.12" } else { "fd00:122::12" };
        let others: BTreeSet<Block> = blocks(&[4, 47]);
        let addr = if vip.is_ipv4() { "203.0.113.9" } else { "fd00:9::9" }.parse().unwrap();
        let full =
            [(6, 443), (17, 53)].map(|(protocol, port)| Destination { vip, protocol, addr, port });
        let direct = DirectVip {
            full: full.into(),
            own: blocks(&[1, 2, 3, 7]),
            open: blocks(&[1, 2, 7]),
            others: others.into_iter().map(|block| (block, via.parse().unwrap())).collect(),
            uplink: Some("eth0".to_owned()),
            hindrance: None,
        };
        (vip, direct)
    };
    vips.iter().map(of_vip).collect()
}

fn uplink() {
    let status = Command::new("ip")
        .args(["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])
        .status();
    assert!(status.expect("ip is installed").success());
}

/// Chains in the order of their names: the kernel lists them in the order of their making.
fn sorted(listing: &str) -> Vec<String> {
    let mut blocks: Vec<String> =
        listing.split("\n\n").map(|block| block.trim_matches(['\n', '}']).to_owned()).collect();
    blocks.sort();
    blocks
}

fn pretty_assertions(left: &[String], right: &[String]) {
    for (l, r) in left.iter().zip(right) {
        assert_eq!(l, r, "\n--- text:\n{l}\n--- loaded:\n{r}");
    }
    assert_eq!(left.len(), right.len());
}

#[test]
fn room_for_more_serves_and_room_for_less_does_not() {
    use agent::ruleset::capacity;
    assert_eq!([0, 100_000, 104_857].map(capacity), [1 << 17; 3]);
    assert_eq!([104_860, 200_000, 1_000_000].map(capacity), [1 << 18, 1 << 18, 1 << 21]);
    let declared = |capacity| {
        let ruleset = Ruleset::render(&Input { capacity, ..input(&[]) });
        ruleset.main.declared["pod_vip4"]
    };
    assert!(declared(1 << 18).serves_as(declared(1 << 17)));
    assert!(declared(0).serves_as(declared(1 << 17)));
    assert!(!declared(1 << 17).serves_as(declared(1 << 18)));
}
