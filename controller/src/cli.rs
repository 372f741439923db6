//! The command line: flags, their defaults, and what they have to mean before any work begins.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser};
use shared::flags::seconds;
use shared::telemetry::LogFormat;

use crate::leader::{InvalidTerms, Terms};

/// Turns Vips and Egresses into what agents read, and keeps agents and keepalived running.
///
/// Finds the API server as kubectl does, or in a pod by its service account. Runs until SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "controller", version, max_term_width = 100)]
pub struct Cli {
    /// The namespace whose Vips count, and of all that it writes: the one it runs in.
    #[arg(long, value_name = "NAMESPACE", default_value = "default", value_parser = name,
          env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9798", value_parser = endpoint,
          env = "EGRESS_LISTEN")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub lease: Lease,
    #[arg(
        long,
        value_name = "text|json",
        default_value = "text",
        env = "EGRESS_LOG_FORMAT",
        help = "How logs are written to standard error; EGRESS_LOG or RUST_LOG filter them"
    )]
    pub log_format: LogFormat,
}

/// Which of several replicas writes.
#[derive(Debug, Args)]
pub struct Lease {
    /// The name of the Lease that the writing replica holds.
    #[arg(long, value_name = "NAME", default_value = "egress-mapper", value_parser = name)]
    pub lease_name: String,
    /// What this replica calls itself, no other may; by default the host's name and the process id.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// After how long without a renewal another replica takes over: seconds, as 15 or 15s.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub lease_duration: Duration,
    /// After how long without a renewal a replica stops writing; less than the lease's duration.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub renew_deadline: Duration,
    /// How often the Lease is renewed, or looked at by the others.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub retry_period: Duration,
}

impl Lease {
    /// What the flags mean; an error when two replicas could write at once.
    pub fn terms(&self) -> Result<Terms, InvalidTerms> {
        Terms::new(self.lease_duration, self.renew_deadline, self.retry_period)
    }

    /// The name of this replica.
    pub fn identity(&self) -> String {
        let given = self.identity.clone().filter(|name| !name.is_empty());
        given.unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "use an address and a port, as 0.0.0.0:9798 or [::]:9798".to_owned())
}

/// A name of the API's; it becomes part of addresses there.
fn name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("use lower-case letters, digits, '-' and '.', as Kubernetes has it".to_owned())
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
    #[case("default", true)]
    #[case("egress-mapper.v2", true)]
    #[case("", false)]
    #[case("a/b", false)]
    #[case("-a", false)]
    #[case("Default", false)]
    fn names_are_those_of_the_api(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(name(text).is_ok(), valid);
    }

    #[test]
    fn the_default_terms_leave_no_room_for_two() {
        let cli = Cli::parse_from(["controller"]);
        assert!(cli.lease.terms().is_ok());
        let cli = Cli::parse_from(["controller", "--renew-deadline", "15s"]);
        assert_eq!(cli.lease.terms(), Err(InvalidTerms::Deadline));
    }
}
