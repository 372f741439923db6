//! The built controller against a real API server: from resources to what nodes read, and back.

mod daemon_sets;
mod pods;
mod replicas;
mod status;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{ApiServer, Controller, ObjectCluster};

pub(crate) const VIP: &str = "192.168.122.222";
pub(crate) const OTHER_VIP: &str = "192.168.122.223";

/// Two nodes, a Vip with route id 64.
pub(crate) fn two_nodes(server: &ApiServer) -> Result<ObjectCluster> {
    let cluster = ObjectCluster::prepare(server)?;
    cluster.node("n1", "192.168.122.11", "10.244.1.0/24")?;
    cluster.node("n2", "192.168.122.12", "10.244.2.0/24")?;
    cluster.vip("example-vip", &json!({ "ip": VIP, "routeid": 64 }))?;
    Ok(cluster)
}

pub(crate) fn started(server: &ApiServer, name: &str) -> Result<Controller> {
    let mut controller = Controller::start(server, "default", name)?;
    controller.wait_ready()?;
    controller.wait_leads()?;
    Ok(controller)
}

pub(crate) fn egress(kind: &str, name: &str) -> Value {
    json!({ "ip": VIP, "kind": kind, "namespace": "default", "name": name })
}

pub(crate) fn uid(object: &Value) -> Result<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str).context("no uid")
}

/// How many pods the Egress says to have.
pub(crate) fn mapped(cluster: &ObjectCluster, egress: &str) -> Option<i64> {
    cluster.get("Egress", "default", egress)?.pointer("/status/mapped")?.as_i64()
}
