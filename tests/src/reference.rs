//! The reference rules of the data path, loaded by hand: what the agent has to achieve, in nft text.

use std::net::IpAddr;

use anyhow::Result;

use crate::lab::{Family, Lab};

/// Loads the `ViaHolder` rules for one VIP and its pods, all of its family, on every node, together
/// with the policy route and loose `rp_filter`.
///
/// No node may hold the VIP yet: the kernel takes no route whose gateway is an address of its own,
/// though it keeps one that was there before.
pub fn load_reference_rules(lab: &Lab, vip: IpAddr, route_id: u8, pods: &[IpAddr]) -> Result<()> {
    let family = Family::of(vip);
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let table = 10_000 + u32::from(route_id);
    let (mark, preference) = (0x1000 | u32::from(route_id), 1000 + u32::from(route_id));
    let policy = format!(
        "route add default via {vip} dev eth0 onlink table {table}
route add unreachable default metric 4278198272 table {table}
rule add pref {preference} fwmark {mark:#x}/0x10ff lookup {table}
"
    );
    for node in lab.nodes() {
        for interface in ["eth0", "cni0", "flannel.1"] {
            node.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "2")?;
        }
        node.run_with_input(&["ip", flag, "-batch", "-"], &policy)?;
        node.run_with_input(&["nft", "-f", "-"], &render(lab, vip, route_id, pods))?;
    }
    Ok(())
}

fn render(lab: &Lab, vip: IpAddr, route_id: u8, pods: &[IpAddr]) -> String {
    let family = Family::of(vip);
    let (ip, kind, special) = match family {
        Family::V4 => ("ip", "ipv4_addr", "127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3"),
        Family::V6 => ("ip6", "ipv6_addr", "::1, fe80::/10, ff00::/8"),
    };
    let list = |items: Vec<String>| items.join(", ");
    let mapped = list(pods.iter().map(ToString::to_string).collect());
    let pod_vip = list(pods.iter().map(|pod| format!("{pod} : {vip}")).collect());
    let nodes = list(lab.nodes().iter().map(|node| node.ip(family).to_string()).collect());
    let (subnet, services) = (lab.pod_subnet(family), lab.service_subnet(family));
    let (here, away) =
        (format!("{route_id:#06x}"), format!("{:#06x}", 0x1000 | u32::from(route_id)));
    // An answer to a neighbour solicitation that the holder sent for a translated packet goes to the
    // VIP and is untracked: without it no first packet of a new neighbour leaves.
    let discovery = match family {
        Family::V4 => "",
        Family::V6 => "    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n",
    };
    format!(
        "table {ip} egress {{
  set vips {{ type {kind}; elements = {{ {vip} }}; }}
  set pods {{ type {kind}; flags interval; elements = {{ {subnet} }}; }}
  set cluster {{ type {kind}; flags interval; auto-merge; elements = {{ {subnet}, {services}, {nodes}, {special} }}; }}
  map pod_vip {{ type {kind} : {kind}; elements = {{ {pod_vip} }}; }}
  set mapped {{ type {kind}; elements = {{ {mapped} }}; }}
  map mark_vip {{ type mark : {kind}; elements = {{ {here} : {vip} }}; }}
  chain m_here {{ meta mark set meta mark & 0xffffef00 | {here}; }}
  chain m_away {{ meta mark set meta mark & 0xffffef00 | {away}; }}
  chain here {{
    {ip} saddr set ct original {ip} saddr
    ct mark set ct mark & 0xffffef00 | {here}
    goto m_here
  }}
  chain away {{
    {ip} saddr set ct original {ip} saddr
    ct mark set ct mark & 0xffffef00 | {away}
    goto m_away
  }}
  chain vip_in {{
    type filter hook prerouting priority mangle;
{discovery}    {ip} daddr @vips ct state new,invalid,untracked counter drop
  }}
  chain egress {{
    ct state invalid,untracked counter drop
    {ip} saddr set {ip} saddr map @pod_vip
    fib saddr type local {ip} saddr vmap {{ {vip} : goto here }}
    iifname eth0 counter drop
    {ip} saddr vmap {{ {vip} : goto away }}
    counter drop
  }}
  chain classify {{
    type filter hook prerouting priority dstnat + 1;
    ct state new {ip} daddr @mapped {ip} saddr != @cluster ct status & dnat == 0 counter drop
    ct direction reply accept
    ct mark & 0x10ff vmap {{ {here} : goto m_here, {away} : goto m_away }}
    {ip} saddr @mapped {ip} daddr != @cluster goto egress
    iifname eth0 {ip} saddr @pods {ip} daddr != @cluster counter drop
  }}
  chain nat_post {{
    type nat hook postrouting priority srcnat - 10;
    meta mark & 0x10ff == 0 accept
    meta mark & 0x1000 != 0 snat to {ip} saddr
    snat to meta mark & 0x10ff map @mark_vip
  }}
  chain guard {{
    type filter hook postrouting priority srcnat + 50;
    meta mark & 0x10ff == 0 accept
    {ip} saddr @vips fib saddr type local accept
    ct status & snat == 0 rt {ip} nexthop @vips accept
    counter drop
  }}
}}
"
    )
}
