//! A fresh network namespace for each test, and the tools that look into it.

use std::io::Write;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

use agent::ruleset::TableNames;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Runs the test on a thread of its own in a network namespace of its own, with `lo` up.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic));
}

/// Runs a tool, which must succeed, and returns what it prints.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    feed(program, args, "")
}

/// Loads rules with `nft -f -`.
pub(crate) fn nft(rules: &str) {
    feed("nft", &["-f", "-"], rules);
}

/// What `nft -j` lists: the array under `nftables`.
pub(crate) fn nft_json(args: &[&str]) -> Vec<Value> {
    let text = run("nft", &[&["-j"], args].concat());
    let listed: Value = serde_json::from_str(&text).unwrap();
    listed["nftables"].as_array().unwrap().clone()
}

fn feed(program: &str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the tables in [`SCHEMA`].
pub(crate) fn names() -> TableNames {
    TableNames { main: "egress".to_owned(), guard: "egress-guard".to_owned() }
}

/// The least of both tables that holds pods.
pub(crate) const SCHEMA: &str = "
table inet egress {
  map pod_vip4 { type ipv4_addr : ipv4_addr; }
  map pod_vip6 { type ipv6_addr : ipv6_addr; }
  set known4 { type ipv4_addr; size 16384; }
  set known6 { type ipv6_addr; size 16384; }
  set unsure4 { type ipv4_addr; flags timeout; timeout 3s; size 16; }
  set unsure6 { type ipv6_addr; flags timeout; timeout 3s; size 16; }
}
table inet egress-guard {
  set mapped4 { type ipv4_addr; }
  set mapped6 { type ipv6_addr; }
  set leaving4 { type ipv4_addr; flags timeout; timeout 3s; }
  set leaving6 { type ipv6_addr; flags timeout; timeout 3s; }
}
";
