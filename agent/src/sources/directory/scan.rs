//! Reads every file of a folder. Decides how many threads that takes: what it costs is system calls.

use std::ffi::{CString, OsStr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::file::{Evidence, FileReader, Reading};
use super::watches::is_visible;

/// So many files are handed to a thread at a time; fewer are not worth another thread.
const FILES_AT_A_TIME: usize = 1024;
const MAX_THREADS: usize = 4;

type Entry = (CString, Option<Type>);
type Read = (CString, Reading);

/// Files that were listed and not yet read, for whichever thread is free.
type Listed = Mutex<Receiver<Vec<Entry>>>;

/// Reads every visible file in `folder`; what cannot be read is among the results. They consist of a few ascending
/// runs, so they are soon sorted.
pub(super) fn scan(folder: &OwnedFd, reader: &mut FileReader) -> Result<Vec<Read>, Errno> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (sender, listed) = channel();
    let listed = Mutex::new(listed);
    let (listed, borrowed) = (&listed, folder.as_fd());
    thread::scope(|scope| {
        let mut others = Vec::new();
        let listing = list(folder, &sender, || {
            if others.len() + 1 < processors.min(MAX_THREADS) {
                let read = move || read_all(borrowed, listed, &mut FileReader::new());
                // without it the others have more to do
                others.extend(thread::Builder::new().spawn_scoped(scope, read));
            }
        });
        drop(sender);
        let mut files = read_all(borrowed, listed, reader);
        for other in others {
            files.extend(other.join().map_err(|_| Errno::EIO)?);
        }
        listing.map(|()| files)
    })
}

fn read_all(folder: BorrowedFd<'_>, listed: &Listed, reader: &mut FileReader) -> Vec<Read> {
    let mut files = Vec::new();
    loop {
        let part = listed.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(part) = part else { break };
        files.extend(part.into_iter().map(|(name, kind)| {
            let reading = reader.read(folder, &name, kind, Evidence::Found);
            (name, reading)
        }));
    }
    files.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    files
}

/// Hands over what is in `folder`, and tells after each full part that there will be more.
fn list(
    folder: &OwnedFd,
    sender: &Sender<Vec<Entry>>,
    mut more: impl FnMut(),
) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut part = Vec::new();
    for entry in Dir::openat(folder, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type());
        if is_visible(OsStr::from_bytes(name.to_bytes())) && kind != Some(Type::Directory) {
            part.push((name.to_owned(), kind));
        }
        if part.len() == FILES_AT_A_TIME {
            let _the_receiver_outlives_it = sender.send(std::mem::take(&mut part));
            more();
        }
    }
    let _the_receiver_outlives_it = sender.send(part);
    Ok(())
}
