//! The direct path is proven from a node, or is not, in networks of all kinds.

use std::time::{Duration, Instant};

use agent::kernel::proving::Prover;
use agent::metrics::ProofMetrics;
use agent::proof::{BEING_PROVEN, Claim, Claims, Verdict, Way};
use agent::routing::Device;
use shared::Vip;
use tokio::time::timeout;

use crate::lan::{Lan, Room, VIP, VIP6, ip};

const PATIENCE: Duration = Duration::from_secs(20);

/// What is to be proven from the node: by which target, through which neighbour.
#[derive(Clone, Copy)]
struct Asked {
    vip: &'static str,
    target: &'static str,
    next_hop: &'static str,
}

const BY_GATEWAY: Asked = Asked { vip: VIP, target: "192.168.122.1", next_hop: "192.168.122.1" };
const OFF_LINK: Asked = Asked { vip: VIP, target: "203.0.113.64", next_hop: "192.168.122.1" };
const LINK_LOCAL: Asked = Asked { vip: VIP6, target: "fe80::1", next_hop: "fe80::1" };

impl Asked {
    fn vip(self) -> Vip {
        self.vip.parse().unwrap()
    }

    fn claims(self, blocks: &[u32]) -> Claims {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let device = Device { index, name: "eth0".to_owned() };
        let way = Way { device, next_hop: ip(self.next_hop), target: ip(self.target) };
        let open = blocks.iter().map(|block| (*block).try_into().unwrap()).collect();
        [(self.vip(), Claim { open, way: Ok(way) })].into()
    }
}

/// A prover that goes on in its room.
struct Proving {
    prover: Prover,
    vip: Vip,
    started: Instant,
}

impl Proving {
    fn start(room: &Room, way: Asked, blocks: &'static [u32]) -> Self {
        room.run(move || {
            let prover = Prover::start(ProofMetrics::default()).unwrap();
            let started = Instant::now();
            prover.claim(way.claims(blocks));
            Self { prover, vip: way.vip(), started }
        })
    }

    /// Waits for a verdict; how long it took from the start.
    fn until(&mut self, wanted: impl Fn(&Verdict) -> bool) -> Duration {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut last = Verdict::default();
        let wait = async {
            loop {
                last = self.prover.verdicts().remove(&self.vip).unwrap_or_default();
                if wanted(&last) {
                    return;
                }
                self.prover.changed().await;
            }
        };
        let outcome = runtime.block_on(async { timeout(PATIENCE, wait).await });
        assert!(outcome.is_ok(), "{last:?}");
        self.started.elapsed()
    }

    fn until_proven(&mut self, blocks: &[u8]) -> Duration {
        self.until(|verdict| verdict.proven.iter().map(|block| block.number()).eq(blocks.to_vec()))
    }

    fn until_told(&mut self) -> String {
        let told = |verdict: &Verdict| ![BEING_PROVEN, ""].contains(&verdict.message.as_str());
        self.until(told);
        let verdict = self.prover.verdicts().remove(&self.vip).unwrap();
        assert!(verdict.proven.is_empty(), "{verdict:?}");
        verdict.message
    }
}

#[test]
fn a_block_is_proven_once_the_holder_passes_it_on() {
    for way in [BY_GATEWAY, OFF_LINK, LINK_LOCAL] {
        let lan = Lan::new();
        lan.pass_on(&[3]);
        let mut proving = Proving::start(&lan.node, way, &[3, 5]);
        let took = proving.until_proven(&[3]);
        println!("{} by {}: proven after {took:?}", way.vip, way.target);
        proving.until(|verdict| verdict.message.starts_with("no answer from"));
        lan.pass_on(&[3, 5]);
        proving.until_proven(&[3, 5]);
        proving.until(|verdict| verdict.message.is_empty());
    }
}

#[test]
fn the_holder_proves_its_own_blocks() {
    for way in [BY_GATEWAY, LINK_LOCAL] {
        let lan = Lan::new();
        // What the agent there does with packets for no connection of its own.
        lan.holder.sh(
            "nft 'table inet t { chain in { type filter hook prerouting priority mangle; \
             icmp type echo-reply ct state new,invalid,untracked drop; \
             icmpv6 type echo-reply ct state new,invalid,untracked drop; }; }'",
        );
        Proving::start(&lan.holder, way, &[3]).until_proven(&[3]);
    }
}

#[test]
fn a_network_that_drops_foreign_sources_proves_nothing() {
    for way in [BY_GATEWAY, LINK_LOCAL] {
        let lan = Lan::new();
        lan.pass_on(&[3]);
        lan.bridge.sh(
            "nft 'table bridge guard { chain in { type filter hook forward priority 0; \
             iifname node ether type ip ip saddr != 192.168.122.11 drop; \
             iifname node ether type ip6 icmpv6 type echo-request ip6 saddr != fd00:122::11 drop; }; }'",
        );
        let mut proving = Proving::start(&lan.node, way, &[3]);
        let told = proving.until_told();
        assert!(told.starts_with(&format!("no answer from {} by eth0 for block 3", way.target)));
        lan.bridge.sh("nft delete table bridge guard");
        proving.until_proven(&[3]);
    }
}

#[test]
fn a_gateway_that_answers_no_pings_proves_nothing() {
    let lan = Lan::new();
    lan.pass_on(&[3]);
    lan.gateway.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1");
    let mut proving = Proving::start(&lan.node, BY_GATEWAY, &[3]);
    let told = proving.until_told();
    assert!(told.ends_with("192.168.122.1 answers no pings (name another with --prove-with)"));
    lan.gateway.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=0");
    proving.until_proven(&[3]);
}

#[test]
fn a_gateway_that_is_not_there_is_told_of() {
    let lan = Lan::new();
    lan.pass_on(&[3]);
    lan.gateway.sh("ip link set eth0 down");
    let mut proving = Proving::start(&lan.node, BY_GATEWAY, &[3]);
    let told = proving.until_told();
    assert_eq!(told, "192.168.122.1 does not answer on eth0 (ARP, neighbour discovery)");
    lan.gateway.sh("ip link set eth0 up");
    proving.until_proven(&[3]);
}

#[test]
fn what_the_node_knows_of_its_neighbours_stays() {
    let lan = Lan::new();
    lan.pass_on(&[3]);
    let line = lan.gateway.sh("ip -br link show eth0");
    let mac = line.split_whitespace().nth(2).unwrap();
    lan.node.sh(&format!("ip neigh replace 192.168.122.1 lladdr {mac} nud permanent dev eth0"));
    Proving::start(&lan.node, BY_GATEWAY, &[3]).until_proven(&[3]);
    let entry = lan.node.sh("ip neigh show 192.168.122.1 dev eth0");
    assert_eq!(entry.trim(), format!("192.168.122.1 lladdr {mac} PERMANENT"));
}

#[test]
fn nothing_is_listened_to_between_proofs() {
    let lan = Lan::new();
    lan.pass_on(&[3]);
    let listeners = || lan.node.sh("tail -n +2 /proc/thread-self/net/packet").lines().count();
    let mut proving = Proving::start(&lan.node, BY_GATEWAY, &[3]);
    proving.until_proven(&[3]);
    let deadline = Instant::now() + PATIENCE;
    // The sender's socket stays, which receives nothing.
    while listeners() > 1 {
        assert!(Instant::now() < deadline, "{}", lan.node.sh("cat /proc/thread-self/net/packet"));
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(proving);
    while listeners() > 0 {
        assert!(Instant::now() < deadline, "the thread has not ended");
        std::thread::sleep(Duration::from_millis(50));
    }
}
