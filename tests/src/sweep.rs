//! Which namespaces are the laboratory's, and how they go away with all that runs in them.
//!
//! A name is `em<pid>x<n>-<host>`: the test process that made it, the how-many-th laboratory of that
//! process, the host. So tests that run at once do not meet, and what a killed run left is known.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::host::NETNS_DIR;

/// The beginning of the names of one laboratory's namespaces.
pub(crate) fn prefix(pid: u32, number: usize) -> String {
    format!("em{pid}x{number}-")
}

/// The process that made the namespace of that name; none when it is not the laboratory's.
fn owner(netns: &str) -> Option<u32> {
    let (pid, rest) = netns.strip_prefix("em")?.split_once('x')?;
    let (number, _) = rest.split_once('-')?;
    number.parse::<usize>().ok()?;
    pid.parse().ok()
}

/// Namespaces whose names begin with `prefix`.
pub fn leftovers_of(prefix: &str) -> Vec<String> {
    // The directory appears with the first namespace ever made.
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Removes the namespaces of test processes that are gone, and kills what still runs in them.
///
/// Returns the names it removed.
pub fn sweep() -> Result<Vec<String>> {
    let dead: Vec<String> = leftovers_of("em")
        .into_iter()
        .filter(|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
        .collect();
    remove(&dead)?;
    Ok(dead)
}

/// Kills what runs in the namespaces and removes them; goes on when one is gone already.
pub(crate) fn remove(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    kill_processes_in(names);
    let batch: Vec<String> = names.iter().map(|name| format!("netns delete {name}")).collect();
    let outcome = command::run_with_input(&["ip", "-force", "-batch", "-"], &batch.join("\n"));
    // Another test process may sweep at the same time; what counts is that they are gone.
    let exists = |name: &String| Path::new(NETNS_DIR).join(name).exists();
    if names.iter().any(exists) {
        outcome.map(drop).context("cannot remove network namespaces")?;
    }
    Ok(())
}

fn kill_processes_in(names: &[String]) {
    let inodes: HashSet<u64> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let network = fs::metadata(entry.path().join("ns/net"));
        if let (Some(pid), Ok(network)) = (pid, network)
            && inodes.contains(&network.ino())
        {
            // It may end by itself in between.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_names_of_the_laboratory_have_an_owner() {
        assert_eq!(owner("em42x0-n1"), Some(42));
        assert_eq!(owner("em42x0"), None);
        assert_eq!(owner("email-x1-n"), None);
        assert_eq!(owner("rs0"), None);
    }
}
