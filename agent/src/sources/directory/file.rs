//! Decides what one key's file holds, and whether that can be believed. Opens and reads files; touches nothing else.
//!
//! A file that somebody has open for writing is not believed. To know, the read happens under a read lease
//! (`F_SETLEASE`): the kernel grants it only while nobody has the file open for writing, and lets no one open it for
//! writing until the file is closed again, some microseconds later. So what is read is what some writer left behind
//! when it closed the file, however long it paused in between.
//!
//! When a whole folder is read, a lease for each file would take a third of the time. So there a short text that has
//! neither been written nor changed for [`RESTED`] is believed without. What remains possible: a writer that has
//! written a part of a short value and pauses for longer than that with the file open (or for less, if the clock is
//! set forward meanwhile, or a file server's is behind), and the folder is read in the pause. Shells and editors do
//! otherwise: they empty the file, and an empty file is always asked a lease for, then write the value at once. In
//! any case the writer's close is told, and the rest is read then.
//!
//! Where leases are not to be had (another user's file without `CAP_LEASE`, some network file systems), a file found
//! by looking is believed once it has been left alone for [`LEFT_ALONE`], and one whose writer was seen to close it
//! at once.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek, read};

/// The largest value read, in bytes. A whole `ConfigMap` is no larger.
pub const MAX_VALUE: usize = 1024 * 1024;
const USUAL_VALUE: usize = 4096;
const LEFT_ALONE: Duration = Duration::from_secs(2);
const RESTED: Duration = Duration::from_millis(500);
/// The kernel shows a new file in its folder a moment before it counts the writer that makes it, so an empty file is
/// believed only after this.
const JUST_MADE: Duration = Duration::from_millis(20);
/// Writers that buffer write as much as this at once, so a shorter text is not a part of a longer one.
const WRITTEN_AT_ONCE: usize = 512;

/// Why the file of a key, or the folder of an object, has no value we can use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("its name is not UTF-8")]
    Name,
    #[error("it is not UTF-8 text")]
    Text,
    #[error("it is larger than {MAX_VALUE} bytes")]
    TooLarge,
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is not a folder")]
    NotAFolder,
    #[error("it has been open for writing for more than a second")]
    BeingWritten,
    #[error("cannot read it: {0}")]
    Unreadable(Errno),
    #[error("cannot watch it: {0}")]
    Unwatchable(String),
}

/// What led to reading a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It was found by listing its folder, or appeared under this name: it may be half written.
    Found,
    /// Its writer closed it, or moved it here.
    Finished,
}

/// The outcome of reading one file.
#[derive(Debug)]
pub(super) enum Reading {
    Value(String),
    /// No such key: no file, a dangling link, or a folder.
    Absent,
    /// Not finished by its writer; to be tried again.
    Busy,
    Failed(Unusable),
}

/// Reads files into one buffer that is used again and again.
pub(super) struct FileReader {
    buffer: Vec<u8>,
}

enum Lease {
    Held,
    Writers,
    Unavailable,
}

impl FileReader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; USUAL_VALUE] }
    }

    /// Reads `name` in `folder`. `kind` is what the folder's listing says it is, if that is known. Never blocks on a
    /// pipe or a device: those are not opened.
    pub(super) fn read(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        kind: Option<Type>,
        evidence: Evidence,
    ) -> Reading {
        self.try_read(folder, name, kind, evidence).unwrap_or_else(|errno| match errno {
            Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR => Reading::Absent,
            Errno::EAGAIN => Reading::Busy,
            errno => Reading::Failed(Unusable::Unreadable(errno)),
        })
    }

    fn try_read(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        kind: Option<Type>,
        evidence: Evidence,
    ) -> Result<Reading, Errno> {
        if kind != Some(Type::File) {
            match file_type(&fstatat(folder, name, AtFlags::empty())?) {
                SFlag::S_IFREG => {}
                SFlag::S_IFDIR => return Ok(Reading::Absent),
                _ => return Ok(Reading::Failed(Unusable::NotAFile)),
            }
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(folder, name, flags, Mode::empty())?;
        if evidence == Evidence::Found && kind == Some(Type::File) {
            return self.found(&file);
        }
        self.with_lease(&file, evidence)
    }

    /// A file among many, most of which have rested: their times cost less to ask for than a lease.
    fn found(&mut self, file: &OwnedFd) -> Result<Reading, Errno> {
        let content = self.content(file)?;
        // after the read: whatever was written before it or meanwhile shows in the times
        let stat = fstat(file)?;
        if file_type(&stat) != SFlag::S_IFREG {
            return Ok(Reading::Failed(Unusable::NotAFile));
        }
        match &content {
            Reading::Value(text)
                if (1..WRITTEN_AT_ONCE).contains(&text.len()) && !changed_within(&stat, RESTED) =>
            {
                return Ok(content);
            }
            _ => {}
        }
        lseek(file, 0, Whence::SeekSet)?;
        self.with_lease(file, Evidence::Found)
    }

    fn with_lease(&mut self, file: &OwnedFd, evidence: Evidence) -> Result<Reading, Errno> {
        match read_lease(file) {
            Lease::Held => {
                let content = self.content(file)?;
                let empty = matches!(&content, Reading::Value(text) if text.is_empty());
                let just_made = empty && changed_within(&fstat(file)?, JUST_MADE);
                Ok(if just_made { Reading::Busy } else { content })
            }
            Lease::Writers => Ok(Reading::Busy),
            Lease::Unavailable => self.content_without_lease(file, evidence),
        }
    }

    fn content_without_lease(
        &mut self,
        file: &OwnedFd,
        evidence: Evidence,
    ) -> Result<Reading, Errno> {
        if file_type(&fstat(file)?) != SFlag::S_IFREG {
            return Ok(Reading::Failed(Unusable::NotAFile));
        }
        let content = self.content(file)?;
        // after the read: whatever was written before it or meanwhile shows in the times
        if evidence == Evidence::Found && changed_within(&fstat(file)?, LEFT_ALONE) {
            return Ok(Reading::Busy);
        }
        Ok(content)
    }

    fn content(&mut self, file: &OwnedFd) -> Result<Reading, Errno> {
        let mut filled = 0;
        loop {
            match read(file, &mut self.buffer[filled..]) {
                Ok(n) => filled += n,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            if filled < self.buffer.len() {
                break; // a regular file is read short only at its end
            }
            if filled > MAX_VALUE {
                self.forget_large();
                return Ok(Reading::Failed(Unusable::TooLarge));
            }
            self.buffer.resize((filled * 4).min(MAX_VALUE + 1), 0);
        }
        let reading = match std::str::from_utf8(&self.buffer[..filled]) {
            Ok(text) => Reading::Value(text.to_owned()),
            Err(_) => Reading::Failed(Unusable::Text),
        };
        self.forget_large();
        Ok(reading)
    }

    fn forget_large(&mut self) {
        self.buffer.truncate(USUAL_VALUE);
        self.buffer.shrink_to_fit();
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn changed_within(stat: &FileStat, time: Duration) -> bool {
    let newest = (stat.st_mtime, stat.st_mtime_nsec).max((stat.st_ctime, stat.st_ctime_nsec));
    let newest_nanos = u32::try_from(newest.1).unwrap_or(0);
    let newest = UNIX_EPOCH + Duration::new(u64::try_from(newest.0).unwrap_or(0), newest_nanos);
    // a file system without finer times rounds them down
    let rounding = Duration::from_secs(u64::from(newest_nanos == 0));
    match SystemTime::now().duration_since(newest) {
        Ok(age) => age < time + rounding,
        Err(ahead) => ahead.duration() < time,
    }
}

/// Asks for a lease that lasts until `file` is closed.
fn read_lease(file: &OwnedFd) -> Lease {
    const F_SETSIG: libc::c_int = 10; // missing in the libc crate for glibc
    // A writer that meets the lease makes the kernel signal us: SIGIO would end the process, SIGURG is ignored by
    // default. The writer goes on when we close, so there is nothing to do about it.
    let granted = fcntl(file.as_fd(), F_SETSIG, libc::SIGURG)
        .and_then(|()| fcntl(file.as_fd(), libc::F_SETLEASE, libc::F_RDLCK));
    match granted {
        Ok(()) => Lease::Held,
        Err(Errno::EAGAIN) => Lease::Writers,
        Err(_) => Lease::Unavailable,
    }
}

#[expect(unsafe_code, reason = "neither std nor nix offers F_SETLEASE and F_SETSIG")]
fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for as long as it is borrowed; both commands take an integer, no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::thread;

    use nix::sys::stat::fstat;

    use super::{Evidence, FileReader, Lease, RESTED, Reading, changed_within, read_lease};

    #[test]
    fn without_a_lease_a_young_file_is_believed_only_after_its_writer_closed_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "value").unwrap();
        let read = |evidence| {
            let file = File::open(&path).unwrap().into();
            FileReader::new().content_without_lease(&file, evidence).unwrap()
        };
        assert!(matches!(read(Evidence::Found), Reading::Busy));
        assert!(matches!(read(Evidence::Finished), Reading::Value(value) if value == "value"));
    }

    #[test]
    fn an_emptied_file_is_not_believed_however_long_its_writer_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "value").unwrap();
        let writer = File::create(&path).unwrap();
        let read = || {
            let file = File::open(&path).unwrap().into();
            FileReader::new().found(&file).unwrap()
        };
        while changed_within(&fstat(&writer).unwrap(), RESTED) {
            assert!(matches!(read(), Reading::Busy));
            thread::yield_now();
        }
        assert!(matches!(read(), Reading::Busy));
        drop(writer);
        assert!(matches!(read(), Reading::Value(value) if value.is_empty()));
    }

    #[test]
    fn a_writer_waits_for_the_lease_and_its_signal_harms_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap().into();
        assert!(matches!(read_lease(&file), Lease::Held));
        let writer = thread::spawn({
            let path = path.clone();
            move || fs::write(path, "new").unwrap()
        });
        let leases = || fs::read_to_string("/proc/locks").unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let breaking = format!(":{inode} ");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !leases().lines().any(|line| line.contains("BREAKING") && line.contains(&breaking)) {
            assert!(std::time::Instant::now() < deadline, "the writer met no lease: {}", leases());
            thread::yield_now();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        drop(file);
        writer.join().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
