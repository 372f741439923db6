//! What an agent says of its work.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use serde_json::Value;
use tests::{Agent, Family, Host, Lab, eventually, wait_until};

use crate::{SOON, here, mappings_of};

/// Starts an agent that logs as an operator has it, lets `change` happen, and gives its log.
fn log_of(
    node: &Host,
    mappings: &Path,
    format: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let child = node.spawn(
        Command::new(Agent::program()?)
            .arg("--mappings-dir")
            .arg(mappings)
            .args(["--log-format", format, "--node-name", "node-one"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped()),
    )?;
    let table = || {
        node.sh("nft list map inet egress pod_vip4").is_ok_and(|text| text.contains("10.244.1.12"))
    };
    let ready = wait_until(SOON, table);
    let outcome = change();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let output = child.wait_with_output()?;
    let log = String::from_utf8(output.stderr)?;
    outcome?;
    assert!(ready && output.status.success(), "{log}");
    Ok(log)
}

#[test]
fn logs_have_a_line_for_every_change_with_what_and_why() -> Result<()> {
    for format in ["text", "json"] {
        let lab = Lab::builder().nodes(1).build()?;
        let node = lab.node(1);
        let mut mappings = mappings_of(&lab)?;
        let pod = lab.pod(1, 2).ip(Family::V4);
        let path = mappings.path().to_owned();
        let log = log_of(node, &path, format, || {
            mappings.map(pod, here())?;
            let moved = format!("{pod} : {}", here());
            let map = || node.sh("nft list map inet egress pod_vip4");
            eventually(SOON, || map().is_ok_and(|text| text.contains(&moved)));
            node.sh("nft flush chain inet egress classify")?;
            let chain = || node.sh("nft list chain inet egress classify");
            eventually(SOON, || chain().is_ok_and(|text| text.contains("answers of pods")));
            Ok(())
        })?;
        let lines: Vec<(String, String)> = log
            .lines()
            .map(|line| {
                if format == "json" {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert_eq!(line["span"]["node"].as_str(), Some("node-one"), "{line}");
                    let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
                    (text("message"), text("why"))
                } else {
                    assert!(line.contains("node=\"node-one\""), "{line}");
                    let (what, why) = line.rsplit_once(" why=").unwrap_or((line, ""));
                    (what.to_owned(), why.to_owned())
                }
            })
            .collect();
        for (what, why) in [
            ("started".to_owned(), ""),
            (
                "add rule 1064: from all fwmark 0x1040/0x10ff lookup 10064".to_owned(),
                "agent started",
            ),
            (format!("change pods: map {pod} to {}", here()), "mappings changed"),
            (
                "repaired: change tables; main: fill chain classify".to_owned(),
                "changed by somebody else",
            ),
            ("stopped; the rules stay".to_owned(), ""),
        ] {
            let found = lines.iter().filter(|(w, y)| w.contains(&what) && y == why).count();
            assert_eq!(found, 1, "{what} ({why}) in {log}");
        }
    }
    Ok(())
}
