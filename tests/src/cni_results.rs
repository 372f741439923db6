//! What container runtimes leave of what CNI plugins answered.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

/// A directory of results, as libcni's cache has them; removed when dropped.
#[derive(Debug)]
pub struct CniResults(TempDir);

impl CniResults {
    /// An empty one.
    pub fn new() -> Result<Self> {
        tempfile::tempdir().context("cannot make a directory for results").map(Self)
    }

    /// What to give to `--cni-results-dir`.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The pod with that UID has got these addresses on its main interface.
    pub fn assign(&self, uid: &str, ips: &[IpAddr]) -> Result<()> {
        let ips: Vec<_> = ips.iter().map(|ip| json!({"address": format!("{ip}/24")})).collect();
        let text = json!({
            "kind": "cniCacheV1", "containerId": uid, "config": "e30=", "ifName": "eth0",
            "networkName": "pods",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_UID", uid]],
            "result": {"cniVersion": "0.4.0", "dns": {}, "ips": ips},
        });
        self.write(&format!("pods-{uid}-eth0"), &text.to_string())
    }

    /// The pod with that UID has given its addresses back.
    pub fn give_back(&self, uid: &str) -> Result<()> {
        fs::remove_file(self.path().join(format!("pods-{uid}-eth0"))).context("no such result")
    }

    /// Leaves any file there.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path().join(name), text).with_context(|| format!("cannot write {name}"))
    }
}
