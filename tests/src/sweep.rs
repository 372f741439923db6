//! What on this machine is a laboratory's or a test bed's, and how it goes away with all that runs
//! in it: network namespaces, processes, control groups, files.
//!
//! A name is `em<pid>x<n>-<host>`: the process that owns it, the how-many-th laboratory of that
//! process, the host. So tests that run at once do not meet, and what a killed run left is known.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::host::NETNS_DIR;
use crate::wait::wait_until;

/// Where the directories with the files of test beds are.
const FILES_DIR: &str = "/var/tmp";
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// The beginning of the names of one laboratory's namespaces.
pub(crate) fn prefix(pid: u32, number: usize) -> String {
    format!("em{pid}x{number}-")
}

/// The directory for the files of the test bed of that prefix.
pub(crate) fn files_of(prefix: &str) -> PathBuf {
    Path::new(FILES_DIR).join(format!("{prefix}files"))
}

/// The process that owns what has that name, and the prefix; none when it is not the laboratory's.
fn owner(name: &str) -> Option<(u32, &str)> {
    let (pid, rest) = name.strip_prefix("em")?.split_once('x')?;
    let (number, host) = rest.split_once('-')?;
    number.parse::<usize>().ok()?;
    Some((pid.parse().ok()?, &name[..name.len() - host.len()]))
}

/// Namespaces, control groups and directories whose names begin with `prefix`.
pub fn leftovers_of(prefix: &str) -> Vec<String> {
    let mut names = names_in(Path::new(NETNS_DIR), prefix);
    let groups = hierarchies().into_iter().chain([PathBuf::from(FILES_DIR)]);
    names.extend(groups.flat_map(|directory| names_in(&directory, prefix)));
    names.sort();
    names.dedup();
    names
}

fn names_in(directory: &Path, prefix: &str) -> Vec<String> {
    // The directory of namespaces appears with the first one ever made.
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Removes what belonged to processes that are gone, and kills what still runs there.
///
/// Returns the names of what it removed.
pub fn sweep() -> Result<Vec<String>> {
    let mut dead = leftovers_of("em");
    dead.retain(|name| owner(name).is_some_and(|(pid, _)| !runs(pid)));
    let prefixes: BTreeSet<&str> =
        dead.iter().filter_map(|name| owner(name)).map(|(_, prefix)| prefix).collect();
    // One that cannot be removed does not keep the others from going.
    let outcomes: Vec<Result<()>> = prefixes.into_iter().map(remove).collect();
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(dead)
}

/// Whether the process runs; one that has ended may be listed until its parent asks for its status.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before is in parentheses and may have any in it.
    let state = status.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// As [`sweep`], the first time a process calls it; later calls do nothing.
pub(crate) fn sweep_once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        // A leftover does not disturb anybody else's; the next run tries again.
        let _ = sweep();
    });
}

/// Kills what runs in the namespaces of that prefix and removes all that is named so; goes on when
/// something is gone already.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    let namespaces = names_in(Path::new(NETNS_DIR), prefix);
    if !namespaces.is_empty() {
        let all_ended = wait_until(GONE_WITHIN, || kill_processes_in(&namespaces) == 0);
        ensure!(all_ended, "processes in {prefix}* do not end");
        remove_namespaces(&namespaces)?;
    }
    for group in hierarchies().iter().flat_map(|hierarchy| {
        names_in(hierarchy, prefix).into_iter().map(|name| hierarchy.join(name))
    }) {
        // It is busy until the last process in it is gone wholly.
        let removed = wait_until(GONE_WITHIN, || remove_group(&group));
        ensure!(removed, "cannot remove the control group {}", group.display());
    }
    let files = files_of(prefix);
    if files.exists() {
        let removed =
            wait_until(GONE_WITHIN, || fs::remove_dir_all(&files).is_ok() || !files.exists());
        ensure!(removed, "cannot remove {}", files.display());
    }
    Ok(())
}

fn remove_namespaces(names: &[String]) -> Result<()> {
    let batch: Vec<String> = names.iter().map(|name| format!("netns delete {name}")).collect();
    let outcome = command::run_with_input(&["ip", "-force", "-batch", "-"], &batch.join("\n"));
    // Another test process may sweep at the same time; what counts is that they are gone.
    let exists = |name: &String| Path::new(NETNS_DIR).join(name).exists();
    if names.iter().any(exists) {
        outcome.map(drop).context("cannot remove network namespaces")?;
    }
    Ok(())
}

/// Says how many there were.
fn kill_processes_in(namespaces: &[String]) -> usize {
    let inodes: HashSet<u64> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let mut found = 0;
    for entry in processes.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let network = fs::metadata(entry.path().join("ns/net"));
        if let (Some(pid), Ok(network)) = (pid, network)
            && inodes.contains(&network.ino())
        {
            found += 1;
            // It may end by itself in between.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    found
}

/// The roots of all control group hierarchies: one in version 2, several in version 1.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place))
        })
        .collect()
}

/// True when it is gone.
fn remove_group(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};
    use std::time::Duration;

    use super::{owner, runs};
    use crate::wait::eventually;

    #[test]
    fn only_names_of_the_laboratory_have_an_owner() {
        assert_eq!(owner("em42x0-n1"), Some((42, "em42x0-")));
        assert_eq!(owner("em42x0"), None);
        assert_eq!(owner("email-x1-n"), None);
        assert_eq!(owner("rs0"), None);
    }
    #[test]
    fn who_has_ended_does_not_run_though_nobody_asked_for_its_status() -> std::io::Result<()> {
        assert!(runs(id()));
        let mut child = Command::new("true").spawn()?;
        eventually(Duration::from_secs(5), || !runs(child.id()));
        child.wait()?;
        assert!(!runs(child.id()));
        Ok(())
    }
}
