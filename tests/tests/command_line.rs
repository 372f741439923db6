//! The agent's command line: what is wrong is said in one sentence, with the remedy and an exit
//! code a script can go by.

use std::fs;
use std::io::Read;
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tests::{Agent, Family, HEALTH_PORT, Host, Lab, MappingsDir, eventually, wait_until};

const SOON: Duration = Duration::from_secs(5);

const WRONG_FLAG: i32 = 2;
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const NO_PERMISSION: i32 = 77;
const CONFIGURATION: i32 = 78;

/// How a program ended, and what it wrote.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the agent on a node to its end, behind other words of a command line (`setpriv` and such).
fn ended(node: &Host, before: &[&str], arguments: &[&str]) -> Result<Ended> {
    let program = Agent::program()?;
    let words = [before, &[program.to_str().context("an odd path")?], arguments].concat();
    let mut child = node.spawn(
        Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let mut status = None;
    if !wait_until(SOON, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    }) {
        child.kill()?;
        status = Some(child.wait()?);
    }
    let mut ended =
        Ended { code: status.and_then(|s| s.code()), out: String::new(), err: String::new() };
    child.stdout.take().context("no pipe")?.read_to_string(&mut ended.out)?;
    child.stderr.take().context("no pipe")?.read_to_string(&mut ended.err)?;
    assert!(!ended.err.contains("panicked") && !ended.err.contains("backtrace"), "{ended:?}");
    Ok(ended)
}

/// It ends with that code, and says on one line of standard error, and nowhere else, all of `facts`.
#[track_caller]
fn assert_refused(ended: &Ended, code: i32, facts: &[&str]) {
    assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{ended:?}");
    let first = ended.err.lines().next().unwrap_or_default();
    for fact in facts {
        assert!(first.contains(fact), "{fact:?} is not in {first:?}");
    }
    // clap adds where to find help.
    assert!(code == WRONG_FLAG || ended.err.lines().count() == 1, "{}", ended.err);
}

fn small_lab() -> Result<Lab> {
    Lab::builder().nodes(1).pods_per_node(1).build()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("an odd path")
}

#[test]
fn help_names_every_flag_and_what_it_is_for() -> Result<()> {
    let lab = small_lab()?;
    let help = ended(lab.node(1), &[], &["--help"])?;
    assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
    let flags = [
        "dump-rules",
        "cleanup",
        "mappings-dir",
        "namespace",
        "daemon-set",
        "interface",
        "node-name",
        "update-interval",
        "listen",
        "output",
        "nft-table",
        "nft",
        "mark-mask",
        "rule-base",
        "table-base",
        "route-protocol",
        "assume-direct",
        "log-format",
        "version",
    ];
    for flag in flags {
        assert!(help.out.contains(&format!("--{flag}")), "--{flag} is not in {}", help.out);
    }
    assert!(help.out.lines().all(|line| line.len() <= 110), "{}", help.out);
    assert_eq!(ended(lab.node(1), &[], &["--version"])?.out.split(' ').next(), Some("agent"));
    Ok(())
}

#[test]
fn wrong_flags_are_named_with_what_would_be_right() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let directory = text(mappings.path())?;
    let cases: [(&[&str], i32, &[&str]); 25] = [
        (&[], USAGE, &["--mappings-dir", "--help"]),
        (&["--bogus"], WRONG_FLAG, &["--bogus"]),
        (&["stray"], WRONG_FLAG, &["stray"]),
        (&["--dump-rules", "--cleanup"], WRONG_FLAG, &["--dump-rules", "--cleanup"]),
        (&["--dump-rules", "--output", "yaml"], WRONG_FLAG, &["yaml"]),
        (&["--output", "json"], WRONG_FLAG, &["required"]),
        (&["--mark-mask", "0xff"], WRONG_FLAG, &["--mark-mask", "0xff", "ten bits", "0x000030ff"]),
        (&["--mark-mask", "-1"], WRONG_FLAG, &["--mark-mask", "ten bits"]),
        (&["--mark-mask", ""], WRONG_FLAG, &["--mark-mask"]),
        (&["--rule-base", "40000"], USAGE, &["--rule-base", "40000", "1 to 32512"]),
        (&["--rule-base", "32513"], USAGE, &["--rule-base", "1 to 32512"]),
        (&["--rule-base", "0"], USAGE, &["--rule-base", "1 to 32512"]),
        (&["--rule-base", "-1"], WRONG_FLAG, &["--rule-base", "whole number from 0"]),
        (&["--rule-base", "abc"], WRONG_FLAG, &["--rule-base", "whole number from 0"]),
        (&["--table-base", "5"], USAGE, &["--table-base", "255 to 4294967042"]),
        (&["--table-base", "4294967295"], USAGE, &["--table-base", "255 to 4294967042"]),
        (&["--table-base", "99999999999"], WRONG_FLAG, &["--table-base", "4294967295"]),
        (&["--route-protocol", "4"], USAGE, &["--route-protocol", "69"]),
        (&["--route-protocol", "256"], WRONG_FLAG, &["--route-protocol", "0 to 255"]),
        (&["--update-interval", "0"], WRONG_FLAG, &["--update-interval", "1 to 3600"]),
        (&["--update-interval", "-5"], WRONG_FLAG, &["--update-interval", "1 to 3600"]),
        (&["--nft-table", "a b"], WRONG_FLAG, &["--nft-table", "letter"]),
        (&["--nft-table", "x;flush ruleset"], WRONG_FLAG, &["--nft-table", "letter"]),
        (&["--listen", "9797"], WRONG_FLAG, &["--listen", "[::]:9797"]),
        (&["--log-format", "xml"], WRONG_FLAG, &["--log-format", "text or json"]),
    ];
    for (arguments, code, facts) in cases {
        let with_directory = [&["--mappings-dir", directory], arguments].concat();
        let arguments = if arguments.is_empty() { arguments } else { &with_directory };
        assert_refused(&ended(lab.node(1), &[], arguments)?, code, facts);
    }
    let filter = ["env", "EGRESS_LOG=a=b=c"];
    let refused = ended(lab.node(1), &filter, &["--mappings-dir", directory])?;
    assert_refused(&refused, USAGE, &["EGRESS_LOG", "a=b=c"]);
    Ok(())
}

#[test]
fn what_does_not_fit_the_node_is_named() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let file = mappings.path().join("egress-networks/excluded");
    for (directory, facts) in [
        ("/nonexistent/directory", "does not exist"),
        (text(&file)?, "not a directory"),
        ("/proc/self/mem", "not a directory"),
    ] {
        let refused = ended(lab.node(1), &[], &["--mappings-dir", directory])?;
        assert_refused(&refused, CONFIGURATION, &[directory, facts, "--mappings-dir"]);
    }

    let private = tempfile::tempdir()?;
    fs::set_permissions(private.path(), fs::Permissions::from_mode(0o000))?;
    let weak = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
        "--inh-caps",
        "-dac_override,-dac_read_search",
    ];
    let refused = ended(lab.node(1), &weak, &["--mappings-dir", text(private.path())?])?;
    assert_refused(&refused, CONFIGURATION, &[text(private.path())?, "permission"]);

    let arguments = ["--mappings-dir", text(mappings.path())?, "--interface", "nope0"];
    let refused = ended(lab.node(1), &[], &arguments)?;
    assert_refused(&refused, CONFIGURATION, &["--interface", "nope0"]);
    Ok(())
}

#[test]
fn a_missing_or_strange_nft_is_named() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let run = ["--mappings-dir", text(mappings.path())?];
    for action in [&run[..], &["--cleanup"]] {
        for nft in ["/nonexistent", "/etc/passwd", "/bin/false", "/bin/true"] {
            let arguments = [action, &["--nft", nft]].concat();
            let refused = ended(lab.node(1), &[], &arguments)?;
            assert_refused(&refused, UNAVAILABLE, &[nft, "install nftables", "--nft"]);
        }
        for path in ["PATH=/nowhere", "PATH="] {
            let refused = ended(lab.node(1), &["/usr/bin/env", path], action)?;
            assert_refused(&refused, UNAVAILABLE, &["cannot run nft", "install nftables"]);
        }
    }
    let dump = ended(lab.node(1), &[], &["--dump-rules", "--nft", "/nonexistent"])?;
    assert_eq!(dump.code, Some(0), "the kernel is asked, not nft: {dump:?}");
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let run = ["--mappings-dir", text(mappings.path())?];
    let weaker: [&[&str]; 2] = [
        &["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"],
        &["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"],
    ];
    for weak in weaker {
        for action in [&run[..], &["--dump-rules"], &["--cleanup"]] {
            let refused = ended(lab.node(1), weak, action)?;
            assert_refused(&refused, NO_PERMISSION, &["CAP_NET_ADMIN", "NET_ADMIN to the cap"]);
        }
    }
    Ok(())
}

#[test]
fn a_taken_port_is_named_and_leaves_no_trace() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let node = lab.node(1);
    let _taken = node.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, HEALTH_PORT)))??;
    let refused = ended(node, &[], &["--mappings-dir", text(mappings.path())?])?;
    assert_refused(&refused, UNAVAILABLE, &["[::]:9797", "in use", "--listen"]);
    assert_eq!(node.sh("nft list tables inet")?, "");
    let elsewhere = ["--mappings-dir", text(mappings.path())?, "--listen", "203.0.113.77:1"];
    let refused = ended(node, &[], &elsewhere)?;
    assert_refused(&refused, UNAVAILABLE, &["203.0.113.77:1", "--listen"]);
    Ok(())
}

/// Everything of ours on a node, as other programs show it, but for counters.
fn rules_of(node: &Host) -> Result<String> {
    let shown = [
        "nft -s list table inet egress",
        "nft -s list table inet egress-guard",
        "ip rule",
        "ip route show table all proto 69",
    ];
    shown.iter().map(|line| node.sh(line)).collect()
}

#[test]
fn signals_end_it_with_success_and_the_rules_stay() -> Result<()> {
    let lab = small_lab()?;
    let mut mappings = MappingsDir::of(&lab)?;
    let vip = [192, 168, 122, 222].into();
    mappings.set_vip(vip, 64)?;
    mappings.map(lab.pod(1, 1).ip(Family::V4), vip)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut agent = Agent::start(lab.node(1), mappings.path(), &[])?;
        agent.wait_ready()?;
        let before = rules_of(lab.node(1))?;
        assert!(before.contains("10064"), "{before}");
        agent.kill(signal)?;
        let status = agent.wait()?;
        assert!(status.success(), "{signal}: {status}");
        assert_eq!(rules_of(lab.node(1))?, before);
        assert!(agent.log().contains("the rules stay"));
    }
    Ok(())
}

/// A signal right after the start, before anything is set up, must not be the kernel's default end.
#[test]
fn an_agent_that_waits_for_mappings_ends_as_well() -> Result<()> {
    let lab = small_lab()?;
    let empty = tempfile::tempdir()?;
    let mut agent = Agent::start(lab.node(1), empty.path(), &[])?;
    eventually(SOON, || agent.http("/readyz").is_ok_and(|(status, _)| status == 503));
    agent.stop()
}

#[test]
fn a_reader_of_the_dump_may_leave_early() -> Result<()> {
    let lab = small_lab()?;
    let program = Agent::program()?;
    let line = format!(
        "set -o pipefail; {0} --dump-rules | head -1; {0} --dump-rules | true; {0} --dump-rules >&-",
        text(&program)?
    );
    let out = lab.node(1).run(&["bash", "-c", &line])?;
    assert_eq!(out, "table inet egress: MISSING\n");
    Ok(())
}

#[test]
fn empty_variables_count_as_not_set() -> Result<()> {
    let lab = small_lab()?;
    let mappings = MappingsDir::of(&lab)?;
    let program = Agent::program()?;
    let mut child = lab.node(1).spawn(
        Command::new(program)
            .args(["--mappings-dir", text(mappings.path())?, "--listen", "127.0.0.1:9797"])
            .envs([("INTERFACE_NAME", ""), ("NODE_NAME", "")])
            .stdin(Stdio::null())
            .stderr(Stdio::piped()),
    )?;
    std::thread::scope(|scope| -> Result<()> {
        let log = child.stderr.take().context("no pipe")?;
        let reader = scope.spawn(|| std::io::read_to_string(log));
        let up = wait_until(SOON, || {
            lab.node(1).sh("ss -Hltn sport = :9797").is_ok_and(|o| !o.is_empty())
        });
        child.kill()?;
        child.wait()?;
        let log = reader.join().expect("the reader does not panic")?;
        assert!(up, "{log}");
        assert!(!log.contains("node=\"\""), "{log}");
        Ok(())
    })
}
