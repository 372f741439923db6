//! The command line: flags, their defaults, and what they have to mean before any work begins.

mod keepalived;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shared::flags::seconds;
use shared::telemetry::LogFormat;

pub use self::keepalived::{Adverts, AgentUrl, Keepalived};
use crate::desired::Settings;
use crate::direct::Proven;
use crate::routing::ownership::{DEFAULT_PROTOCOL, DEFAULT_RULE_BASE, DEFAULT_TABLE_BASE};
use crate::routing::{InvalidOwnership, MarkMask, Ownership};
use crate::ruleset::TableNames;

/// Programs this node's kernel so that mapped pods leave with their VIP, or not at all.
///
/// Runs until SIGTERM and leaves the rules in place: they work without it.
#[derive(Debug, Parser)]
#[command(name = "agent", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub action: Action,
    #[command(flatten)]
    pub run: Run,
    #[command(flatten)]
    pub kernel: Kernel,
    #[arg(
        long,
        value_name = "text|json",
        default_value = "text",
        env = "EGRESS_LOG_FORMAT",
        help = "How logs are written to standard error; EGRESS_LOG or RUST_LOG filter them"
    )]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Another program than the agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run keepalived, which decides who of the nodes holds each VIP.
    Keepalived(Keepalived),
}

/// What to do instead of running.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Action {
    /// Print what this node's kernel holds of ours, and for whom; needs no running agent.
    #[arg(long)]
    pub dump_rules: bool,
    /// Remove everything of ours from this node, and nothing of others; stop the agent first.
    #[arg(long)]
    pub cleanup: bool,
}

/// How to run.
#[derive(Debug, Args)]
pub struct Run {
    /// Where mappings come from: one sub-directory per ConfigMap, one file per key.
    ///
    /// Without it they come from the API server: in a pod, or with KUBECONFIG set.
    #[arg(long, value_name = "DIR", env = "EGRESS_MAPPINGS_DIR")]
    pub mappings_dir: Option<PathBuf>,
    /// The namespace of the ConfigMaps, and of the agent's DaemonSet; "default" if none is given.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// The agent's DaemonSet: when it is being deleted, SIGTERM has everything of ours removed.
    #[arg(long, value_name = "NAME", default_value = "kube-egress")]
    pub daemon_set: String,
    /// The name of this node, as the cluster calls it; by default the host's name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Where CNI plugins' results are kept: tells addresses of pods before they start. Empty: nowhere.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/cni/results",
        env = "CNI_RESULTS_DIR"
    )]
    pub cni_results_dir: String,
    /// Hold pods here until the controller has said that no VIP is for them.
    ///
    /// That is, new connections of theirs to outside; pods that run when this begins go on.
    ///
    /// By default only while a pod with a VIP is expected, and only pods that CNI results do not tell of.
    #[arg(long, env = "STRICT_PODS")]
    pub strict_pods: bool,
    /// How often the whole kernel state is looked at, without any notice: seconds, as 5 or 5s.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds,
          allow_negative_numbers = true, env = "UPDATE_INTERVAL")]
    pub update_interval: Duration,
    /// Who is pinged to prove the direct path of VIPs; by default the gateway.
    ///
    /// One address for each family, before this node uses its blocks and now and then.
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', value_parser = target,
          env = "PROVE_WITH")]
    pub prove_with: Vec<IpAddr>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9797", value_parser = endpoint,
          env = "EGRESS_LISTEN")]
    pub listen: SocketAddr,
    /// Take the direct path of VIPs without proof that answers come back here.
    ///
    /// Where the network is known to drop no frame for its source address, and nothing answers pings.
    #[arg(long, env = "ASSUME_DIRECT")]
    pub assume_direct: bool,
    /// How --dump-rules prints.
    #[arg(long, value_enum, default_value_t = Output::Text, requires = "dump_rules")]
    pub output: Output,
}

/// Which things of the kernel's are ours. Changing one needs a --cleanup with the old value first.
#[derive(Debug, Args)]
pub struct Kernel {
    /// The uplink of every VIP; by default the interface with the route to the VIP's subnet.
    #[arg(long, value_name = "IF", env = "INTERFACE_NAME")]
    pub interface: Option<String>,
    /// The address of the API server's Service, which unknown pods reach, held or not.
    #[arg(long, value_name = "ADDRESS", env = "KUBERNETES_SERVICE_HOST")]
    pub api_server: Option<String>,
    /// The main nft table (family inet); the guard table is called the same with -guard.
    ///
    /// So is a table of family netdev, where VIPs take the direct path.
    #[arg(long, value_name = "NAME", default_value = "egress", value_parser = table_name)]
    pub nft_table: String,
    /// The nft program.
    #[arg(long, value_name = "PROGRAM", default_value = "nft")]
    pub nft: String,
    /// The mark bits that are ours: eight in a row for the route id, and two more.
    ///
    /// Nine will do where no VIP is to take the direct path.
    #[arg(long, value_name = "MASK", default_value_t = MarkMask::default(),
          allow_negative_numbers = true)]
    pub mark_mask: MarkMask,
    /// Priorities of policy rules are this number plus the route id, from 0 to 253.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_RULE_BASE, value_parser = number,
          allow_negative_numbers = true)]
    pub rule_base: u32,
    /// Routing tables are this number plus the route id.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_TABLE_BASE, value_parser = number,
          allow_negative_numbers = true)]
    pub table_base: u32,
    /// The protocol number that rules and routes of ours carry.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_PROTOCOL, value_parser = small_number,
          allow_negative_numbers = true)]
    pub route_protocol: u8,
}

/// How `--dump-rules` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    Text,
    /// For a program: one object.
    Json,
}

impl Run {
    /// The node's name: as given, else the host's.
    pub fn node_name(&self) -> String {
        given(self.node_name.as_ref()).unwrap_or_else(host_name)
    }

    /// The namespace on the API server.
    pub fn namespace(&self) -> String {
        given(self.namespace.as_ref()).unwrap_or_else(|| "default".to_owned())
    }
}

fn host_name() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.unwrap_or_else(|| "unknown".to_owned())
}

impl Cli {
    /// What the flags mean; an error when numbers clash with the kernel's own.
    pub fn settings(&self) -> Result<Settings, InvalidOwnership> {
        let Kernel { route_protocol, rule_base, table_base, mark_mask, interface, .. } =
            &self.kernel;
        Ok(Settings {
            ownership: Ownership::new(*route_protocol, *rule_base, *table_base, *mark_mask)?,
            interface: given(interface.as_ref()),
            node: self.run.node_name(),
            proven: if self.run.assume_direct { Proven::Assumed } else { Proven::default() },
            api_server: self.kernel.api_server.as_ref().and_then(|addr| addr.parse().ok()),
            full: BTreeSet::new(),
        })
    }
}

impl Kernel {
    /// What both tables are called.
    pub fn tables(&self) -> TableNames {
        TableNames::of(&self.nft_table)
    }
}

/// Nothing where the text is empty: manifests set variables that have no value.
fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("use a whole number from 0 to {}", u32::MAX))
}

fn small_number(text: &str) -> Result<u8, String> {
    text.parse().map_err(|_| format!("use a whole number from 0 to {}", u8::MAX))
}

fn target(text: &str) -> Result<IpAddr, String> {
    let addr: Option<IpAddr> = text.parse().ok();
    let of_one = addr.filter(|addr| {
        !addr.is_multicast() && !addr.is_unspecified() && !addr.is_loopback() && !is_broadcast(addr)
    });
    of_one.ok_or_else(|| "use addresses of other machines, as 192.0.2.1,2001:db8::1".to_owned())
}

const fn is_broadcast(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V4(addr) if addr.is_broadcast())
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "use an address and a port, as 0.0.0.0:9797 or [::]:9797".to_owned())
}

/// nft's own rule for identifiers, less the slash and the backslash that it would accept.
fn table_name(text: &str) -> Result<String, String> {
    let mut characters = text.chars();
    let valid = characters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && characters.all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && text.len() <= 64;
    if valid {
        Ok(text.to_owned())
    } else {
        Err("use a letter, then letters, digits, '_', '-' or '.', at most 64 in all".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[rstest]
    #[case("192.0.2.1", true)]
    #[case("fe80::1", true)]
    #[case("224.0.0.1", false)]
    #[case("255.255.255.255", false)]
    #[case("127.0.0.1", false)]
    #[case("::", false)]
    #[case("router", false)]
    fn a_target_of_probes_is_one_machine(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(target(text).is_ok(), valid);
    }

    #[rstest]
    #[case("egress", true)]
    #[case("e.1-x_Y", true)]
    #[case("1egress", false)]
    #[case("e gress", false)]
    #[case("e;flush", false)]
    #[case("", false)]
    fn a_table_name_is_an_identifier_of_nft(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(table_name(text).is_ok(), valid);
    }
}
