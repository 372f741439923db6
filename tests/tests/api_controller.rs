//! The built controller against a real API server: from resources to what nodes read, and back.

use anyhow::Result;
use tests::{ApiServer, Controller, ObjectCluster};

#[test]
fn an_empty_cluster_gets_empty_objects() -> Result<()> {
    let server = ApiServer::start()?;
    let cluster = ObjectCluster::prepare(&server)?;
    cluster.node("n1", "192.168.122.11", "10.244.1.0/24")?;
    let mut controller = Controller::start(&server, "default", "one")?;
    controller.wait_ready()?;
    controller.wait_leads()?;
    cluster.eventually("published", |cluster| cluster.data("podip-vip-mappings").is_some());
    controller.stop()?;
    Ok(())
}
