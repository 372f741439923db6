//! How long things take. Prints; run by name, in release, with `--ignored --nocapture`.

#![expect(clippy::print_stdout, reason = "figures are for reading")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use agent::kernel::conntrack::Conntrack;
use agent::kernel::elements::Elements;
use agent::kernel::tables::Tables;
use agent::pod_tables::PodChanges;

use crate::conntrack::TRACKED;
use crate::elements::{additions, many};
use crate::namespace::{SCHEMA, in_namespace, names, nft, run};
use crate::tables::RULES;

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let (start, worked) = (Instant::now(), processor_time());
    let result = act();
    println!(
        "{what}: {:?}, of it {:?} at work",
        start.elapsed(),
        processor_time().saturating_sub(worked)
    );
    result
}

/// What this thread has had of a processor, in the kernel too.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "measures"]
fn elements_at_a_hundred_thousand() {
    in_namespace(|| {
        let sized = SCHEMA.replace("_addr; }", "_addr; size 131072; }");
        for (families, both, schema) in
            [("v4", false, SCHEMA), ("v4 and v6", true, SCHEMA), ("v4, size given", false, &sized)]
        {
            nft(schema);
            let mut elements = Elements::open(names()).unwrap();
            let all = additions(&many(100_000, both));
            let map = PodChanges { map: all.map.clone(), ..PodChanges::default() };
            let one = |at: usize| PodChanges {
                unmap: vec![all.map[at].0],
                map: vec![all.map[at]],
                ..PodChanges::default()
            };
            timed(&format!("{families}: add 100k, map"), || elements.apply(&map).unwrap());
            nft("flush map inet egress pod_vip4; flush map inet egress pod_vip6");
            timed(&format!("{families}: add 100k, map and set"), || {
                elements.apply(&all).unwrap();
            });
            elements.apply(&one(5)).unwrap();
            timed("change 1", || elements.apply(&one(7)).unwrap());
            timed("change 1", || elements.apply(&one(9)).unwrap());
            elements.dump().unwrap();
            timed("dump", || elements.dump().unwrap());
            let guard = all.guard.clone();
            let unmap = all.map.iter().map(|&(pod, _)| pod).collect();
            let gone = PodChanges { unmap, unguard: guard, ..PodChanges::default() };
            timed("remove all", || elements.apply(&gone).unwrap());
            nft("delete table inet egress; delete table inet egress-guard");
        }
    });
}

#[test]
#[ignore = "measures"]
fn elements_at_a_million() {
    in_namespace(|| {
        nft(SCHEMA);
        let mut elements = Elements::open(names()).unwrap();
        let all = additions(&many(1_000_000, true));
        timed("add 1M, map and set", || elements.apply(&all).unwrap());
        // No dump: the kernel's cost grows with the square, more than a minute here.
    });
}

#[test]
#[ignore = "measures"]
fn a_look_at_the_tables() {
    in_namespace(|| {
        nft(RULES);
        let mut tables = Tables::open(names()).unwrap();
        for _ in 0..3 {
            timed("look", || tables.look().unwrap());
            timed("counters", || tables.counters().unwrap());
            timed("generation", || tables.generation().unwrap());
        }
    });
}

#[test]
#[ignore = "measures"]
fn ten_thousand_connections() {
    in_namespace(|| {
        nft(TRACKED);
        run("ip", &["address", "add", "fd00::2/128", "dev", "lo", "nodad"]);
        let fill = |port: Option<u16>| {
            for source in 0..10_000_u32 {
                let host = source % 250 + 2;
                let socket = UdpSocket::bind(format!("127.0.0.{host}:0")).unwrap();
                let to = port.unwrap_or_else(|| 20_000 + u16::try_from(source).unwrap());
                socket.send_to(b"x", ("127.0.0.1", to)).unwrap();
            }
        };
        let mut conntrack = Conntrack::open().unwrap();
        fill(None);
        fill(Some(1001));
        println!("{} connections", run("conntrack", &["-C"]).trim());
        timed("flush_mark of 10k", || conntrack.flush_mark(0x40, 0x10ff).unwrap());
        println!("{} connections", run("conntrack", &["-C"]).trim());
        timed("flush_mark of none", || conntrack.flush_mark(0x40, 0x10ff).unwrap());
        let mut count = 0;
        timed("read all", || conntrack.entries(None, |_| count += 1).unwrap());
        let forget = |conntrack: &mut Conntrack, hosts: std::ops::Range<u8>| {
            let pods = hosts.map(|host| [127, 0, 0, host].into()).collect();
            timed("forget", || println!("{} forgotten", conntrack.forget(&pods).unwrap()));
        };
        forget(&mut conntrack, 2..3);
        forget(&mut conntrack, 3..15);
        timed("delete the rest", || conntrack.delete_where(|_| true).unwrap());
    });
}
