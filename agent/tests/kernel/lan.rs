//! A LAN of network namespaces: each a thread that stays inside, all of it gone with the test.
//!
//! ```text
//!  node .11        holder .12, the VIP .222     gateway .1, 203.0.113.64 behind it
//!    └──────────────────┴── bridge br0 ──────────────┘
//! ```

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::namespace::run;

pub(crate) const VIP: &str = "192.168.122.222";
pub(crate) const VIP6: &str = "fd00:122::222";

type Work = Box<dyn FnOnce() + Send>;

/// A namespace with a thread that does what it is given.
pub(crate) struct Room {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Room {
    pub(crate) fn new() -> Self {
        let (work, inbox) = channel::<Work>();
        let (told, path) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            run("ip", &["link", "set", "lo", "up"]);
            told.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid())).unwrap();
            for work in inbox {
                work();
            }
        });
        Self { work: Some(work), thread: Some(thread), path: path.recv().unwrap() }
    }

    /// Does it inside, and waits for what comes of it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, outcome) = channel();
        let work = Box::new(move || told.send(work()).unwrap());
        self.work.as_ref().unwrap().send(work).unwrap();
        outcome.recv().expect("what was to be done inside has failed")
    }

    /// Runs a command line of `sh` inside.
    pub(crate) fn sh(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move || run("sh", &["-ec", &line]))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.work.take();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

pub(crate) struct Lan {
    pub(crate) bridge: Room,
    pub(crate) node: Room,
    pub(crate) holder: Room,
    pub(crate) gateway: Room,
}

impl Lan {
    pub(crate) fn new() -> Self {
        let bridge = Room::new();
        bridge.sh("ip link add br0 type bridge; ip link set br0 up");
        let member = |name: &str, number: u32| {
            let room = Room::new();
            bridge.sh(&format!(
                "ip link add {name} type veth peer name eth0 netns {}; \
                 ip link set {name} master br0 up",
                room.path
            ));
            room.sh(&format!(
                "sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 up; \
                 ip addr add 192.168.122.{number}/24 dev eth0; \
                 ip addr add fd00:122::{number}/64 dev eth0 nodad"
            ));
            room
        };
        let lan = Self {
            node: member("node", 11),
            holder: member("holder", 12),
            gateway: member("gateway", 1),
            bridge,
        };
        lan.holder
            .sh(&format!("ip addr add {VIP}/32 dev eth0; ip addr add {VIP6}/128 dev eth0 nodad"));
        lan.gateway
            .sh("ip addr add 203.0.113.64/32 dev lo; ip addr add fe80::1/64 dev eth0 nodad; \
             ip addr add fd00:203::64/128 dev lo nodad");
        lan
    }

    /// Has the holder pass these blocks on to the node, and no others.
    pub(crate) fn pass_on(&self, blocks: &[u32]) {
        let to = |chain: &str| -> String {
            let pairs: Vec<_> =
                blocks.iter().map(|block| format!("{} : goto {chain}", block * 1024)).collect();
            pairs.join(", ")
        };
        let (v4, v6) = (to("n4"), to("n6"));
        let rules = if blocks.is_empty() {
            String::new()
        } else {
            format!(
                "ip daddr {VIP} icmp type echo-reply icmp id & 0xfc00 vmap {{ {v4} }}
                 ip6 daddr {VIP6} icmpv6 type echo-reply icmpv6 id & 0xfc00 vmap {{ {v6} }}"
            )
        };
        let table = format!(
            "add table netdev egress
             delete table netdev egress
             table netdev egress {{
               chain n4 {{ fwd ip to 192.168.122.11 device \"eth0\"; }}
               chain n6 {{ fwd ip6 to fd00:122::11 device \"eth0\"; }}
               chain in {{ type filter hook ingress device \"eth0\" priority 0;
                 {rules}
               }}
             }}"
        );
        self.holder.run(move || crate::namespace::nft(&table));
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
