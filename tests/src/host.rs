//! One machine of the laboratory: a network namespace with an address of each family.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command;
use crate::lab::Family;

/// Where `ip netns` keeps its namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A node, pod, router or host outside.
///
/// A cheap description: it does not keep the namespace alive, so what is asked of a host whose
/// [`Lab`](crate::Lab) is gone fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Short name in the laboratory, such as `n1`, `p1-2` or `outside`.
    pub name: String,
    /// Name of the network namespace, for `ip -n`.
    pub netns: String,
    /// The address others reach it by; of the router, its address on the LAN.
    pub v4: Ipv4Addr,
    /// As `v4`.
    pub v6: Ipv6Addr,
}

/// Counters of one namespace's TCP since it was made; see `/proc/net/snmp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments sent again (`RetransSegs`).
    pub retransmits: u64,
    /// Resets sent (`OutRsts`).
    pub resets_sent: u64,
    /// Established connections that were reset (`EstabResets`).
    pub connections_reset: u64,
}

impl Host {
    /// The address of that family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Path of the namespace's handle.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.netns)
    }

    /// Moves the calling thread, for the rest of its life, into this host's network.
    ///
    /// Children it starts and `/proc/sys/net` as it sees it are this host's too.
    pub fn join_network(&self) -> Result<()> {
        let path = self.netns_path();
        let handle =
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        setns(handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network of {}", self.name))
    }

    /// Calls `f` on a thread in this host's network and waits for it.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.join_network().map(|()| f()))
                .join()
                .map_err(|_| anyhow!("the thread in the network of {} panicked", self.name))?
        })
    }

    /// Runs a program on this host; see [`run`](crate::run).
    pub fn run<S: AsRef<str> + Sync>(&self, command: &[S]) -> Result<String> {
        self.run_with_input(command, "")
    }

    /// Runs a program on this host; see [`run_with_input`](crate::run_with_input).
    pub fn run_with_input<S: AsRef<str> + Sync>(
        &self,
        command: &[S],
        input: &str,
    ) -> Result<String> {
        self.enter(|| command::run_with_input(command, input))?
            .with_context(|| format!("on {}", self.name))
    }

    /// As [`Host::run`], with the words of `line` split at spaces.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Starts a program on this host and leaves it running.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.enter(|| command.spawn())?
            .with_context(|| format!("cannot start {command:?} on {}", self.name))
    }

    /// Writes a value below `/proc/sys`; `key` has slashes, as in `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(key, value))?
    }

    /// Reads a value below `/proc/sys`, without the line end.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let text = self
            .enter(|| fs::read_to_string(format!("/proc/sys/{key}")))?
            .with_context(|| format!("cannot read sysctl {key} on {}", self.name))?;
        Ok(text.trim_end().to_owned())
    }

    /// TCP counters of this host.
    pub fn tcp_counters(&self) -> Result<TcpCounters> {
        // `/proc/net` follows the main thread; a thread sees its own network in its own directory.
        let text = self
            .enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?
            .with_context(|| format!("cannot read the TCP counters of {}", self.name))?;
        let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (rows.next().unwrap_or(""), rows.next().unwrap_or(""));
        let value = |wanted: &str| {
            names
                .split(' ')
                .zip(values.split(' '))
                .find(|(name, _)| *name == wanted)
                .and_then(|(_, value)| value.parse().ok())
                .ok_or_else(|| anyhow!("/proc/net/snmp of {} has no {wanted}", self.name))
        };
        Ok(TcpCounters {
            retransmits: value("RetransSegs")?,
            resets_sent: value("OutRsts")?,
            connections_reset: value("EstabResets")?,
        })
    }
}

/// Writes a sysctl of the calling thread's network.
pub(crate) fn write_sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{key}"), value)
        .with_context(|| format!("cannot set sysctl {key} to {value}"))
}
