//! Keeps what is told of the mappings directory equal to what is in it. Decides what has to be looked at, and makes a
//! batch of it. Watches before it reads, so that nothing happens unseen in between.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};
use shared::mappings::{Change, Content};

use super::super::{Batch, Unreadable};
use super::SourceError;
use super::file::{FileReader, Unusable};
use super::folder::{BadKey, Folder, Listing};
use super::watches::{Notice, Place, Watches, is_visible};

/// A folder that changes while it is read is read again, this often before others get their turn.
const READ_AGAIN: usize = 5;
/// After a failure to open or watch something.
const RETRY: Duration = Duration::from_secs(1);

/// Device and inode: which folder it is, whatever it is called.
type Identity = (u64, u64);

/// The objects of the mappings directory.
pub(super) struct Objects {
    directory: PathBuf,
    parent: PathBuf,
    wanted: Box<dyn Fn(&str) -> bool + Send>,
    watches: Watches,
    reader: FileReader,
    /// Which folder is watched as the mappings directory; `None` while there is none.
    identity: Option<Identity>,
    known: BTreeMap<String, Object>,
    /// When to look for objects, if that is to be done.
    list_at: Option<Instant>,
}

#[derive(Default)]
struct Object {
    folder: Folder,
    /// Which folder is watched; `None` if none.
    identity: Option<Identity>,
    /// Its content was told, and not that it went missing.
    told: bool,
    /// When to read all of it, if that is to be done.
    read_at: Option<Instant>,
    /// The last failure told of the folder itself, so as not to repeat it at every retry.
    complaint: Option<String>,
}

impl Objects {
    /// Starts to watch `directory`, an absolute path, which has to exist.
    pub(super) fn watch(
        directory: PathBuf,
        wanted: Box<dyn Fn(&str) -> bool + Send>,
    ) -> Result<Self, SourceError> {
        let parent = directory.parent().unwrap_or(Path::new("/")).to_owned();
        let name = directory.file_name().unwrap_or(OsStr::new("")).to_owned();
        let watches = Watches::new(name).map_err(|errno| SourceError::watch(&directory, errno))?;
        let mut objects = Self {
            directory,
            parent,
            wanted,
            watches,
            reader: FileReader::new(),
            identity: None,
            known: BTreeMap::new(),
            list_at: Some(Instant::now()),
        };
        objects.watch_directory()?;
        Ok(objects)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.watches.descriptor()
    }

    /// When the next thing is to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        let objects = self.known.values();
        objects
            .filter_map(|object| object.read_at.or_else(|| object.folder.due()))
            .chain(self.list_at)
            .min()
    }

    /// Takes all events that are waiting, but stops at `until`. True if there is something new to look at.
    pub(super) fn drain(&mut self, until: Instant) -> Result<bool, SourceError> {
        let mut news = false;
        loop {
            let notices = self.watches.notices(&*self.wanted).map_err(|errno| {
                self.list_at = Some(Instant::now() + RETRY); // whatever was missed
                SourceError::watch(&self.directory, errno)
            })?;
            let Some(notices) = notices else { return Ok(news) };
            for notice in notices {
                news |= self.note(notice);
            }
            if Instant::now() >= until {
                return Ok(news);
            }
        }
    }

    fn note(&mut self, notice: Notice) -> bool {
        let now = Instant::now();
        match notice {
            Notice::Everything => self.list_at = Some(now),
            Notice::Object(object) => self.known.entry(object).or_default().read_at = Some(now),
            Notice::ObjectAttributes(object) => match self.known.get_mut(&object) {
                Some(object) if object.complaint.is_some() => object.read_at = Some(now),
                _ => return false,
            },
            Notice::Key { object, key, evidence } => match self.known.get_mut(&object) {
                Some(object) => object.folder.look_at(key, evidence),
                None => return false,
            },
            Notice::KeyAttributes { object, key } => {
                let object = self.known.get_mut(&object);
                return object.is_some_and(|object| object.folder.look_again_at(key));
            }
        }
        true
    }

    /// Compares the folders watched with those the paths lead to: a mount, a rename further up or a change behind a
    /// link brings no event.
    pub(super) fn check_identities(&mut self) {
        let now = Instant::now();
        if identity_of(&self.directory) != self.identity {
            self.list_at.get_or_insert(now);
            return;
        }
        for (name, object) in &mut self.known {
            if object.identity.is_some()
                && identity_of(&self.directory.join(name)) != object.identity
            {
                object.read_at.get_or_insert(now);
            }
        }
    }

    /// Reads what is due.
    pub(super) fn collect(&mut self) -> Result<Batch, SourceError> {
        let mut batch = Batch::default();
        self.list()?;
        let mut listings = BTreeMap::new();
        for _ in 0..READ_AGAIN {
            let now = Instant::now();
            let due = |object: &Object| object.read_at.is_some_and(|at| at <= now);
            let due: Vec<String> = self
                .known
                .iter()
                .filter(|(_, object)| due(object))
                .map(|(name, _)| name.clone())
                .collect();
            if due.is_empty() {
                break;
            }
            for name in due {
                listings.remove(&name);
                if let Some(listing) = self.read_object(&name, &mut batch) {
                    listings.insert(name, listing);
                }
            }
            // what happened while we read: single keys are corrected below, a changed folder is read again
            self.drain(now + RETRY)?;
        }
        self.tell(listings, &mut batch);
        Ok(batch)
    }

    /// Finds the objects, if that is due, and has all of them read.
    fn list(&mut self) -> Result<(), SourceError> {
        let now = Instant::now();
        if self.list_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.list_at = Some(now + RETRY); // unless it works
        match self.watch_directory() {
            Ok(directory) => {
                let entries = Dir::from_fd(directory).and_then(|mut entries| {
                    entries
                        .iter()
                        .map(|entry| Ok(entry?.file_name().to_owned()))
                        .collect::<Result<Vec<_>, _>>()
                });
                let entries =
                    entries.map_err(|errno| SourceError::watch(&self.directory, errno))?;
                for name in entries.iter().filter_map(|name| name.to_str().ok()) {
                    if is_visible(OsStr::new(name)) && (self.wanted)(name) {
                        self.known.entry(name.to_owned()).or_default();
                    }
                }
            }
            Err(SourceError::NoDirectory { .. }) => self.forget_directory(),
            Err(error) => return Err(error),
        }
        self.list_at = None;
        for object in self.known.values_mut() {
            object.read_at = Some(now);
        }
        Ok(())
    }

    fn watch_directory(&mut self) -> Result<OwnedFd, SourceError> {
        let parent = match self.watches.watch_path(&self.parent, &Place::Parent) {
            // then it takes a moment longer to notice that the directory itself is replaced
            Err(Errno::ENOENT | Errno::EACCES) => Ok(()),
            watched => watched,
        };
        let directory = parent.and_then(|()| {
            let directory = open_folder(&self.directory)?;
            self.watches.watch(directory.as_fd(), &Place::Directory)?;
            self.identity = Some(identity(&directory)?);
            Ok(directory)
        });
        directory.map_err(|errno| SourceError::watch(&self.directory, errno))
    }

    fn forget_directory(&mut self) {
        self.watches.unwatch(&Place::Directory);
        self.identity = None;
    }

    /// Reads all of an object. `None`: it is not there, or cannot be read now; the batch says so.
    fn read_object(&mut self, name: &str, batch: &mut Batch) -> Option<Listing> {
        let now = Instant::now();
        let place = Place::Object(name.to_owned());
        let object = self.known.get_mut(name)?;
        object.read_at = None;
        let mut bad = Vec::new();
        let listing = open_folder(&self.directory.join(name))
            .map_err(Unusable::Unreadable)
            .and_then(|folder| {
                let watched = self.watches.watch(folder.as_fd(), &place);
                watched.map_err(|errno| {
                    Unusable::Unwatchable(
                        SourceError::watch(&self.directory.join(name), errno).to_string(),
                    )
                })?;
                object.identity = identity(&folder).ok();
                object
                    .folder
                    .read_whole(&folder, &mut self.reader, &mut bad)
                    .map_err(Unusable::Unreadable)
            });
        match listing {
            Ok(listing) => {
                object.complaint = None;
                batch.add_unreadable(name, bad);
                Some(listing)
            }
            Err(Unusable::Unreadable(Errno::ENOENT | Errno::ELOOP)) => {
                self.watches.unwatch(&place);
                if self.known.remove(name).is_some_and(|object| object.told) {
                    batch
                        .changes
                        .push(Change { object: name.to_owned(), content: Content::Missing });
                }
                None
            }
            Err(reason) => {
                let reason = match reason {
                    Unusable::Unreadable(Errno::ENOTDIR) => Unusable::NotAFolder,
                    reason => reason,
                };
                let complaint = reason.to_string();
                if object.complaint.as_ref() != Some(&complaint) {
                    object.complaint = Some(complaint);
                    batch.unreadable.push(Unreadable {
                        object: name.to_owned(),
                        key: None,
                        reason,
                    });
                }
                object.read_at = Some(now + RETRY);
                None
            }
        }
    }

    /// Reads the keys that are due, and adds to the batch what is new.
    fn tell(&mut self, mut listings: BTreeMap<String, Listing>, batch: &mut Batch) {
        let now = Instant::now();
        for (name, object) in &mut self.known {
            let listing = listings.remove(name);
            if object.read_at.is_some() {
                continue; // changed once more: to be read as a whole first
            }
            let mut keys = Vec::new();
            if object.folder.due().is_some_and(|due| due <= now) {
                let mut bad = Vec::new();
                match open_folder(&self.directory.join(name)) {
                    Ok(folder) => {
                        keys =
                            object.folder.read_due(folder.as_fd(), &mut self.reader, now, &mut bad);
                        batch.add_unreadable(name, bad);
                    }
                    Err(_) => object.read_at = Some(now), // finds out what is wrong
                }
            }
            let content = match listing {
                Some(listing) => Some(object.folder.tell_whole(listing, keys)),
                None => object.folder.tell_keys(keys),
            };
            if let Some(content) = content {
                object.told = true;
                batch.changes.push(Change { object: name.clone(), content });
            }
        }
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

fn identity(folder: &OwnedFd) -> Result<Identity, Errno> {
    fstat(folder).map(|stat| (stat.st_dev, stat.st_ino))
}

fn identity_of(path: &Path) -> Option<Identity> {
    stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

impl Batch {
    fn add_unreadable(&mut self, object: &str, keys: Vec<BadKey>) {
        self.unreadable.extend(keys.into_iter().map(|(key, reason)| Unreadable {
            object: object.to_owned(),
            key: Some(key),
            reason,
        }));
    }
}
