//! Mappings from a directory: one folder per object (`ConfigMap`), one file per key. Decides when changes are told;
//! touches nothing but its own thread, which watches and reads.
//!
//! Both ways of changing a folder are understood: kubelet's (the link `..data` is swapped, and with it every value)
//! and plain editing (files written, moved, linked, deleted). A key is told when its file is complete, never while it
//! is open for writing; what cannot be read is told as such and keeps its last value or, if it never had one, gets one
//! that no decoder takes. Names that start with a dot are
//! ignored, and so are folders within an object's folder. Links are followed. What is written through another name
//! (a link's target, a second hard link) is not noticed before the folder is read again.

mod file;
mod folder;
mod objects;
mod scan;
#[cfg(test)]
mod tests;
mod watches;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc;

pub use self::file::{MAX_VALUE, Unusable};
use self::objects::Objects;
use super::Batch;

/// Changes that follow each other within this time are told together ...
const QUIET: Duration = Duration::from_millis(2);
/// ... but none waits for others longer than this.
const SETTLE: Duration = Duration::from_millis(50);
/// How often to look whether the paths still lead to the watched folders.
const LOOK: Duration = Duration::from_secs(1);

/// Why a directory cannot be followed. Told by [`DirectorySource::next`] it may pass: another call tries again.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot watch {directory}: it does not exist; create it, or correct --mappings-dir")]
    NoDirectory { directory: PathBuf },
    #[error("cannot watch {directory}: it is not a directory; correct --mappings-dir")]
    NotADirectory { directory: PathBuf },
    #[error(
        "cannot watch {directory}: the agent may not read it; give its user read and search permission"
    )]
    NoAccess { directory: PathBuf },
    #[error(
        "cannot watch {directory}: this user's inotify watches are used up; raise the sysctl fs.inotify.max_user_watches"
    )]
    NoWatchLeft { directory: PathBuf },
    #[error(
        "cannot watch {directory}: this user's inotify instances or the process's open files are used up; raise the sysctl fs.inotify.max_user_instances, or the limit of open files"
    )]
    NoInstanceLeft { directory: PathBuf },
    #[error("cannot watch {directory}")]
    Watch { directory: PathBuf, source: io::Error },
    #[error("cannot watch {directory}: the thread that does has ended; restart the agent")]
    Ended { directory: PathBuf },
}

/// A directory of mappings, as a stream of changes. Dropping it ends its thread.
#[derive(Debug)]
pub struct DirectorySource {
    directory: PathBuf,
    batches: mpsc::UnboundedReceiver<Result<Batch, SourceError>>,
    demand: Arc<Demand>,
}

/// Tells the thread that somebody waits for a batch, or that nobody will any more. Without demand it only takes notes,
/// so a slow reader gets fewer and larger batches, and always the latest state.
#[derive(Debug)]
struct Demand {
    waiting: AtomicBool,
    bell: EventFd,
}

impl DirectorySource {
    /// Starts to follow `directory`. Only objects whose name is `wanted` are read.
    ///
    /// The directory has to exist now; if it goes later, its objects do, and it is waited for.
    pub fn open(
        directory: &Path,
        wanted: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Self, SourceError> {
        let watch = |source| SourceError::Watch { directory: directory.to_owned(), source };
        let directory = match directory.file_name() {
            Some(_) => std::path::absolute(directory),
            None => directory.canonicalize(),
        };
        let directory = directory.map_err(watch)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| SourceError::watch(&directory, errno))?;
        let demand = Arc::new(Demand { waiting: AtomicBool::new(false), bell });
        let objects = Objects::watch(directory.clone(), Box::new(wanted))?;
        let (sender, batches) = mpsc::unbounded_channel();
        let follower = Follower { objects, sender, demand: Arc::clone(&demand), first: true };
        let thread = thread::Builder::new().name("mappings-dir".to_owned());
        thread.spawn(|| follower.run()).map_err(watch)?;
        Ok(Self { directory, batches, demand })
    }

    /// Waits for changes. The first batch has the whole content of every wanted object that is there, if any; later
    /// ones what changed, which is there within milliseconds.
    ///
    /// Cancel safe: a batch that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Batch, SourceError> {
        if let Ok(batch) = self.batches.try_recv() {
            return batch;
        }
        self.demand.waiting.store(true, Ordering::SeqCst);
        self.demand.ring();
        let ended = || Err(SourceError::Ended { directory: self.directory.clone() });
        self.batches.recv().await.unwrap_or_else(ended)
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        self.batches.close();
        self.demand.ring();
    }
}

impl Demand {
    fn ring(&self) {
        let _rung_already = self.bell.write(1);
    }
}

/// The thread: waits, takes notes, reads and sends on demand.
struct Follower {
    objects: Objects,
    sender: mpsc::UnboundedSender<Result<Batch, SourceError>>,
    demand: Arc<Demand>,
    first: bool,
}

impl Follower {
    fn run(mut self) {
        let mut look_at = Instant::now() + LOOK;
        while !self.sender.is_closed() {
            if let Err(error) = self.turn(&mut look_at) {
                self.demand.waiting.store(false, Ordering::SeqCst);
                let _nobody_listens = self.sender.send(Err(error));
            }
        }
    }

    fn turn(&mut self, look_at: &mut Instant) -> Result<(), SourceError> {
        let waiting = self.demand.waiting.load(Ordering::SeqCst);
        // without demand nothing is read, so nothing is due
        let due = self.objects.due().filter(|_| waiting).unwrap_or(*look_at).min(*look_at);
        self.wait(due);
        let now = Instant::now();
        if now >= *look_at {
            self.objects.check_identities();
            *look_at = now + LOOK;
        }
        let news = self.objects.drain(now + SETTLE)?;
        if !self.demand.waiting.load(Ordering::SeqCst) {
            return Ok(());
        }
        if news && !self.first {
            self.settle(now)?;
        }
        if self.objects.due().is_some_and(|due| due <= Instant::now()) {
            let batch = self.objects.collect()?;
            if self.first || !batch.changes.is_empty() || !batch.unreadable.is_empty() {
                self.first = false;
                self.demand.waiting.store(false, Ordering::SeqCst);
                let _nobody_listens = self.sender.send(Ok(batch));
            }
        }
        Ok(())
    }

    /// Waits until nothing has happened for a while.
    fn settle(&mut self, since: Instant) -> Result<(), SourceError> {
        let end = since + SETTLE;
        let mut quiet = Instant::now() + QUIET;
        while Instant::now() < quiet.min(end) {
            self.wait(quiet.min(end));
            if self.objects.drain(end)? {
                quiet = Instant::now() + QUIET;
            }
        }
        Ok(())
    }

    /// Waits for events, the bell or `until`.
    fn wait(&self, until: Instant) {
        let timeout = until.saturating_duration_since(Instant::now());
        let mut sources = [
            PollFd::new(self.objects.descriptor(), PollFlags::POLLIN),
            PollFd::new(std::os::fd::AsFd::as_fd(&self.demand.bell), PollFlags::POLLIN),
        ];
        let _woken_early = ppoll(&mut sources, Some(TimeSpec::from_duration(timeout)), None);
        let _not_rung = self.demand.bell.read();
    }
}

impl SourceError {
    fn watch(directory: &Path, errno: Errno) -> Self {
        let directory = directory.to_owned();
        match errno {
            Errno::ENOENT | Errno::ELOOP => Self::NoDirectory { directory },
            Errno::ENOTDIR => Self::NotADirectory { directory },
            Errno::EACCES | Errno::EPERM => Self::NoAccess { directory },
            Errno::ENOSPC => Self::NoWatchLeft { directory },
            Errno::EMFILE | Errno::ENFILE => Self::NoInstanceLeft { directory },
            errno => Self::Watch { directory, source: errno.into() },
        }
    }
}
