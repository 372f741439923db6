//! Reads every file of a folder. Decides how many threads that takes: what it costs is system calls.

use std::ffi::{CString, OsStr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::thread;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::file::{Evidence, FileReader, Reading};
use super::watches::is_visible;

/// Fewer files than this are not worth another thread.
const FILES_PER_THREAD: usize = 4096;
const MAX_THREADS: usize = 4;

type Entry = (CString, Option<Type>);
type Read = (CString, Reading);

/// Reads every visible file in `folder`; what cannot be read is among the results.
pub(super) fn scan(folder: &OwnedFd, reader: &mut FileReader) -> Result<Vec<Read>, Errno> {
    let mut entries = list(folder)?;
    let folder = folder.as_fd();
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = (entries.len() / FILES_PER_THREAD).clamp(1, processors.min(MAX_THREADS));
    let share = entries.len().div_ceil(threads);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let part = entries.split_off(entries.len() - share);
                let files = thread::Builder::new();
                files.spawn_scoped(scope, move || read_all(folder, part, &mut FileReader::new()))
            })
            .collect();
        let mut files = read_all(folder, entries, reader);
        for other in others {
            let other = other.map_err(|_| Errno::EAGAIN)?;
            files.extend(other.join().map_err(|_| Errno::EIO)?);
        }
        Ok(files)
    })
}

fn read_all(folder: BorrowedFd<'_>, entries: Vec<Entry>, reader: &mut FileReader) -> Vec<Read> {
    let read = |(name, kind): Entry| {
        let reading = reader.read(folder, &name, kind, Evidence::Found);
        (name, reading)
    };
    entries.into_iter().map(read).collect()
}

fn list(folder: &OwnedFd) -> Result<Vec<Entry>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Vec::new();
    for entry in Dir::openat(folder, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type());
        if is_visible(OsStr::from_bytes(name.to_bytes())) && kind != Some(Type::Directory) {
            listed.push((name.to_owned(), kind));
        }
    }
    Ok(listed)
}
