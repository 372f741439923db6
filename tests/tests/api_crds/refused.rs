//! What is wrong is refused, with words that help.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{said, server};

/// Each spec gets exactly one complaint, with these words.
async fn refused(kind: &str, cases: Vec<(Value, String)>) -> Result<()> {
    let client = server()?.client().await?;
    let mut different = Vec::new();
    for (spec, expected) in cases {
        let said = said(&client, kind, &spec).await?;
        if said != [expected.as_str()] {
            different.push(format!("{spec}: {said:#?}, expected {expected:?}"));
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

fn case(spec: Value, expected: &str) -> (Value, String) {
    (spec, expected.to_owned())
}

/// Wrong addresses, and what is said of each.
fn addresses() -> impl Iterator<Item = (&'static str, String)> {
    let none = ["", "x", "192.0.2.1/32", "010.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"];
    let unreachable = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "240.0.0.1",
        "249.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
    ];
    let no_address =
        "spec.ip: ip must be one IP address without prefix length, such as 192.0.2.10 or fd00::10";
    let not_reachable = "spec.ip: ip must be an address that other hosts can reach, not an \
                         unspecified, loopback, link-local, multicast, broadcast or reserved one";
    none.into_iter()
        .map(move |ip| (ip, no_address.to_owned()))
        .chain(unreachable.into_iter().map(move |ip| (ip, not_reachable.to_owned())))
}

#[tokio::test]
async fn wrong_vips_are_refused() -> Result<()> {
    let with = |key: &str, value: Value| json!({"ip": "192.0.2.1", key: value});
    let mut cases = vec![
        case(json!({}), "spec.ip: Required value"),
        case(
            with("path", "direct".into()),
            "spec.path: Unsupported value: \"direct\": supported values: \"ViaHolder\", \"Direct\"",
        ),
        case(
            with("namespaces", json!([])),
            "spec.namespaces: namespaces must name at least one namespace, or be left out for the \
             Vip's own",
        ),
        case(
            with("namespaces", json!(["a", "b*"])),
            "spec.namespaces: namespaces must hold names of namespaces, or \"*\" for all",
        ),
        case(with("namespaces", json!(["a", "a"])), "spec.namespaces[1]: Duplicate value: \"a\""),
    ];
    for route_id in [-1, 0, 253, 300] {
        cases.push(case(
            with("routeid", json!(route_id)),
            "spec.routeid: routeid must be from 1 to 252; leave it out to have a free one chosen",
        ));
    }
    cases.extend(addresses().map(|(ip, expected)| (json!({"ip": ip}), expected)));
    refused("Vip", cases).await
}

/// An Egress for a pod, with that field otherwise.
fn of_pod(key: &str, value: Value) -> Value {
    let mut spec = json!({"ip": "192.0.2.1", "kind": "pod", "name": "a"});
    spec[key] = value;
    spec
}

fn selecting(kind: &str, selector: &Value) -> Value {
    json!({"ip": "192.0.2.1", "kind": kind, "selector": selector})
}

#[tokio::test]
async fn wrong_egresses_are_refused() -> Result<()> {
    let cases = vec![
        case(json!({"kind": "pod", "name": "a"}), "spec.ip: Required value"),
        case(json!({"ip": "192.0.2.1", "name": "a"}), "spec.kind: Required value"),
        case(
            of_pod("kind", json!("service")),
            "spec.kind: kind must be pod, replicationcontroller, replicaset, deployment, \
             statefulset, daemonset, job, cronjob or namespace; plurals and kubectl's short names \
             do, too",
        ),
        case(
            of_pod("name", json!("Pod1")),
            "spec.name: name must be the name of an object: lower-case letters, digits, '-' and \
             '.'",
        ),
        case(
            of_pod("namespace", json!("a.b")),
            "spec.namespace: namespace must be the name of a namespace: lower-case letters, digits \
             and '-'",
        ),
        case(
            of_pod("whenUnavailable", json!("drop")),
            "spec.whenUnavailable: Unsupported value: \"drop\": supported values: \"Drop\", \
             \"NodeAddress\"",
        ),
    ];
    let addresses = addresses().map(|(ip, expected)| (of_pod("ip", json!(ip)), expected));
    refused("Egress", cases.into_iter().chain(addresses).collect()).await
}

#[tokio::test]
async fn an_egress_names_or_selects() -> Result<()> {
    let no_name = "spec: name is missing: name the object whose pods are meant; with kind pod, \
                   selector may stand instead";
    let of_kind = "spec: selector is for kind pod only; remove it, or use kind pod";
    let values = "spec.selector.matchExpressions[0]: values must be given with operator In or \
                  NotIn, and left out with Exists or DoesNotExist";
    let selector = json!({"matchLabels": {"app": "web"}});
    let expression = |expression: Value| json!({"matchExpressions": [expression]});
    let cases = vec![
        case(json!({"ip": "192.0.2.1", "kind": "pod"}), no_name),
        case(json!({"ip": "192.0.2.1", "kind": "Deploy", "name": ""}), no_name),
        case(selecting("deployment", &selector), of_kind),
        case(selecting("namespace", &selector), of_kind),
        case(
            of_pod("selector", selector),
            "spec: selector and name exclude each other; remove one of them",
        ),
        case(selecting("pod", &expression(json!({"key": "a", "operator": "In"}))), values),
        case(
            selecting("pod", &expression(json!({"key": "a", "operator": "NotIn", "values": []}))),
            values,
        ),
        case(
            selecting(
                "po",
                &expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
            ),
            values,
        ),
    ];
    refused("Egress", cases).await
}

#[tokio::test]
async fn wrong_egress_mappers_are_refused() -> Result<()> {
    let mut cases = vec![
        case(
            json!({"advertIntervalMillis": 5}),
            "spec.advertIntervalMillis: advertIntervalMillis must be from 10 to 40950; leave it \
             out for the default",
        ),
        case(
            json!({"excludedNetworks": ["10.0.0.0/8", "10.0.0.1"]}),
            "spec.excludedNetworks: excludedNetworks must be networks in CIDR form, such as \
             10.0.0.0/8 or fd00::/8",
        ),
        case(
            json!({"excludedNetworks": ["::/0"]}),
            "spec.excludedNetworks: excludedNetworks must not hold every destination (0.0.0.0/0, \
             ::/0); name smaller networks",
        ),
    ];
    for interface in ["eth0,eth1", "eth0:1", "a/b", " eth0"] {
        cases.push(case(
            json!({"InterfaceName": interface}),
            "spec.InterfaceName: InterfaceName must be the name of one network interface, such as \
             eth0",
        ));
    }
    for interval in ["0", "0s", "5m", "s", "-1", "1.5", "100000"] {
        cases.push(case(
            json!({"UpdateInterval": interval}),
            "spec.UpdateInterval: UpdateInterval must be whole seconds from 1 to 99999 as text, \
             such as \"5\" or \"5s\"",
        ));
    }
    for field in ["PodSubnet", "ServiceSubnet"] {
        for text in ["10.244.0.0", "10.244.0.0/16 fd00::/56", "10.244.0.0/33", "10.244.0.0/16,"] {
            let expected = format!(
                "spec.{field}: {field} must be networks in CIDR form, separated by commas, such as \
                 10.244.0.0/16,fd00:244::/56"
            );
            cases.push((json!({field: text}), expected));
        }
        for text in ["10.244.0.0/16, 0.0.0.0/0", "::/0"] {
            let expected = format!(
                "spec.{field}: {field} must not hold every destination (0.0.0.0/0, ::/0); name \
                 smaller networks"
            );
            cases.push((json!({field: text}), expected));
        }
    }
    refused("EgressMapper", cases).await
}
