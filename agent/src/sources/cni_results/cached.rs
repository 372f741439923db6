//! Pure: what one file of libcni's cache says.

use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::Deserialize;
use shared::{PodIp, PodUid};

use super::Ignored;

/// What every file of the cache says it is; others are older or of somebody else.
const KIND: &str = "cniCacheV1";
/// The interface whose addresses the API server is told of, by the contract between kubelet and runtimes.
const MAIN_INTERFACE: &str = "eth0";

/// A pod's connection to one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The pod, if this is its main interface and the runtime says which pod it is.
    pub(super) uid: Option<PodUid>,
    /// The addresses that were assigned.
    pub(super) ips: Vec<PodIp>,
    /// When that was written.
    pub(super) written: SystemTime,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    result: Option<PluginResult>,
}

/// As of any version of the CNI specification.
#[derive(Deserialize)]
struct PluginResult {
    #[serde(default)]
    ips: Option<Vec<Assigned>>,
    /// Of versions before 0.3.
    #[serde(default)]
    ip4: Option<OldAssigned>,
    #[serde(default)]
    ip6: Option<OldAssigned>,
}

#[derive(Deserialize)]
struct Assigned {
    address: String,
}

#[derive(Deserialize)]
struct OldAssigned {
    ip: String,
}

/// Reads the text of a file that was written then.
pub(super) fn read(text: &[u8], written: SystemTime) -> Result<Attachment, Ignored> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let cached: Cached = match serde_json::from_slice(text) {
        Ok(cached) => cached,
        Err(_) => match serde_json::from_slice::<Kind>(text) {
            Ok(Kind { kind }) if kind == KIND => return Err(Ignored::Broken),
            // A result without the rest was all there was in the first versions.
            _ if serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok() => {
                return Err(Ignored::Foreign);
            }
            _ => return Err(Ignored::Broken),
        },
    };
    if cached.kind != KIND {
        return Err(Ignored::Foreign);
    }
    let result = cached.result.ok_or(Ignored::Broken)?;
    let is_main = cached.if_name == MAIN_INTERFACE;
    let args = cached.cni_args.unwrap_or_default();
    let uid = args.iter().find(|(key, _)| key == "K8S_POD_UID");
    let texts = result.ips.into_iter().flatten().map(|assigned| assigned.address);
    let old = result.ip4.into_iter().chain(result.ip6).map(|assigned| assigned.ip);
    Ok(Attachment {
        uid: uid.and_then(|(_, uid)| uid.parse().ok()).filter(|_| is_main),
        ips: texts.chain(old).filter_map(|text| address(&text)).collect(),
        written,
    })
}

/// The address of an interface, with or without the length of its prefix.
fn address(text: &str) -> Option<PodIp> {
    let addr =
        text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>()).ok()?;
    PodIp::try_from(addr).ok()
}
