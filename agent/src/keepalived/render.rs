//! Pure: keepalived's configuration, and what can be read back from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use shared::Vip;

use super::config::{Instance, Settings};
use super::priority::BASE;
use crate::node_facts::NodeFacts;

/// The file with the node's standing, in the directory of such files.
pub const STANDING: &str = "standing";

/// Not the text of the VIPs: what holds for all of them.
///
/// `dynamic_interfaces`: an interface may come later. `reload_check_config`: a reload of a bad
/// file would end keepalived and leave its VIPs where they are. `vrrp_higher_prio_send_advert`:
/// a node that slept takes its VIPs back with an announcement. One announcement at once, one a
/// second later, and one each ten seconds for neighbours that missed them.
const GLOBAL: &str = "    vrrp_version 3
    enable_script_security
    dynamic_interfaces
    reload_check_config
    vrrp_higher_prio_send_advert true
    vrrp_garp_master_delay 1
    vrrp_garp_master_repeat 1
    vrrp_garp_lower_prio_repeat 1
    vrrp_garp_lower_prio_delay 1
    vrrp_garp_master_refresh 10
";

/// The file with what a VIP's place adds, in the directory of such files.
pub fn file_of(vip: Vip) -> String {
    format!("vip-{}", vip.to_string().replace(':', "-"))
}

/// keepalived's configuration; none without any VIP, then it has nothing to do. The files that
/// priorities are made of are in `tracked`.
pub fn render(
    instances: &BTreeMap<Vip, Instance>,
    peers: Option<&BTreeSet<IpAddr>>,
    facts: &NodeFacts,
    settings: &Settings,
    tracked: &Path,
) -> Option<String> {
    let mut text = format!("global_defs {{\n{GLOBAL}");
    if settings.may_raise_priority {
        // Adverts are on time, also where all processors are busy.
        text.push_str("    vrrp_priority -20\n");
    }
    text.push_str("}\n");
    track_file(&mut text, "standing", &tracked.join(STANDING));
    for (vip, instance) in instances {
        track_file(&mut text, &format!("place_{vip}"), &tracked.join(file_of(*vip)));
        let unicast = peers.map(|all| Unicast::of(*vip, all, facts));
        write_instance(&mut text, *vip, instance, unicast.as_ref(), settings);
    }
    (!instances.is_empty()).then_some(text)
}

/// A file that says what to add to priorities.
fn track_file(text: &mut String, name: &str, path: &Path) {
    // Writing to a text does not fail.
    let _ =
        write!(text, "\ntrack_file {name} {{\n    file \"{}\"\n    weight 1\n}}\n", path.display());
}

/// From where to where adverts of a VIP's family go, one by one.
struct Unicast {
    from: Option<IpAddr>,
    to: Vec<IpAddr>,
}

impl Unicast {
    fn of(vip: Vip, all: &BTreeSet<IpAddr>, facts: &NodeFacts) -> Self {
        let is_own = |addr: &IpAddr| facts.addresses.iter().any(|address| address.addr == *addr);
        let all = all.iter().copied().filter(|addr| addr.is_ipv4() == vip.is_ipv4());
        let (own, others): (Vec<IpAddr>, Vec<IpAddr>) = all.partition(is_own);
        Self { from: own.first().copied(), to: others }
    }
}

fn write_instance(
    text: &mut String,
    vip: Vip,
    instance: &Instance,
    unicast: Option<&Unicast>,
    settings: &Settings,
) {
    let Instance { route_id, interface, place: _ } = instance;
    let length = if vip.is_ipv4() { 32 } else { 128 };
    let advert = settings.advert_interval.as_secs_f64();
    let _ = write!(
        text,
        "
vrrp_instance {vip} {{
    state BACKUP
    interface {interface}
    virtual_router_id {route_id}
    priority {BASE}
    advert_int {advert:.2}
    track_file {{
        standing
        place_{vip}
    }}
"
    );
    if let Some(Unicast { from, to }) = unicast {
        if let Some(from) = from {
            let _ = writeln!(text, "    unicast_src_ip {from}");
        }
        text.push_str("    unicast_peer {\n");
        for peer in to {
            let _ = writeln!(text, "        {peer}");
        }
        text.push_str("    }\n");
    }
    let _ = write!(
        text,
        "    virtual_ipaddress {{
        {vip}/{length} dev {interface}
    }}
}}
"
    );
}

/// The VIPs that a configuration of ours names.
pub fn vips_in(text: &str) -> BTreeSet<Vip> {
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("vrrp_instance ")?.strip_suffix(" {")?.parse().ok());
    names.collect()
}
