//! Reads the kernel settings that our packets depend on, and loosens one of them.
//!
//! Writes `rp_filter` of the interfaces it is told, never from or to anything but 1 and 2. All
//! else is only read. `/proc/sys/net` is that of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::routing::Family;

/// What could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error("cannot set {path} to {value}")]
    Write { path: String, value: u8, source: io::Error },
    #[error("cannot understand {path}: {text:?}")]
    Parse { path: String, text: String },
    #[error("cannot look up settings of {name:?}: no interface has such a name")]
    InterfaceName { name: String },
}

/// How an interface treats packets whose source it would not route back the way they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReversePath {
    /// 0: takes them.
    Off,
    /// 1: drops them, and with them packets of remote pods at the node that holds their VIP.
    Strict,
    /// 2: takes them when the source can be reached by any interface.
    Loose,
}

impl ReversePath {
    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Off,
            1 => Self::Strict,
            _ => Self::Loose,
        }
    }
}

/// What is in force on an interface: the greater of its own value and that of `all`.
pub fn reverse_path(interface: &str) -> Result<ReversePath, SysctlError> {
    let own = read_number(&rp_filter_of(interface)?)?;
    let all = read_number(Path::new("/proc/sys/net/ipv4/conf/all/rp_filter"))?;
    Ok(ReversePath::from_number(own.max(all)))
}

/// Makes an interface that is strict loose, and leaves any other alone. Whether it was strict.
pub fn loosen(interface: &str) -> Result<bool, SysctlError> {
    if reverse_path(interface)? != ReversePath::Strict {
        return Ok(false);
    }
    let path = rp_filter_of(interface)?;
    // A container's own /proc/sys is read-only; its DaemonSet mounts the same settings there too.
    let mounted = Path::new("/host").join(path.strip_prefix("/").unwrap_or(&path));
    let written = fs::write(&path, "2");
    written
        .or_else(|error| fs::write(mounted, "2").map_err(|_| error))
        .map_err(|source| SysctlError::Write { path: text(&path), value: 2, source })?;
    Ok(true)
}

/// Whether the node forwards packets of a family at all. Not when the kernel lacks the family.
pub fn forwards(family: Family) -> Result<bool, SysctlError> {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    Ok(read_if_there(Path::new(path))?.is_some_and(|number| number != 0))
}

/// Whether connection tracking takes up a TCP connection in the middle, as it must for sessions to
/// survive the move of a VIP. `None` while connection tracking is not in use.
pub fn picks_up_tcp() -> Result<Option<bool>, SysctlError> {
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_loose");
    Ok(read_if_there(path)?.map(|number| number != 0))
}

fn rp_filter_of(interface: &str) -> Result<PathBuf, SysctlError> {
    if !is_interface_name(interface) {
        return Err(SysctlError::InterfaceName { name: interface.to_owned() });
    }
    Ok(["/proc/sys/net/ipv4/conf", interface, "rp_filter"].iter().collect())
}

/// As the kernel has it (`dev_valid_name`), less the two names that are settings of their own.
fn is_interface_name(name: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    (1..16).contains(&name.len())
        && !name.contains(odd)
        && !matches!(name, "." | ".." | "all" | "default")
}

fn read_if_there(path: &Path) -> Result<Option<u8>, SysctlError> {
    match read_number(path) {
        Err(SysctlError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn read_number(path: &Path) -> Result<u8, SysctlError> {
    let found = fs::read_to_string(path)
        .map_err(|source| SysctlError::Read { path: text(path), source })?;
    found
        .trim()
        .parse()
        .map_err(|_| SysctlError::Parse { path: text(path), text: found.trim().to_owned() })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::kernel::scratch_netns::{in_scratch_netns, run};

    fn set(name: &str, value: &str) {
        fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    }

    #[test]
    fn strict_interfaces_are_loosened_and_others_left_alone() {
        in_scratch_netns(|| async {
            run("ip link add eth0.5 type veth peer name right");
            for (all, own, effective, loosened, then) in [
                ("0", "0", ReversePath::Off, false, "0"),
                ("1", "0", ReversePath::Strict, true, "2"),
                ("0", "1", ReversePath::Strict, true, "2"),
                ("1", "1", ReversePath::Strict, true, "2"),
                ("2", "1", ReversePath::Loose, false, "1"),
                ("1", "2", ReversePath::Loose, false, "2"),
            ] {
                set("ipv4/conf/all/rp_filter", all);
                set("ipv4/conf/eth0.5/rp_filter", own);
                assert_eq!(reverse_path("eth0.5").unwrap(), effective);
                assert_eq!(loosen("eth0.5").unwrap(), loosened);
                assert!(!loosen("eth0.5").unwrap());
                let path = "/proc/sys/net/ipv4/conf/eth0.5/rp_filter";
                assert_eq!(fs::read_to_string(path).unwrap().trim(), then);
                let path = "/proc/sys/net/ipv4/conf/all/rp_filter";
                assert_eq!(fs::read_to_string(path).unwrap().trim(), all);
            }
        });
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case("../../ipv4")]
    #[case("/etc/passwd")]
    #[case("a/b")]
    #[case("a b")]
    #[case("a:1")]
    #[case("all")]
    #[case("default")]
    #[case("sixteen_letters_")]
    fn what_no_interface_can_be_called_is_refused(#[case] name: &str) {
        for outcome in [reverse_path(name).map(|_| ()), loosen(name).map(|_| ())] {
            assert!(matches!(outcome, Err(SysctlError::InterfaceName { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn an_interface_that_is_gone_is_an_error() {
        in_scratch_netns(|| async {
            assert!(matches!(loosen("eth9"), Err(SysctlError::Read { .. })));
        });
    }

    #[test]
    fn forwarding_and_tracking_are_read_in_the_namespace() {
        in_scratch_netns(|| async {
            for (family, name) in
                [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")]
            {
                for (value, on) in [("1", true), ("0", false)] {
                    set(name, value);
                    assert_eq!(forwards(family).unwrap(), on);
                }
            }
            for (value, on) in [("0", false), ("1", true)] {
                set("netfilter/nf_conntrack_tcp_loose", value);
                assert_eq!(picks_up_tcp().unwrap(), Some(on));
            }
        });
    }
}
