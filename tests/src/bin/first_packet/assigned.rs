//! When an address was assigned: when the result of the CNI plugin was written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tests::KubeNode;

/// When that pod's address was; none if there is no result of it.
pub(crate) fn assigned(node: &KubeNode, pod: &str) -> Result<Option<SystemTime>> {
    let line = "for file in $(grep -l \"\\\"K8S_POD_NAME\\\",\\\"$0\\\"\" /var/lib/cni/results/*-eth0); \
                do stat -c %.9Y $file; done";
    let text = node.run(&["sh", "-c", line, pod])?;
    let Some(line) = text.lines().next() else { return Ok(None) };
    let seconds: f64 = line.trim().parse().with_context(|| format!("no time: {line}"))?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs_f64(seconds)))
}
