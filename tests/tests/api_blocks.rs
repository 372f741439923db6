//! The built controller against a real API server: which node gets which blocks of the ports of a VIP
//! on the direct path, and what is said of it. The nodes' reports are written by the tests, as agents
//! would.

use std::collections::BTreeMap;

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use tests::{ApiServer, Controller, ObjectCluster};

const VIP: &str = "192.168.122.222";
const OBJECT: &str = "vip-blocks-192.168.122.222";

struct Bed {
    cluster: ObjectCluster,
    controller: Controller,
}

/// What a node has: open blocks, draining ones, and the address.
type Has = (Vec<u8>, Vec<u8>, String);

impl Bed {
    /// Three nodes, a Vip, and an Egress that maps every pod of `default` to it.
    fn new(server: &ApiServer, path: Option<&str>) -> Result<Self> {
        let cluster = ObjectCluster::prepare(server)?;
        for number in 1..=3 {
            cluster.node(
                &format!("n{number}"),
                &format!("192.168.122.1{number}"),
                &format!("10.244.{number}.0/24"),
            )?;
        }
        cluster.vip("v", &spec(path))?;
        cluster.egress("e", &json!({ "ip": VIP, "kind": "namespace", "name": "default" }))?;
        let controller = started(server, "one")?;
        Ok(Self { cluster, controller })
    }

    fn blocks(&self) -> Option<BTreeMap<String, Has>> {
        let data = self.cluster.data(OBJECT)?;
        Some(data.iter().map(|(node, text)| (node.clone(), read(text))).collect())
    }

    fn has(&self, node: &str) -> Option<Has> {
        self.blocks()?.remove(node)
    }

    fn labels(&self) -> Value {
        let object = self.cluster.get("ConfigMap", "default", OBJECT).unwrap_or_default();
        object["metadata"]["labels"].clone()
    }

    /// What the node's agent writes: the blocks that it may use, and how new connections leave.
    fn report(&self, node: &str, blocks: &[u8], path: &str, used: u16, why: &str) -> Result<()> {
        let list: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let list = if list.is_empty() { "-".to_owned() } else { list.join(",") };
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("egress-node-{node}"), "namespace": "default" },
            "data": { "holds": "", "synced": "true", "message": "", "version": "0",
                "blocks": format!("{VIP} {list} {path} {used} {why}") },
        });
        self.cluster.apply(&object).map(drop)
    }

    /// The agent has read what the node has, and uses all of it.
    fn uses_all(&self, node: &str) -> Result<Has> {
        let has = self.has(node).unwrap_or_default();
        let all: Vec<u8> = has.0.iter().chain(&has.1).copied().collect();
        self.report(node, &all, "Direct", 0, "")?;
        Ok(has)
    }

    fn says(&self, reason: &str) -> String {
        let mut last = None;
        self.cluster.eventually(&format!("DirectPath says {reason}"), |cluster| {
            last = cluster.condition("Vip", "v", "DirectPath");
            last.as_ref().is_some_and(|is| is[1] == reason)
        });
        last.unwrap_or_default()[2].clone()
    }

    fn status(&self, field: &str) -> Value {
        let vip = self.cluster.get("Vip", "default", "v").unwrap_or_default();
        vip.pointer(&format!("/status/{field}")).cloned().unwrap_or_default()
    }

    fn told(&self, reason: &str) -> bool {
        let events = self.cluster.list("Event", "default").unwrap_or_default();
        events.iter().any(|event| event["regarding"]["name"] == "v" && event["reason"] == reason)
    }
}

fn started(server: &ApiServer, name: &str) -> Result<Controller> {
    let mut controller = Controller::start(server, "default", name)?;
    controller.wait_ready()?;
    controller.wait_leads()?;
    Ok(controller)
}

fn spec(path: Option<&str>) -> Value {
    match path {
        Some(path) => json!({ "ip": VIP, "path": path }),
        None => json!({ "ip": VIP }),
    }
}

fn read(text: &str) -> Has {
    let words: Vec<&str> = text.split_whitespace().collect();
    let list = |text: &&str| text.split(',').filter_map(|block| block.parse().ok()).collect();
    let after =
        |word: &str| words.iter().position(|is| *is == word).and_then(|at| words.get(at + 1));
    let open = words.first().map(list).unwrap_or_default();
    let via = after("via").copied().unwrap_or_default().to_owned();
    (open, after("draining").map(list).unwrap_or_default(), via)
}

fn shared_by_none(blocks: &BTreeMap<String, Has>) {
    let mut all: Vec<u8> =
        blocks.values().flat_map(|has| has.0.iter().chain(&has.1)).copied().collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "{blocks:?}");
}

#[test]
fn nodes_get_blocks_with_their_first_pod_and_give_them_back_when_they_say_so() -> Result<()> {
    let server = ApiServer::start()?;
    let mut bed = Bed::new(&server, Some("Direct"))?;
    let none = json!({ "app.kubernetes.io/managed-by": "egress-mapper",
        "egress.mapper.com/blocks": "true" });
    bed.cluster.eventually("an object that names nobody", |_| {
        bed.blocks().is_some_and(|blocks| blocks.is_empty()) && bed.labels() == none
    });
    bed.says("NoPods");
    assert_eq!(bed.status("path"), "Direct");
    assert_eq!(bed.status("blocks"), json!({ "nodes": 0, "given": 0, "draining": 0, "free": 47 }));

    // Bound and not started: by its UID in the share of its node, and blocks in the same pass.
    let pod = bed.cluster.pod("a", "n1", &json!({}))?;
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    bed.cluster.eventually("blocks of n1", |_| {
        bed.has("n1") == Some(((1..=8).collect(), vec![], "192.168.122.11".to_owned()))
    });
    assert_eq!(bed.cluster.entry("podip-vip-mappings-n1", &uid).as_deref(), Some(VIP));
    assert_eq!(bed.labels()["blocks.egress.mapper.com/n1"], "");
    bed.says("NoAnswer");
    let reason = format!("egress_controller_vip_direct_path{{vip=\"{VIP}\",reason=\"NoAnswer\"}}");
    bed.cluster.eventually("counted", |_| bed.controller.metric(&reason).is_ok());
    assert_eq!(bed.status("path"), "ViaHolder");
    bed.report("n1", &[1, 2, 3, 4, 5, 6, 7, 8], "ViaHolder", 0, "no answer from 192.168.122.1")?;
    let message = bed.says("NotProven");
    assert!(message.contains("Node n1 (no answer from 192.168.122.1)"), "{message}");
    bed.uses_all("n1")?;
    bed.says("Proven");
    bed.cluster.eventually("it is on the direct path", |_| bed.status("path") == "Direct");
    bed.cluster.eventually("told", |_| {
        ["NoAnswer", "NotProven", "Proven"].iter().all(|reason| bed.told(reason))
    });

    // Another node, and more pods on the first: nothing changes for it.
    let before = bed.has("n1");
    bed.cluster.pod("b", "n1", &json!({}))?;
    bed.cluster.pod("c", "n2", &json!({}))?;
    bed.cluster.eventually("blocks of n2", |_| bed.has("n2").is_some());
    assert_eq!(bed.has("n1"), before);
    assert_eq!(bed.has("n2").map(|has| has.0), Some((9..=16).collect()));
    let version = bed.cluster.version("ConfigMap", "default", OBJECT);
    bed.cluster.pod("d", "n2", &json!({}))?;
    bed.cluster.eventually("the pod is published", |cluster| {
        cluster.data("podip-vip-mappings-n2").is_some_and(|data| data.len() == 2)
    });
    assert_eq!(bed.cluster.version("ConfigMap", "default", OBJECT), version, "no write for a pod");

    // n1 runs short and gets more; all its ports are used up.
    bed.report("n1", &[1, 2, 3, 4, 5, 6, 7, 8], "Direct", 6000, "")?;
    bed.cluster
        .eventually("more blocks for n1", |_| bed.has("n1").is_some_and(|has| has.0.len() == 16));
    let all = bed.uses_all("n1")?.0;
    bed.report("n1", &all, "Direct", 16_000, "")?;
    bed.cluster.eventually("as many as a node can have", |_| {
        bed.has("n1").is_some_and(|has| has.0.len() == 24)
    });
    let all = bed.uses_all("n1")?.0;
    bed.uses_all("n2")?;
    bed.report("n1", &all, "Direct", 24_000, "")?;
    bed.says("Exhausted");

    // A controller that is killed, and hands that garble the object: nobody gets what another has.
    bed.controller.kill(Signal::SIGKILL)?;
    bed.controller.wait()?;
    let known = bed.blocks().unwrap_or_default();
    let edit = json!({ "data": { "n1": "nonsense" } });
    bed.cluster.patch("ConfigMap", "default", OBJECT, &edit)?;
    bed.cluster.pod("e", "n3", &json!({}))?;
    bed.controller = started(&server, "two")?;
    bed.cluster.eventually("n1 keeps what it uses until it does not", |_| {
        bed.has("n1").is_some_and(|has| has.1 == known["n1"].0 && !has.0.is_empty())
    });
    let blocks = bed.blocks().unwrap_or_default();
    assert_eq!(blocks["n2"], known["n2"]);
    shared_by_none(&blocks);
    let open = blocks["n1"].0.clone();
    bed.report("n1", &open, "Direct", 0, "")?;
    bed.cluster.eventually("what n1 does not use is free", |_| {
        bed.has("n1").is_some_and(|has| has.1.is_empty() && has.0 == open)
    });

    // Metrics.
    let metric = |state: &str| {
        let name = format!("egress_controller_vip_blocks{{vip=\"{VIP}\",state=\"{state}\"}}");
        bed.controller.metric(&name).unwrap_or_default()
    };
    let given: usize = bed.blocks().unwrap_or_default().values().map(|has| has.0.len()).sum();
    bed.cluster.eventually("counted", |_| {
        let [open, free] = ["open", "free"].map(metric);
        (open + free - 47.0).abs() < 0.1 && format!("{open}") == given.to_string()
    });
    Ok(())
}

#[test]
fn the_path_is_changed_and_blocks_wait_for_their_connections() -> Result<()> {
    let server = ApiServer::start()?;
    let mut bed = Bed::new(&server, None)?;
    bed.cluster.pod("a", "n1", &json!({}))?;
    bed.cluster.pod("b", "n2", &json!({}))?;
    bed.cluster.eventually("on the holder's path", |_| bed.status("path") == "ViaHolder");
    assert_eq!(bed.blocks(), None, "nothing is published for a VIP that is on the other path");
    assert!(bed.cluster.condition("Vip", "v", "DirectPath").is_none());
    let wrote = |controller: &Controller| {
        controller.metric("egress_controller_writes_total{object=\"blocks\"}").unwrap_or(-1.0)
    };
    assert!(wrote(&bed.controller).abs() < 0.1);

    // The default of the EgressMapper, for Vips that say nothing.
    bed.cluster.ours("EgressMapper", "m", &json!({ "defaultPath": "Direct" }))?;
    bed.cluster
        .eventually("blocks of both", |_| bed.has("n1").is_some() && bed.has("n2").is_some());
    bed.uses_all("n1")?;
    bed.uses_all("n2")?;
    bed.says("Proven");
    assert!((wrote(&bed.controller) - 1.0).abs() < 0.1, "one write for both");

    // Back to the holder: n1 has a connection in block 2, n2 does not answer.
    bed.cluster.vip("v", &spec(Some("ViaHolder")))?;
    bed.cluster.eventually("both drain", |_| {
        bed.blocks().is_some_and(|all| all.values().all(|has| has.0.is_empty() && has.1.len() == 8))
    });
    bed.report("n1", &[2], "ViaHolder", 1, "")?;
    bed.cluster.eventually("only what is used is left of n1", |_| {
        bed.has("n1").is_some_and(|has| has.1 == [2])
    });
    let message = bed.says("Draining");
    assert!(message.contains("Node n1, n2 translates"), "{message}");
    bed.cluster.eventually("told", |_| bed.told("Draining"));
    bed.cluster.eventually("counted", |_| {
        bed.status("blocks") == json!({ "nodes": 2, "given": 9, "draining": 9, "free": 38 })
    });

    // And on the direct path again, by a controller that has just started: what drains goes on to,
    // new ones are given.
    bed.controller.kill(Signal::SIGKILL)?;
    bed.controller.wait()?;
    bed.cluster.vip("v", &spec(Some("Direct")))?;
    bed.controller = started(&server, "two")?;
    bed.cluster.eventually("others for both", |_| {
        bed.blocks().is_some_and(|all| all.values().all(|has| has.0.len() == 8))
    });
    let blocks = bed.blocks().unwrap_or_default();
    assert_eq!((&blocks["n1"].1, blocks["n2"].1.len()), (&vec![2], 8));
    shared_by_none(&blocks);
    // n2 has read nothing since: its report still has what it had at first.
    bed.report("n1", &blocks["n1"].0, "Direct", 0, "")?;
    bed.report("n2", &blocks["n2"].0, "Direct", 0, "")?;
    bed.cluster.eventually("nothing drains any more", |_| {
        bed.blocks().is_some_and(|all| all.values().all(|has| has.1.is_empty()))
    });

    // The Vip goes, with what uses it.
    bed.cluster.delete("Egress", "default", "e")?;
    bed.cluster.delete("Vip", "default", "v")?;
    bed.cluster.eventually("both drain again", |_| {
        bed.blocks().is_some_and(|all| all.values().all(|has| has.0.is_empty()))
    });
    bed.report("n1", &[], "ViaHolder", 0, "")?;
    bed.report("n2", &[], "ViaHolder", 0, "")?;
    bed.cluster.eventually("the object is empty", |_| {
        bed.blocks().is_some_and(|blocks| blocks.is_empty())
    });
    // Who watches it by its label sees it empty, too.
    assert_eq!(bed.labels()["blocks.egress.mapper.com/n1"], "");
    Ok(())
}

#[test]
fn nodes_that_go_and_replicas_that_change() -> Result<()> {
    let server = ApiServer::start()?;
    let bed = Bed::new(&server, Some("Direct"))?;
    let mut second = Controller::start(&server, "default", "second")?;
    second.wait_ready()?;
    for (pod, node) in [("a", "n1"), ("b", "n2")] {
        bed.cluster.pod(pod, node, &json!({}))?;
        bed.cluster.eventually("blocks", |_| bed.has(node).is_some());
        bed.uses_all(node)?;
    }
    bed.says("Proven");
    let before = bed.blocks().unwrap_or_default();

    // The one that leads is frozen while the other takes over; awake again it writes nothing.
    bed.controller.kill(Signal::SIGSTOP)?;
    bed.cluster.pod("c", "n3", &json!({}))?;
    bed.cluster.eventually("the other gives", |_| bed.has("n3").is_some());
    let version = bed.cluster.version("ConfigMap", "default", OBJECT);
    bed.controller.kill(Signal::SIGCONT)?;
    bed.cluster.eventually("it knows that it does not lead", |_| !bed.controller.leads());
    bed.uses_all("n3")?;
    bed.cluster.eventually("all is well", |_| bed.status("path") == "Direct");
    assert_eq!(bed.cluster.version("ConfigMap", "default", OBJECT), version);
    let blocks = bed.blocks().unwrap_or_default();
    shared_by_none(&blocks);
    assert!(before.iter().all(|(node, has)| blocks[node] == *has), "{blocks:?}");

    // A node goes: its blocks drain, and are its own for minutes.
    bed.cluster.delete("Pod", "default", "c")?;
    bed.cluster.delete("Node", "", "n3")?;
    bed.cluster.eventually("what n3 had drains", |_| {
        bed.has("n3").is_some_and(|has| has.0.is_empty() && has.1 == blocks["n3"].0)
    });
    // It is back before they are over: what its agent uses stays its own, and it gets others.
    bed.cluster.node("n3", "192.168.122.33", "10.244.3.0/24")?;
    bed.cluster.pod("d", "n3", &json!({}))?;
    bed.cluster.eventually("others for n3", |_| {
        bed.has("n3").is_some_and(|has| {
            !has.0.is_empty() && has.1 == blocks["n3"].0 && has.2 == "192.168.122.33"
        })
    });
    let open = bed.has("n3").unwrap_or_default().0;
    bed.report("n3", &open, "Direct", 0, "")?;
    bed.cluster.eventually("what it does not use is free", |_| {
        bed.has("n3").is_some_and(|has| has.0 == open && has.1.is_empty())
    });

    // A hand gives two nodes one block: nobody may use it, and it is put right.
    let edit = json!({ "data": { "n1": "40 via 192.168.122.11", "n2": "40 via 192.168.122.12" } });
    bed.cluster.patch("ConfigMap", "default", OBJECT, &edit)?;
    bed.cluster.eventually("put right", |_| {
        let blocks = bed.blocks().unwrap_or_default();
        let of = |node: &str| blocks.get(node).cloned().unwrap_or_default();
        of("n1").1 == before["n1"].0 && of("n2").1 == before["n2"].0 && !of("n1").0.contains(&40)
    });
    shared_by_none(&bed.blocks().unwrap_or_default());
    // A label that is missing is put back.
    let label = json!({ "metadata": { "labels": { "blocks.egress.mapper.com/n1": null } } });
    bed.cluster.patch("ConfigMap", "default", OBJECT, &label)?;
    bed.cluster.eventually("put back", |_| bed.labels()["blocks.egress.mapper.com/n1"] == "");
    second.stop()?;
    Ok(())
}
