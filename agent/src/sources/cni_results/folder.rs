//! Watches one directory and reads its files, whatever anybody has put there.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::cached::{self, Attachment};

/// The largest file that is read, in bytes; usual ones have some thousand.
pub const MAX_SIZE: u64 = 1024 * 1024;
/// How many files are read when the directory is; a node has some hundred pods.
pub const MAX_FILES: usize = 10_000;

/// Why a file is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ignored {
    /// It is no JSON, or not complete.
    Broken,
    /// It is something else, or of an older version.
    Foreign,
    /// It is larger than [`MAX_SIZE`].
    TooLarge,
    /// It is a link, a pipe, a directory.
    NotAFile,
    /// It cannot be opened or read.
    Unreadable,
    /// There are more than [`MAX_FILES`].
    TooMany,
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Attachment(Attachment),
    Gone,
    Ignored(Ignored),
}

/// An open directory.
pub(super) struct Folder {
    directory: File,
    inotify: Inotify,
    /// The same, to be waited for.
    news: AsyncFd<OwnedFd>,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Folder").field(&self.directory).finish()
    }
}

impl Folder {
    /// Opens it and reads every file.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<(OsString, Read)>)> {
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        // Before it is listed: what comes meanwhile is read twice.
        inotify.add_watch(&own_path(&directory), changes)?;
        let news = waited_for(inotify.as_fd().try_clone_to_owned()?)?;
        let folder = Self { directory, inotify, news };
        let read = folder.read_all()?;
        Ok((folder, read))
    }

    /// Waits for changes and reads what changed. An error means that something was missed.
    ///
    /// Cancel safe.
    pub(super) async fn changed(&mut self) -> io::Result<Vec<(OsString, Read)>> {
        loop {
            let mut ready = self.news.readable().await?;
            match self.inotify.read_events() {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
                Ok(events) => {
                    let lost = AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_IGNORED;
                    if events.iter().any(|event| event.mask.intersects(lost)) {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    let names = events.into_iter().filter_map(|event| event.name);
                    let names: BTreeSet<OsString> = names.filter(|name| is_visible(name)).collect();
                    return Ok(names.into_iter().map(|name| self.read_one(name)).collect());
                }
            }
        }
    }

    /// Whether that path leads to it.
    pub(super) fn is(&self, path: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let own = self.directory.metadata().map(identity).ok();
        own.is_some() && std::fs::metadata(path).map(identity).ok() == own
    }

    fn read_all(&self) -> io::Result<Vec<(OsString, Read)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(own_path(&self.directory))? {
            let name = entry?.file_name();
            if !is_visible(&name) {
                continue;
            }
            if all.len() == MAX_FILES {
                all.push((name, Read::Ignored(Ignored::TooMany)));
                break;
            }
            all.push(self.read_one(name));
        }
        Ok(all)
    }

    fn read_one(&self, name: OsString) -> (OsString, Read) {
        let read = self.read(&name).unwrap_or_else(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Read::Gone,
            // Of a link that is not to be followed; of a socket.
            Some(libc::ELOOP | libc::ENXIO) => Read::Ignored(Ignored::NotAFile),
            _ => Read::Ignored(Ignored::Unreadable),
        });
        (name, read)
    }

    fn read(&self, name: &OsStr) -> io::Result<Read> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let path = own_path(&self.directory).join(name);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Read::Ignored(Ignored::NotAFile));
        }
        let mut text = Vec::new();
        (&file).take(MAX_SIZE + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_SIZE {
            return Ok(Read::Ignored(Ignored::TooLarge));
        }
        Ok(match cached::read(&text, metadata.modified()?) {
            Ok(attachment) => Read::Attachment(attachment),
            Err(why) => Read::Ignored(why),
        })
    }
}

#[expect(deprecated, reason = "unsound only for what changes its descriptor, as this type cannot")]
fn waited_for(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// By descriptor: another directory may have its name by now.
fn own_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Names that start with a dot are what writers have not finished.
fn is_visible(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b".")
}
