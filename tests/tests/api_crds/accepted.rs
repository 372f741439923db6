//! What the published contract allows is accepted.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{said, server};

#[tokio::test]
async fn what_the_published_contract_allows_is_accepted() -> Result<()> {
    let client = server()?.client().await?;
    let mut cases = vec![
        ("Vip", json!({"ip": "192.168.122.222", "routeid": 64})),
        ("Vip", json!({"ip": "192.168.122.222"})),
        ("Vip", json!({"ip": "2001:DB8::222", "routeid": 252, "namespaces": ["*"]})),
        ("Vip", json!({"ip": "223.255.255.255", "routeid": 1, "namespaces": ["team-a", "b"]})),
        ("Vip", json!({"ip": "192.168.122.222", "path": "Direct"})),
        ("Vip", json!({"ip": "192.168.122.222", "path": "ViaHolder"})),
        ("EgressMapper", json!({"defaultPath": "Direct"})),
        (
            "Egress",
            json!({"ip": "192.168.122.222", "kind": "pod", "namespace": "default", "name": "pod1"}),
        ),
        ("Egress", json!({"ip": "fd00::1", "kind": "ns", "whenUnavailable": "NodeAddress"})),
        ("Egress", json!({"ip": "192.0.2.1", "kind": "namespace", "name": "team-a"})),
        ("Egress", json!({"ip": "192.0.2.1", "kind": "namespace", "namespace": "team-a"})),
        ("Egress", json!({"ip": "192.0.2.1", "kind": "pod", "name": "web-0.example"})),
        ("Egress", json!({"ip": "192.0.2.1", "kind": "pod", "name": null, "selector": {}})),
        (
            "Egress",
            json!({"ip": "192.0.2.1", "kind": "po", "name": "", "selector": {"matchExpressions": [
                {"key": "a", "operator": "NotIn", "values": ["b", "c"]},
                {"key": "example.com/d", "operator": "DoesNotExist"},
            ]}}),
        ),
        (
            "EgressMapper",
            json!({
                "KeepalivedVIPImage": "k8s.gcr.io/kube-keepalived-vip:0.11",
                "NeedMountDev": true,
                "KubeEgressImage": "ssheehy/kube-egress:0.4.0",
                "PodSubnet": "10.244.0.0/16",
                "ServiceSubnet": "10.96.0.0/12",
                "InterfaceName": "eth0",
                "UpdateInterval": "5",
            }),
        ),
        ("EgressMapper", json!({})),
        (
            "EgressMapper",
            json!({
                "PodSubnet": "", "ServiceSubnet": "", "InterfaceName": "", "UpdateInterval": "",
                "KubeEgressImage": "", "KeepalivedVIPImage": "", "NeedMountDev": false,
            }),
        ),
        (
            "EgressMapper",
            json!({
                "PodSubnet": "10.244.0.0/16, fd00:244::/56",
                "ServiceSubnet": "10.96.0.0/12,fd00:96::/112",
                "UpdateInterval": "5s",
                "InterfaceName": "bond0.123",
                "gatewaySelector": {"matchLabels": {"gateway": "yes"}},
                "advertIntervalMillis": 200,
                "strictPods": true,
                "excludedNetworks": ["10.0.0.0/8", "fd00::/8"],
            }),
        ),
    ];
    let kinds = [
        "pod",
        "Pod",
        "PODS",
        "po",
        "replicationcontroller",
        "rc",
        "ReplicaSet",
        "rs",
        "replicasets",
        "deployment",
        "Deployments",
        "deploy",
        "StatefulSet",
        "statefulsets",
        "sts",
        "daemonset",
        "ds",
        "job",
        "Jobs",
        "CronJob",
        "cronjobs",
        "cj",
    ];
    cases.extend(
        kinds.map(|kind| ("Egress", json!({"ip": "192.0.2.1", "kind": kind, "name": "a"}))),
    );
    for (kind, spec) in cases {
        let said = said(&client, kind, &spec).await?;
        ensure!(said.is_empty(), "{kind} {spec}: {said:#?}");
    }
    Ok(())
}
