//! Which processes are a keepalived of ours, by the configuration they were started with.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// The process whose number is in that file, when it is alive and was started with `configuration`.
///
/// A file outlives its process, and the number may be another's by now.
pub(super) fn alive(pid_file: &Path, configuration: &Path) -> Option<Pid> {
    let number: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let wanted = configuration.as_os_str().as_encoded_bytes();
    let ours = command.split(|byte| *byte == 0).any(|argument| argument == wanted);
    (ours && state(number) != Some('Z')).then(|| Pid::from_raw(number))
}

/// Whether it runs; not when somebody has stopped it (SIGSTOP, a debugger).
pub(super) fn runs(pid: Pid) -> bool {
    state(pid.as_raw()).is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// Whether it has not ended.
pub(super) fn runs_or_is_stopped(pid: Pid) -> bool {
    state(pid.as_raw()).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn state(number: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // `7 (a name with ) in it) S 1 …`
    text.rsplit_once(") ")?.1.chars().next()
}

/// Ends a process that nobody waits for; it may have ended by itself.
pub(super) fn end(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
    // Ours to wait for when we are process 1 of a container.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}
