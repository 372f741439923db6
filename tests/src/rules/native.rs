//! The same rules as nftables text, in tables of their own.

use std::fmt::Write as _;

use anyhow::Result;

use super::{NodePort, Service, Subject};
use crate::host::Host;
use crate::lab::{CLUSTER_IP_PORT, Family, NODE_PORT, SERVICE_TARGET_PORT};

/// Loads them; without `masquerade` pods keep their addresses.
pub(super) fn load(node: &Host, subject: &Subject, masquerade: bool) -> Result<()> {
    let mut text = if subject.kube_proxy { kube_proxy(subject) } else { String::new() };
    if masquerade {
        text.push_str(&flannel(subject));
    }
    node.run_with_input(&["nft", "-f", "-"], &text).map(drop)
}

fn table_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn flannel(subject: &Subject) -> String {
    let Subject { family, pods, own_pods, .. } = subject;
    let ip = table_family(*family);
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    format!(
        "table {ip} flannel {{
  chain postrtg {{
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0x4000 return
    {ip} saddr {own_pods} {ip} daddr {pods} return
    {ip} saddr {pods} {ip} daddr {own_pods} return
    {ip} saddr != {pods} {ip} daddr {own_pods} return
    {ip} saddr {pods} {ip} daddr != {multicast} masquerade fully-random
    {ip} saddr != {pods} {ip} daddr {pods} masquerade fully-random
  }}
}}
"
    )
}

fn kube_proxy(subject: &Subject) -> String {
    let Subject { family, pods, service, .. } = subject;
    let ip = table_family(*family);
    let (mut services, mut endpoint, mut blocked) = (String::new(), String::new(), String::new());
    if let Some(Service { cluster_ip, pod, node_port }) = service {
        let port = NODE_PORT;
        for protocol in ["tcp", "udp"] {
            let _ = writeln!(
                services,
                "    {ip} saddr != {pods} {ip} daddr {cluster_ip} {protocol} dport \
                 {CLUSTER_IP_PORT} meta mark set meta mark | 0x4000"
            );
            let _ = writeln!(
                services,
                "    {ip} daddr {cluster_ip} {protocol} dport {CLUSTER_IP_PORT} goto endpoint"
            );
            let local = format!("fib daddr type local {protocol} dport {port}");
            let _ = match node_port {
                NodePort::Masqueraded => writeln!(
                    services,
                    "    {local} meta mark set meta mark | 0x4000\n    {local} goto endpoint"
                ),
                NodePort::AsItIs => writeln!(services, "    {local} goto endpoint"),
                NodePort::Dropped => writeln!(blocked, "    {local} drop"),
            };
            let _ = writeln!(
                endpoint,
                "    meta l4proto {protocol} dnat to {}",
                match family {
                    Family::V4 => format!("{pod}:{SERVICE_TARGET_PORT}"),
                    Family::V6 => format!("[{pod}]:{SERVICE_TARGET_PORT}"),
                }
            );
        }
        endpoint.insert_str(0, &format!("    {ip} saddr {pod} meta mark set meta mark | 0x4000\n"));
    }
    format!(
        "table {ip} kube-proxy {{
  chain endpoint {{
{endpoint}  }}
  chain services {{
{services}  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  chain filter-input {{
    type filter hook input priority filter;
{blocked}  }}
  chain filter-forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    meta mark & 0x4000 == 0x4000 accept
    ct state established,related accept
    {ip} saddr {pods} accept
    {ip} daddr {pods} accept
  }}
}}
"
    )
}
