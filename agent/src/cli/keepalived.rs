//! The flags of `agent keepalived`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use shared::config_map::VIPS;

use super::{endpoint, given, host_name};
use crate::keepalived::config;

/// How to run keepalived.
#[derive(Debug, Args)]
pub struct Keepalived {
    /// Where VIPs come from: the ConfigMap vip-configmap and its siblings in that namespace.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = namespace_of_vips,
          conflicts_with = "vips_dir")]
    pub services_configmap: Option<String>,
    /// Where VIPs come from without an API server: one sub-directory per ConfigMap, one file per key.
    #[arg(id = "vips_dir", long = "mappings-dir", value_name = "DIR", env = "EGRESS_MAPPINGS_DIR")]
    pub mappings_dir: Option<PathBuf>,
    /// The name of this node, as the cluster calls it; by default the host's name.
    #[arg(id = "vips_node", long = "node-name", value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The interface of every VIP; by default the one with the route to the VIP's subnet.
    #[arg(id = "vips_interface", long = "interface", value_name = "IF", env = "INTERFACE_NAME")]
    pub interface: Option<String>,
    /// Between two adverts, in milliseconds: tens, from 10 to 40950. By default 100 where keepalived
    /// may raise its priority (capability `SYS_NICE`), else 200: there a busy node would be late.
    #[arg(long, value_name = "N", value_parser = advert_interval, env = "ADVERT_INTERVAL_MS")]
    pub advert_interval_ms: Option<Duration>,
    /// To whom adverts are sent: to a multicast group, or, where the network has none, to each of the
    /// gateway-addresses of egress-networks. All nodes must do the same.
    #[arg(long, value_enum, value_name = "HOW", default_value = "multicast", env = "ADVERTS")]
    pub adverts: Adverts,
    /// All nodes, for adverts that are sent to each of them, whatever egress-networks says.
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', env = "UNICAST_PEERS")]
    pub unicast_peers: Vec<IpAddr>,
    /// Where the agent of this node says whether it is ready; while it is not, VIPs go to other nodes.
    /// Empty: it always is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9797", value_parser = agent_url,
          env = "AGENT_URL")]
    pub agent_url: AgentUrl,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(id = "vips_listen", long = "listen", value_name = "ADDRESS:PORT", default_value = "[::]:9799",
          value_parser = endpoint)]
    pub listen: SocketAddr,
    /// The keepalived program.
    #[arg(long, value_name = "PROGRAM", default_value = "keepalived")]
    pub keepalived: String,
    /// Where keepalived's configuration and process numbers are written.
    #[arg(long, value_name = "DIR", default_value = "/run/egress-keepalived")]
    pub run_dir: PathBuf,
}

/// Between two adverts, where they are on time also on a busy node.
const FAST_ADVERTS: Duration = Duration::from_millis(100);
/// Between two adverts, elsewhere.
const SLOW_ADVERTS: Duration = Duration::from_millis(200);

/// To whom adverts are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Adverts {
    Multicast,
    Unicast,
}

/// Where the agent of this node is asked, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentUrl(pub Option<SocketAddr>);

impl Keepalived {
    /// What the flags mean, given whether this process may raise the priority of its children.
    pub fn settings(&self, may_raise_priority: bool) -> config::Settings {
        let default = if may_raise_priority { FAST_ADVERTS } else { SLOW_ADVERTS };
        config::Settings {
            node: given(self.node_name.as_ref()).unwrap_or_else(host_name),
            interface: given(self.interface.as_ref()),
            advert_interval: self.advert_interval_ms.unwrap_or(default),
            may_raise_priority,
            adverts: match self.adverts {
                _ if !self.unicast_peers.is_empty() => {
                    config::Adverts::To(self.unicast_peers.clone())
                }
                Adverts::Multicast => config::Adverts::Multicast,
                Adverts::Unicast => config::Adverts::ToGateways,
            },
        }
    }
}

fn agent_url(text: &str) -> Result<AgentUrl, String> {
    if text.is_empty() {
        return Ok(AgentUrl(None));
    }
    let addr = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let addr = addr.and_then(|addr| addr.parse().ok());
    addr.map(|addr| AgentUrl(Some(addr))).ok_or_else(|| {
        "use http://, an address and a port, as http://127.0.0.1:9797, or nothing".to_owned()
    })
}

/// VRRP counts in hundredths of a second, with twelve bits.
fn advert_interval(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(millis @ 10..=40950) if millis % 10 == 0 => Ok(Duration::from_millis(millis)),
        _ => Err("use tens of milliseconds from 10 to 40950, such as 200".to_owned()),
    }
}

/// The namespace: the object's name is known.
fn namespace_of_vips(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, VIPS)) if !namespace.is_empty() => Ok(namespace.to_owned()),
        _ => Err(format!("use a namespace and the name {VIPS}, as default/{VIPS}")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("200", Some(200))]
    #[case("10", Some(10))]
    #[case("40950", Some(40950))]
    #[case("0", None)]
    #[case("205", None)]
    #[case("41000", None)]
    #[case("0.2", None)]
    fn an_advert_interval_is_what_vrrp_can_say(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(advert_interval(text).ok(), expected.map(Duration::from_millis));
    }

    #[rstest]
    #[case("http://127.0.0.1:9797", Some("127.0.0.1:9797"))]
    #[case("http://[::1]:9797/", Some("[::1]:9797"))]
    #[case("127.0.0.1:9797", None)]
    #[case("http://localhost:9797", None)]
    fn the_agent_is_asked_at_an_address(#[case] text: &str, #[case] addr: Option<&str>) {
        let expected = addr.map(|addr| AgentUrl(Some(addr.parse().unwrap())));
        assert_eq!(agent_url(text).ok(), expected);
        assert_eq!(agent_url(""), Ok(AgentUrl(None)));
    }

    #[rstest]
    #[case("default/vip-configmap", Some("default"))]
    #[case("vip-configmap", None)]
    #[case("/vip-configmap", None)]
    #[case("default/other", None)]
    fn the_object_of_vips_is_known(#[case] text: &str, #[case] namespace: Option<&str>) {
        assert_eq!(namespace_of_vips(text).ok().as_deref(), namespace);
    }
}
