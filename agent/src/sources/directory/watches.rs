//! Decides which folders are watched for what, and what an inotify event calls for. Owns the inotify descriptor.
//!
//! Events only say where to look: what is there is found out by looking. So events that arrive late, of a folder that
//! was since replaced, cost a look and do no harm.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::file::Evidence;

/// The link that kubelet swaps to publish a new state of a whole folder.
const KUBELET_DATA: &[u8] = b"..data";

/// What a folder is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The folder the mappings directory is in.
    Parent,
    /// The mappings directory.
    Directory,
    /// The folder of the object so named.
    Object(String),
}

/// Where to look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Everything,
    Object(String),
    Key {
        object: String,
        key: OsString,
        evidence: Evidence,
    },
    /// Permissions or times changed: of interest only to what could not be read.
    KeyAttributes {
        object: String,
        key: OsString,
    },
    ObjectAttributes(String),
}

/// The watched folders.
pub(super) struct Watches {
    inotify: Inotify,
    /// Name of the mappings directory within its parent.
    name: OsString,
    /// One folder may be several objects, by way of links.
    places: HashMap<WatchDescriptor, Vec<Place>>,
}

impl Watches {
    /// `name` is that of the mappings directory within its parent.
    pub(super) fn new(name: OsString) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, name, places: HashMap::new() })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches the open `folder` as `place`, instead of whichever folder was watched as that before.
    pub(super) fn watch(&mut self, folder: BorrowedFd<'_>, place: &Place) -> Result<(), Errno> {
        // by descriptor: a path may lead elsewhere by now
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        self.watch_path(&path, place)
    }

    /// As [`Self::watch`], by path.
    pub(super) fn watch_path(&mut self, path: &Path, place: &Place) -> Result<(), Errno> {
        let watched = self.inotify.add_watch(path, mask(place))?;
        self.leave(place, Some(watched));
        let places = self.places.entry(watched).or_default();
        if !places.contains(place) {
            places.push(place.clone());
        }
        Ok(())
    }

    /// Stops watching a folder as `place`.
    pub(super) fn unwatch(&mut self, place: &Place) {
        self.leave(place, None);
    }

    fn leave(&mut self, place: &Place, except: Option<WatchDescriptor>) {
        let inotify = &self.inotify;
        self.places.retain(|watched, places| {
            if Some(*watched) == except || !places.contains(place) {
                return true;
            }
            places.retain(|other| other != place);
            if places.is_empty() {
                let _gone_already = inotify.rm_watch(*watched);
            }
            !places.is_empty()
        });
    }

    /// Takes the events that are waiting, at most some hundred, and says where to look. `None` when none waited.
    pub(super) fn notices(
        &mut self,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Vec<Notice>>, Errno> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut notices = Vec::new();
        for event in &events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                notices.push(Notice::Everything);
                continue;
            }
            let Some(places) = self.places.get(&event.wd) else { continue };
            notices.extend(places.iter().filter_map(|place| self.notice(place, event, wanted)));
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.places.remove(&event.wd);
            }
        }
        Ok(Some(notices))
    }

    fn notice(
        &self,
        place: &Place,
        event: &InotifyEvent,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Option<Notice> {
        let Some(name) = event.name.as_deref() else {
            return concerns_folder_itself(event.mask).then(|| match place {
                Place::Parent | Place::Directory => Notice::Everything,
                Place::Object(object) => Notice::Object(object.clone()),
            });
        };
        let attributes = event.mask.contains(AddWatchFlags::IN_ATTRIB);
        match place {
            Place::Parent => (name == self.name).then_some(Notice::Everything),
            Place::Directory if name.as_bytes() == KUBELET_DATA => Some(Notice::Everything),
            Place::Directory => {
                let object =
                    name.to_str().filter(|name| is_visible(OsStr::new(name)) && wanted(name))?;
                let object = object.to_owned();
                Some(if attributes {
                    Notice::ObjectAttributes(object)
                } else {
                    Notice::Object(object)
                })
            }
            Place::Object(object) if name.as_bytes() == KUBELET_DATA => {
                Some(Notice::Object(object.clone()))
            }
            Place::Object(_)
                if !is_visible(name) || event.mask.contains(AddWatchFlags::IN_ISDIR) =>
            {
                None
            }
            Place::Object(object) => {
                let (object, key) = (object.clone(), name.to_owned());
                if attributes {
                    return Some(Notice::KeyAttributes { object, key });
                }
                // A new name may be a complete value (a link) or one that is just being written.
                let created = event.mask.contains(AddWatchFlags::IN_CREATE);
                let evidence = if created { Evidence::Found } else { Evidence::Finished };
                Some(Notice::Key { object, key, evidence })
            }
        }
    }
}

/// Whether a name in a folder counts: those that start with a dot are kubelet's and editors' own.
pub(super) fn is_visible(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b".")
}

fn concerns_folder_itself(mask: AddWatchFlags) -> bool {
    mask.intersects(
        AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED,
    )
}

fn mask(place: &Place) -> AddWatchFlags {
    let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
    let itself =
        AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
    match place {
        Place::Parent => names | itself,
        // one mask for both: a link may make them one folder, and the last mask set counts
        Place::Directory | Place::Object(_) => {
            names | itself | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB
        }
    }
}
