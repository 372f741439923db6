//! The built controller against a real API server: which node is to hold which VIP, and what is said
//! when it moves. The nodes' reports are written by the tests, as agents would.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use tests::{ApiServer, Controller, ObjectCluster, wait_until};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const VIP: &str = "192.168.122.222";
const WRITTEN_WITHIN: Duration = Duration::from_mins(2);
/// Since when all that is held is held.
const SINCE: &str = "2024-01-01T00:00:00Z";

/// What the test knows of who holds what.
type Holders = BTreeMap<String, &'static str>;

struct Bed {
    cluster: ObjectCluster,
    controller: Controller,
}

impl Bed {
    /// Three gateways that are in sync.
    fn new(server: &ApiServer) -> Result<Self> {
        let cluster = ObjectCluster::prepare(server)?;
        for (number, node) in (11..).zip(NODES) {
            cluster.node(
                node,
                &format!("192.168.122.{number}"),
                &format!("10.244.{number}.0/24"),
            )?;
            report(&cluster, node, &Holders::new(), &[])?;
        }
        cluster.ours("EgressMapper", "m", &json!({}))?;
        let mut controller = Controller::start(server, "default", "one")?;
        controller.wait_ready()?;
        controller.wait_leads()?;
        Ok(Self { cluster, controller })
    }

    fn lists(&self) -> BTreeMap<String, Vec<String>> {
        let data = self.cluster.data("vip-candidates").unwrap_or_default();
        let list = |text: &str| -> Vec<String> {
            text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        data.iter().map(|(vip, text)| (vip.clone(), list(text))).collect()
    }

    fn list(&self, vip: &str) -> Vec<String> {
        self.lists().remove(vip).unwrap_or_default()
    }

    /// How many VIPs have each node first.
    fn spread(&self) -> [usize; 3] {
        let lists = self.lists();
        NODES.map(|node| {
            lists.values().filter(|list| list.first().is_some_and(|n| n == node)).count()
        })
    }

    fn report_all(&self, holders: &Holders) -> Result<()> {
        NODES.iter().try_for_each(|node| report(&self.cluster, node, holders, &[]))
    }

    /// Node for node what the launchers would agree on: a holder that is named stays.
    fn agree(&self, holders: &mut Holders, dead: &[&str]) -> usize {
        let mut moves = 0;
        for (vip, list) in self.lists() {
            let alive = |node: &str| !dead.contains(&node);
            let held = holders.get(&vip).filter(|node| alive(node));
            if held.is_some_and(|holder| list.iter().any(|node| node == holder)) {
                continue;
            }
            let next = NODES.into_iter().find(|node| {
                list.iter().find(|listed| alive(listed)).is_some_and(|first| first == node)
            });
            if let Some(next) = next {
                moves += usize::from(holders.insert(vip, next).is_some_and(|was| was != next));
            }
        }
        moves
    }

    fn status(&self, vip: &str, field: &str) -> Option<Value> {
        self.cluster.get("Vip", "default", vip)?.pointer(&format!("/status/{field}")).cloned()
    }

    fn told(&self, vip: &str, reason: &str) -> Option<String> {
        let events = self.cluster.list("Event", "default").ok()?;
        let found = events
            .iter()
            .find(|event| event["regarding"]["name"] == vip && event["reason"] == reason)?;
        Some(found["note"].as_str()?.to_owned())
    }

    /// Whether an Event about the VIP has that text.
    fn is_told(&self, vip: &str, note: &str) -> bool {
        let events = self.cluster.list("Event", "default").unwrap_or_default();
        events.iter().any(|event| event["regarding"]["name"] == vip && event["note"] == note)
    }

    fn says(&self, vip: &str, condition: &str, reason: &str, message: &str) {
        let mut last = None;
        self.cluster.eventually(&format!("{condition}: {reason}: {message}"), |cluster| {
            last = cluster.condition("Vip", vip, condition);
            last.as_ref().is_some_and(|is| is[1] == reason && is[2] == message)
        });
    }
}

/// What the agent of a node writes.
fn report(
    cluster: &ObjectCluster,
    node: &str,
    holders: &Holders,
    conflicts: &[&str],
) -> Result<()> {
    let holds = holders.iter().filter(|(_, holder)| **holder == node);
    let holds: Vec<String> = holds.map(|(vip, _)| format!("{vip} {SINCE}")).collect();
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": format!("egress-node-{node}"), "namespace": "default" },
        "data": { "holds": holds.join("\n"), "synced": "true", "message": "", "version": "0",
            "conflicts": conflicts.join("\n") },
    });
    cluster.apply(&object).map(drop)
}

fn sorted(list: &[String]) -> BTreeSet<&str> {
    list.iter().map(String::as_str).collect()
}

#[test]
fn vips_are_spread_and_stay_when_nodes_come_and_go() -> Result<()> {
    let server = ApiServer::start()?;
    let bed = Bed::new(&server)?;
    let cluster = &bed.cluster;
    for number in 1..=252 {
        let ip = format!("192.168.130.{number}");
        cluster.vip(&format!("v{number}"), &json!({ "ip": ip }))?;
        let spec = json!({ "ip": ip, "kind": "pod", "namespace": "default", "name": "none" });
        cluster.egress(&format!("e{number}"), &spec)?;
    }
    cluster.eventually("252 VIPs, 84 for each", |_| bed.spread() == [84; 3]);
    let mut holders = Holders::new();
    bed.agree(&mut holders, &[]);
    bed.report_all(&holders)?;
    cluster.eventually("a holder of the last VIP", |_| {
        bed.status("v252", "holder").is_some_and(|holder| holder == holders["192.168.130.252"])
    });
    assert_eq!(bed.spread(), [84; 3]);
    let written = wait_until(WRITTEN_WITHIN, || {
        bed.controller.metric("egress_controller_status_backlog").is_ok_and(|count| count < 0.5)
    });
    assert!(written, "the status of 252 Vips and Egresses is written");

    // n1 is gone: its VIPs go to others, and no other VIP moves.
    let before = holders.clone();
    cluster.patch_status(
        "Node",
        "",
        "n1",
        &json!({ "status": {
        "conditions": [{ "type": "Ready", "status": "Unknown" }] } }),
    )?;
    cluster.eventually("n1 is nowhere the first", |_| bed.spread()[0] == 0);
    let lists = bed.lists();
    assert!(lists.values().all(|list| list.len() == 3 && list[2] == "n1"), "it may still be there");
    assert_eq!(bed.spread(), [0, 126, 126]);
    assert_eq!(bed.agree(&mut holders, &["n1"]), 84);
    for (vip, holder) in &before {
        assert!(*holder == "n1" || holders[vip] == *holder);
    }
    for node in ["n2", "n3"] {
        report(cluster, node, &holders, &[])?;
    }
    let lost = before.iter().find(|(_, holder)| **holder == "n1").context("none on n1")?.0;
    let name = format!("v{}", lost.rsplit('.').next().unwrap_or_default());
    let to = holders[lost];
    cluster.eventually("the Event of the move", |_| {
        bed.told(&name, "HolderMoved") == Some(format!("moved from Node n1 to Node {to}"))
    });
    bed.says(&name, "Held", "Held", &format!("Node {to} holds {lost}"));
    cluster.eventually("all moves counted", |_| {
        bed.controller.metric("egress_controller_vip_moves_total").is_ok_and(|moves| moves > 83.5)
    });
    assert!(bed.controller.metric("egress_controller_vip_moves_total")? < 84.5);

    // n1 is back: nothing moves, and it gets the new VIPs.
    report(cluster, "n1", &holders, &[])?;
    cluster.node("n1", "192.168.122.11", "10.244.11.0/24")?;
    cluster.eventually("n1 is ready", |cluster| {
        let mapper = cluster.get("EgressMapper", "default", "m").unwrap_or_default();
        mapper.pointer("/status/readyGateways") == Some(&json!(3))
    });
    assert_eq!(bed.agree(&mut holders, &[]), 0);
    assert_eq!(bed.spread(), [0, 126, 126]);
    cluster.delete("Egress", "default", "e1")?;
    cluster.delete("Vip", "default", "v1")?;
    cluster.eventually("v1 is gone", |_| bed.lists().len() == 251);
    cluster.vip("new", &json!({ "ip": VIP }))?;
    cluster.eventually("a new VIP", |_| bed.list(VIP).first().is_some_and(|first| first == "n1"));

    // Asked to, they spread evenly, each move is one to a node that takes it.
    let spec = json!({ "rebalance": "Always" });
    cluster.ours("EgressMapper", "m", &spec)?;
    cluster.eventually("84 for each again", |_| bed.spread() == [84; 3]);
    let moves = bed.agree(&mut holders, &[]);
    assert!((83..=84).contains(&moves), "{moves}");
    bed.report_all(&holders)?;
    cluster.eventually("no VIP is bound to one node", |_| {
        bed.lists().values().all(|list| list.len() == 3)
    });
    assert_eq!(bed.spread(), [84; 3]);
    assert_eq!(bed.agree(&mut holders, &[]), 0);
    Ok(())
}

#[test]
fn a_vip_is_moved_and_a_node_is_drained_on_wish() -> Result<()> {
    let server = ApiServer::start()?;
    let bed = Bed::new(&server)?;
    let cluster = &bed.cluster;
    cluster.vip("v", &json!({ "ip": VIP }))?;
    let used = json!({ "ip": VIP, "kind": "pod", "namespace": "default", "name": "none" });
    cluster.egress("e", &used)?;
    cluster.eventually("candidates", |_| bed.list(VIP).len() == 3);
    let mut holders = Holders::new();
    bed.agree(&mut holders, &[]);
    bed.report_all(&holders)?;
    let first = holders[VIP];
    bed.says("v", "Placed", "Placed", &format!("it stays on Node {first}"));

    // To another node: nobody else is named until that one has it.
    let target = NODES.into_iter().find(|node| *node != first).context("no other")?;
    cluster.vip("v", &json!({ "ip": VIP, "preferredNode": target }))?;
    cluster.eventually("only the target", |_| bed.list(VIP) == [target]);
    let moving = format!("it moves from Node {first} to Node {target}, which is preferred");
    bed.says("v", "Placed", "Moving", &moving);
    assert_eq!(bed.agree(&mut holders, &[]), 1);
    bed.report_all(&holders)?;
    cluster.eventually("all are named again, the target first", |_| {
        let list = bed.list(VIP);
        list.len() == 3 && list[0] == target
    });
    bed.says("v", "Placed", "Placed", &format!("it stays on Node {target}"));
    cluster.eventually("Events", |_| {
        bed.told("v", "HolderMoved") == Some(format!("moved from Node {first} to Node {target}"))
            && bed.told("v", "Moving") == Some(moving.clone())
    });

    // Back and here again: each move is told in words of its own.
    for (from, to) in [(target, first), (first, target)] {
        cluster.vip("v", &json!({ "ip": VIP, "preferredNode": to }))?;
        cluster.eventually("only the new target", |_| bed.list(VIP) == [to]);
        assert_eq!(bed.agree(&mut holders, &[]), 1);
        bed.report_all(&holders)?;
        cluster.eventually("an Event", |_| {
            bed.is_told("v", &format!("moved from Node {from} to Node {to}"))
        });
    }
    bed.says("v", "Placed", "Placed", &format!("it stays on Node {target}"));

    // A wish that cannot be fulfilled is told, and nothing moves.
    cluster.vip("v", &json!({ "ip": VIP, "preferredNode": "nowhere" }))?;
    let unknown = "preferred Node nowhere does not exist, so any gateway may hold it; correct \
                   preferredNode or leave it out";
    bed.says("v", "Placed", "PreferredNodeNotFound", unknown);
    cluster.eventually("an Event", |_| {
        bed.told("v", "PreferredNodeNotFound").as_deref() == Some(unknown)
    });
    assert_eq!(bed.list(VIP).len(), 3);
    assert!(cluster.vip("v", &json!({ "ip": VIP, "preferredNode": "No Node" })).is_err());
    cluster.vip("v", &json!({ "ip": VIP }))?;
    bed.says("v", "Placed", "Placed", &format!("it stays on Node {target}"));
    assert_eq!(bed.list(VIP)[0], target);

    // The node is drained: it is in no list until that is over, and nothing comes back by itself.
    let drain =
        |value: Value| json!({ "metadata": { "labels": { "egress.mapper.com/drain": value } } });
    cluster.patch("Node", "", target, &drain("true".into()))?;
    cluster.eventually("the drained node is not named", |_| {
        let list = bed.list(VIP);
        list.len() == 2 && !list.iter().any(|node| node == target)
    });
    let next = bed.list(VIP)[0].clone();
    let moving = format!(
        "it moves from Node {target} to Node {next}, because Node {target} is being drained"
    );
    bed.says("v", "Placed", "Moving", &moving);
    assert_eq!(bed.agree(&mut holders, &[]), 1);
    bed.report_all(&holders)?;
    bed.says("v", "Held", "Held", &format!("Node {next} holds {VIP}"));
    cluster.patch("Node", "", target, &drain(Value::Null))?;
    cluster.eventually("all are named", |_| bed.list(VIP).len() == 3);
    assert_eq!(bed.list(VIP)[0], next);
    assert_eq!(bed.agree(&mut holders, &[]), 0);

    // Cordoned just now: it keeps its VIP, and would be the last to get another.
    let cordon = |added: &str| {
        json!({ "spec": { "unschedulable": true, "taints": [
        { "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": added } ] } })
    };
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    cluster.patch("Node", "", &next, &cordon(&now))?;
    cluster.eventually("the cordoned node is the last", |_| {
        let list = bed.list(VIP);
        list.len() == 3 && list[2] == next
    });
    assert_eq!(bed.agree(&mut holders, &[]), 0);
    // Cordoned for long: it lets go.
    cluster.patch("Node", "", &next, &cordon(SINCE))?;
    cluster.eventually("the cordoned node is not named", |_| {
        let list = bed.list(VIP);
        list.len() == 2 && !sorted(&list).contains(next.as_str())
    });
    Ok(())
}

#[test]
fn holders_and_conflicts_are_told() -> Result<()> {
    let server = ApiServer::start()?;
    let bed = Bed::new(&server)?;
    let cluster = &bed.cluster;
    cluster.vip("v", &json!({ "ip": VIP, "routeid": 64 }))?;
    let none = format!(
        "no node reports that it holds {VIP}, so external traffic of its pods is dropped; look at \
         the pods of DaemonSets kube-keepalived-vip and kube-egress"
    );
    bed.says("v", "Held", "NoHolder", &none);
    let holders = Holders::from([(VIP.to_owned(), "n1")]);
    report(cluster, "n1", &holders, &[])?;
    cluster.eventually("held", |_| bed.told("v", "Held").as_deref() == Some("is on Node n1"));
    assert_eq!(bed.status("v", "holder"), Some("n1".into()));

    // Since long ago on two nodes.
    report(cluster, "n2", &Holders::from([(VIP.to_owned(), "n2")]), &[])?;
    let several = format!(
        "Node n1 holds {VIP}, and so does n2: they do not hear one another's VRRP adverts, or \
         somebody has added the address by hand"
    );
    bed.says("v", "Held", "SeveralHolders", &several);
    cluster.eventually("told", |_| bed.told("v", "SeveralHolders") == Some(several.clone()));
    report(cluster, "n2", &Holders::new(), &[])?;
    bed.says("v", "Held", "Held", &format!("Node n1 holds {VIP}"));

    // Somebody else uses it.
    bed.says("v", "Unique", "NoConflict", "no node has seen another machine use it");
    let seen = format!("{VIP} 192.168.122.77 sends VRRP adverts with id 64");
    report(cluster, "n1", &holders, &[&seen, "nonsense"])?;
    let conflict = format!(
        "other machines use {VIP} or VRRP id 64: Node n1: 192.168.122.77 sends VRRP adverts with id 64"
    );
    bed.says("v", "Unique", "Conflict", &conflict);
    cluster.eventually("told", |_| bed.told("v", "Conflict") == Some(conflict.clone()));
    cluster.eventually("counted", |_| {
        bed.controller.metric("egress_controller_vips_in_conflict").is_ok_and(|count| count > 0.5)
    });
    report(cluster, "n1", &holders, &[])?;
    cluster.eventually("told that it is over", |_| bed.told("v", "NoConflict").is_some());

    report(cluster, "n1", &Holders::new(), &[])?;
    cluster.eventually("told that nobody has it", |_| {
        bed.told("v", "NoHolder").as_deref() == Some("was on Node n1 and is on no node now")
    });
    Ok(())
}
