//! How long things take. Prints; run by name, in release, with `--ignored --nocapture`.

use std::time::{Duration, Instant};

use agent::kernel::elements::Elements;
use agent::pod_tables::PodChanges;

use crate::elements::{additions, many};
use crate::namespace::{SCHEMA, in_namespace, names, nft};

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let (start, worked) = (Instant::now(), processor_time());
    let result = act();
    println!("{what}: {:?}, of it {:?} at work", start.elapsed(), processor_time() - worked);
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
        for (families, both) in [("v4", false), ("v4 and v6", true)] {
            nft(&SCHEMA.replace("_addr; }", &std::env::var("SZ").unwrap_or("_addr; }".into())));
            let mut elements = Elements::open(names()).unwrap();
            let all = additions(&many(100_000, both));
            let map = PodChanges { map: all.map.clone(), ..PodChanges::default() };
            let one = |at: usize| PodChanges {
                unmap: vec![all.map[at].0],
                map: vec![all.map[at]],
                ..PodChanges::default()
            };
            timed(&format!("{families}: add 100k, map"), || elements.apply(&map, &[]).unwrap());
            nft("flush map inet egress pod_vip4; flush map inet egress pod_vip6");
            timed(&format!("{families}: add 100k, map and set"), || {
                elements.apply(&all, &[]).unwrap();
            });
            elements.apply(&one(5), &[]).unwrap();
            timed("change 1", || elements.apply(&one(7), &[]).unwrap());
            timed("change 1", || elements.apply(&one(9), &[]).unwrap());
            elements.dump().unwrap();
            timed("dump", || elements.dump().unwrap());
            let guard = all.guard.clone();
            let unmap = all.map.iter().map(|&(pod, _)| pod).collect();
            let gone = PodChanges { unmap, unguard: guard, ..PodChanges::default() };
            timed("remove all", || elements.apply(&gone, &[]).unwrap());
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
        timed("add 1M, map and set", || elements.apply(&all, &[]).unwrap());
        timed("dump", || elements.dump().unwrap());
    });
}
