//! Who removes a test bed, whatever becomes of the tests that use it.
//!
//! A process of its own holds the reading end of a pipe. When the tests end, killed or not, the
//! kernel closes the other end; then the guard removes all that is named after it. So a test bed
//! may live in a `static`, which is never dropped.

use std::io::{Read, Write, stdin};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use crate::process::built;
use crate::sweep;

/// What the guard reads when it is to live on by itself.
const KEEP: u8 = b'k';

/// A guard process; when this is dropped, it has removed all that is named after it.
#[derive(Debug)]
pub(crate) struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
    kept: bool,
}

impl Guard {
    /// Starts the program `guard` that is built with the tests.
    pub(crate) fn start() -> Result<Self> {
        sweep::sweep_once();
        let mut process = Command::new(built("guard", "tests")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Not in the terminal's group: Ctrl-C ends the tests, not who cleans up after them.
            .process_group(0)
            .spawn()
            .context("cannot start the guard")?;
        let pipe = process.stdin.take();
        let guard = Self { process, pipe, kept: false };
        // A dead process may have had the same number.
        sweep::remove(&guard.prefix())?;
        Ok(guard)
    }

    /// The beginning of the names of all that is in its care.
    pub(crate) fn prefix(&self) -> String {
        sweep::prefix(self.process.id(), 0)
    }

    /// The directory for files, removed with the rest.
    pub(crate) fn files(&self) -> PathBuf {
        sweep::files_of(&self.prefix())
    }

    /// Lets all of it stay when the tests have ended; a SIGTERM to the process of the returned
    /// number removes it.
    pub(crate) fn keep(&mut self) -> Result<u32> {
        let pipe = self.pipe.as_mut().context("the guard has been told to clean up")?;
        pipe.write_all(&[KEEP]).context("cannot talk to the guard")?;
        self.kept = true;
        Ok(self.process.id())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if self.kept {
            return;
        }
        let status = self.process.wait();
        // A second panic would abort the test run and hide the first.
        assert!(
            status.as_ref().is_ok_and(process::ExitStatus::success) || thread::panicking(),
            "the guard could not remove the test bed: {status:?}"
        );
    }
}

/// What the guard process does.
pub fn guard() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::new(&signals).context("cannot wait for signals")?;
    let mut input = stdin();
    let mut kept = false;
    loop {
        let signal = PollFd::new(signals.as_fd(), PollFlags::POLLIN);
        let pipe = PollFd::new(input.as_fd(), PollFlags::POLLIN);
        let mut waited = [signal, pipe];
        let count = if kept { 1 } else { 2 };
        poll(&mut waited[..count], PollTimeout::NONE).context("cannot wait")?;
        if waited[0].any().unwrap_or(false) {
            break;
        }
        let mut word = [0];
        kept = input.read(&mut word)? == 1 && word == [KEEP];
        if !kept {
            break;
        }
    }
    sweep::remove(&sweep::prefix(process::id(), 0))
}
