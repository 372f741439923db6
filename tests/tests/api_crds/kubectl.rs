//! What `kubectl` shows.

use anyhow::{Result, ensure};
use serde_json::json;

use super::server;

fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn kubectl_shows_what_people_look_for() -> Result<()> {
    let server = server()?;
    server.create_namespace("columns")?;
    server.apply(
        "
apiVersion: egress.mapper.com/v1alpha1
kind: Vip
metadata: {name: example-vip, namespace: columns}
spec: {ip: 192.168.122.222, routeid: 64}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Egress
metadata: {name: example-pod1-egress, namespace: columns}
spec: {ip: 192.168.122.222, kind: pod, namespace: default, name: pod1}
---
apiVersion: egress.mapper.com/v1alpha1
kind: EgressMapper
metadata: {name: example-egressmapper, namespace: columns}
spec: {InterfaceName: eth0}
",
    )?;
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "Any", "message": "",
               "lastTransitionTime": "2026-01-02T03:04:05Z"})
    };
    let statuses = [
        (
            "vip/example-vip",
            json!({"routeid": 64, "holder": "node1", "pods": 2, "egresses": 1, "path": "Mixed",
            "blocks": {"nodes": 2, "given": 9, "draining": 1, "free": 38},
            "conditions": [condition("Held"), condition("Accepted")]}),
        ),
        (
            "egress/example-pod1-egress",
            json!({"pods": 3, "mapped": 2,
            "conditions": [condition("Ready")]}),
        ),
        (
            "egressmapper/example-egressmapper",
            json!({"gateways": 2, "nodes": 3, "inSync": 1,
            "conditions": [condition("Accepted"), condition("Ready")]}),
        ),
    ];
    for (object, status) in statuses {
        let patch = json!({ "status": status }).to_string();
        let patch = [
            "patch",
            object,
            "-n",
            "columns",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        server.kubectl(&patch)?;
    }
    let shown = |kind: &str| server.kubectl(&["get", "-n", "columns", kind]);
    let without_age = |kind: &str| -> Result<Vec<String>> {
        let shown = shown(kind)?;
        Ok(words(&shown).into_iter().map(|line| line[..line.len() - 1].join(" ")).collect())
    };
    assert_eq!(
        without_age("vip")?,
        ["NAME IP ROUTEID HOLDER PODS ACCEPTED", "example-vip 192.168.122.222 64 node1 2 True",]
    );
    let wide = server.kubectl(&["get", "-n", "columns", "vip", "-o", "wide"])?;
    let wide = words(&wide);
    let path = wide[0].iter().rev().position(|column| *column == "PATH");
    assert_eq!(path.map(|place| wide[1][wide[1].len() - 1 - place]), Some("Mixed"), "{wide:?}");
    assert_eq!(
        without_age("egress")?,
        [
            "NAME IP KIND NAMESPACE NAME PODS READY",
            "example-pod1-egress 192.168.122.222 pod default pod1 3 True",
        ]
    );
    assert_eq!(
        without_age("egressmapper")?,
        [
            "NAME INTERFACE GATEWAYS NODES INSYNC ACCEPTED READY",
            "example-egressmapper eth0 2 3 1 True True",
        ]
    );
    assert_eq!(without_age("eg")?, without_age("egress")?);
    assert_eq!(without_age("egm")?, without_age("egressmapper")?);
    let all = server.kubectl(&["get", "-n", "columns", "egress-mapper", "-o", "name"])?;
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(
        all,
        [
            "egress.egress.mapper.com/example-pod1-egress",
            "egressmapper.egress.mapper.com/example-egressmapper",
            "vip.egress.mapper.com/example-vip",
        ]
    );
    Ok(())
}

#[test]
fn kubectl_explains_every_field() -> Result<()> {
    let server = server()?;
    for kind in ["vips", "egresses", "egressmappers"] {
        for part in ["spec", "status"] {
            let path = format!("{kind}.{part}");
            let text =
                server.kubectl(&["explain", "--api-version=egress.mapper.com/v1alpha1", &path])?;
            ensure!(!text.contains("<no description>"), "{path}: {text}");
        }
    }
    Ok(())
}
