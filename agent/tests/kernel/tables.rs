//! Tables, chains, rules, sets and counters.

use std::net::UdpSocket;

use agent::kernel::tables::{Base, Counters, Set, Tables, TablesState};
use agent::kernel_state::Count;

use crate::namespace::{in_namespace, names, nft, nft_json};

pub(crate) const RULES: &str = r#"
table inet egress {
  counter passed { }
  counter dropped { packets 5000000000 bytes 600000000000 }
  quota q { 10 mbytes }
  map pod_vip4 { type ipv4_addr : ipv4_addr; }
  set cluster6 { type ipv6_addr; flags interval; }
  chain idle { }
  chain classify { type filter hook prerouting priority dstnat + 1; policy accept;
    ip saddr set ip saddr map @pod_vip4 ip saddr vmap { 10.0.0.1 : drop, 10.0.0.2 : goto idle } comment "first rule"
    udp dport { 53, 7777 } counter counter name passed
    counter name dropped comment "third: ünïcode"
  }
}
table inet egress-guard {
  chain out { type filter hook postrouting priority srcnat + 50; policy drop; accept; }
}
table inet other {
  counter passed { packets 7 bytes 7 }
  set cluster6 { type ipv4_addr; }
  chain classify { type filter hook prerouting priority 5; policy drop; drop; }
}
table ip egress { chain foreign { drop; }; }
"#;

const LOADED: &str = "
add element inet egress pod_vip4 { 127.0.0.9 : 10.0.0.3 }
";

#[test]
fn a_look_sees_what_nft_loaded_and_only_in_our_tables() {
    in_namespace(|| {
        let mut tables = Tables::open(names()).unwrap();
        let nothing = tables.look().unwrap();
        assert_eq!((nothing.main, nothing.guard), (None, None));
        assert_eq!(tables.counters().unwrap(), Counters::default());
        nft(RULES);

        let TablesState { main, guard, .. } = tables.look().unwrap();
        let (main, guard) = (main.unwrap(), guard.unwrap());
        assert_eq!(main.chains.keys().collect::<Vec<_>>(), ["classify", "idle"]);
        assert!(main.chains["idle"].base.is_none() && main.chains["idle"].rules.is_empty());
        let kind = "filter".to_owned();
        let devices = Vec::new;
        let base =
            Base { kind: kind.clone(), hook: 0, devices: devices(), priority: -99, policy: 1 };
        assert_eq!(main.chains["classify"].base, Some(base));
        let base = Base { kind, hook: 4, devices: devices(), priority: 150, policy: 0 };
        assert_eq!(guard.chains["out"].base, Some(base));
        assert_eq!(guard.chains["out"].rules.len(), 1);

        let rules = &main.chains["classify"].rules;
        let comments: Vec<_> = rules.iter().map(|rule| rule.comment.as_deref()).collect();
        assert_eq!(comments, [Some("first rule"), None, Some("third: ünïcode")]);
        let handles: Vec<_> = nft_json(&["-a", "list", "chain", "inet", "egress", "classify"])
            .iter()
            .filter_map(|object| object["rule"]["handle"].as_u64())
            .collect();
        assert_eq!(rules.iter().map(|rule| rule.handle).collect::<Vec<_>>(), handles);

        let map = Set {
            key_type: 7,
            key_len: 4,
            data_type: 7,
            data_len: 4,
            flags: 8,
            ..main.sets["pod_vip4"]
        };
        let set = Set {
            key_type: 8,
            key_len: 16,
            data_type: 0,
            data_len: 0,
            flags: 4,
            ..main.sets["cluster6"]
        };
        assert_eq!(main.sets, [("cluster6".to_owned(), set), ("pod_vip4".to_owned(), map)].into());
        assert!(guard.sets.is_empty());

        let dropped = Count { packets: 5_000_000_000, bytes: 600_000_000_000 };
        let counters =
            [("dropped".to_owned(), dropped), ("passed".to_owned(), Count::default())].into();
        assert_eq!(main.counters, counters);
        assert_eq!(tables.counters().unwrap(), Counters { main: counters, ..Default::default() });
    });
}

#[test]
fn traffic_changes_counters_and_nothing_else() {
    in_namespace(|| {
        nft(RULES.split("table inet egress-guard").next().unwrap());
        nft(LOADED);
        let mut tables = Tables::open(names()).unwrap();
        let before = tables.look().unwrap();
        let socket = UdpSocket::bind("127.0.0.9:0").unwrap();
        for _ in 0..3 {
            socket.send_to(b"12345678", "127.0.0.1:7777").unwrap();
        }
        let mut after = tables.look().unwrap();
        let counters = &mut after.main.as_mut().unwrap().counters;
        assert_eq!(counters["passed"], Count { packets: 3, bytes: 3 * 36 });
        assert_eq!(counters["dropped"].packets, 5_000_000_003);
        *counters = before.main.as_ref().unwrap().counters.clone();
        assert_eq!(after, before);
    });
}

#[test]
fn what_a_stranger_changes_shows() {
    in_namespace(|| {
        nft(RULES);
        let mut tables = Tables::open(names()).unwrap();
        let before = tables.look().unwrap();
        assert_eq!(tables.look().unwrap(), before);
        assert_eq!(tables.generation().unwrap(), before.generation);

        nft("add rule inet other classify accept");
        let foreign = tables.look().unwrap();
        assert_eq!(foreign.generation, before.generation + 1);
        assert_eq!((&foreign.main, &foreign.guard), (&before.main, &before.guard));

        for change in [
            "add rule inet egress classify accept",
            "insert rule inet egress-guard out udp dport 53 drop",
            "add chain inet egress-guard out { policy accept; }",
            "add table inet egress { flags dormant; }",
            "add set inet egress mapped4 { type ipv4_addr; }",
            "flush chain inet egress classify",
            "delete table inet egress-guard",
        ] {
            let before = tables.look().unwrap();
            nft(change);
            let after = tables.look().unwrap();
            assert_ne!((after.main, after.guard), (before.main, before.guard), "{change}");
        }
    });
}

#[test]
fn a_rule_loaded_again_has_the_same_digest() {
    in_namespace(|| {
        nft(RULES);
        let mut tables = Tables::open(names()).unwrap();
        let digests = |state: TablesState| {
            let rules = state.main.unwrap().chains.remove("classify").unwrap().rules;
            rules.iter().map(|rule| rule.digest).collect::<Vec<_>>()
        };
        let before = tables.look().unwrap();
        let handle = before.main.as_ref().unwrap().handle;
        let first = digests(before);
        nft("delete table inet egress");
        nft(RULES.split("table inet egress-guard").next().unwrap());
        let after = tables.look().unwrap();
        assert_ne!(after.main.as_ref().unwrap().handle, handle);
        assert_eq!(digests(after), first);
        assert!(first[0] != first[1] && first[1] != first[2]);
    });
}
