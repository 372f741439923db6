//! Reads one object's folder: all of it, or the keys that are due. Decides which keys that makes, what is to be tried
//! again, and when.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use shared::mappings::Content;

use super::file::{Evidence, FileReader, Reading, Unusable};
use super::scan::scan;

const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Tries of a file that stays open for writing before it is told of: they take about a second.
const PATIENCE: u32 = 11;

/// The value told of a key that cannot be read and never could: no decoder takes it, so that a pod
/// whose file is broken from the start is held rather than unknown.
pub(super) const UNREADABLE: &str = "(unreadable)";

/// A key that cannot be used; the second of a pair is why.
pub(super) type BadKey = (String, Unusable);

/// What was told of an object, and which of its keys are to be looked at.
#[derive(Default)]
pub(super) struct Folder {
    /// The keys whose values were told. The values are not kept.
    told: HashSet<Box<str>>,
    pending: HashMap<OsString, Pending>,
    /// Keys that failed for good: a change of their attributes is worth a look.
    failed: HashSet<OsString>,
}

struct Pending {
    evidence: Evidence,
    tries: u32,
    due: Instant,
}

/// The content of a folder that was read whole.
pub(super) struct Listing {
    pub values: BTreeMap<String, String>,
    /// Keys that are there but could not be read.
    unread: HashSet<String>,
}

impl Folder {
    pub(super) fn look_at(&mut self, key: OsString, evidence: Evidence) {
        let now = Instant::now();
        let pending = self.pending.entry(key).or_insert(Pending { evidence, tries: 0, due: now });
        pending.due = now;
        if evidence == Evidence::Finished {
            pending.evidence = evidence;
        }
    }

    /// To be called when attributes of `key` changed. True if that calls for a look.
    pub(super) fn look_again_at(&mut self, key: OsString) -> bool {
        let worthwhile = self.failed.contains(&key);
        if worthwhile {
            self.look_at(key, Evidence::Found);
        }
        worthwhile
    }

    /// When the next key is to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.due).min()
    }

    /// Reads every key. Keys that are busy become pending.
    pub(super) fn read_whole(
        &mut self,
        folder: &OwnedFd,
        reader: &mut FileReader,
        bad: &mut Vec<BadKey>,
    ) -> Result<Listing, Errno> {
        self.pending.clear();
        self.failed.clear();
        let mut values = Vec::new();
        let mut unread = HashSet::new();
        for (name, reading) in scan(folder, reader)? {
            let name = OsString::from_vec(name.into_bytes());
            let key = match name.into_string() {
                Ok(key) => key,
                Err(name) => {
                    if !matches!(reading, Reading::Absent) {
                        bad.push((name.to_string_lossy().into_owned(), Unusable::Name));
                    }
                    continue;
                }
            };
            match reading {
                Reading::Value(value) => values.push((key, value)),
                Reading::Absent => {}
                Reading::Busy => {
                    self.postpone(OsStr::new(&key), Evidence::Found, 0);
                    unread.insert(key);
                }
                Reading::Failed(reason) => {
                    self.failed.insert(key.clone().into());
                    if self.told.contains(key.as_str()) {
                        unread.insert(key.clone());
                    } else {
                        values.push((key.clone(), UNREADABLE.to_owned()));
                    }
                    bad.push((key, reason));
                }
            }
        }
        Ok(Listing { values: values.into_iter().collect(), unread })
    }

    /// Reads the keys that are due at `now`: new values, and `None` for what is gone and had been told.
    pub(super) fn read_due(
        &mut self,
        folder: BorrowedFd<'_>,
        reader: &mut FileReader,
        now: Instant,
        bad: &mut Vec<BadKey>,
    ) -> Vec<(OsString, Option<String>)> {
        let due: Vec<_> = self.pending.extract_if(|_, pending| pending.due <= now).collect();
        let mut keys = Vec::with_capacity(due.len());
        for (name, Pending { evidence, tries, .. }) in due {
            self.failed.remove(&name);
            let bytes = name.as_bytes().to_vec();
            let Ok(path) = CString::new(bytes) else { continue }; // file names have no zero bytes
            match reader.read(folder, &path, None, evidence) {
                Reading::Busy => {
                    if tries == PATIENCE {
                        bad.push((name.to_string_lossy().into_owned(), Unusable::BeingWritten));
                    }
                    self.postpone(&name, evidence, tries + 1);
                }
                Reading::Failed(reason) => {
                    bad.push((name.to_string_lossy().into_owned(), reason));
                    if name.to_str().is_some_and(|key| !self.told.contains(key)) {
                        keys.push((name.clone(), Some(UNREADABLE.to_owned())));
                    }
                    self.failed.insert(name);
                }
                Reading::Absent => keys.push((name, None)),
                Reading::Value(value) if name.to_str().is_some() => keys.push((name, Some(value))),
                Reading::Value(_) => {
                    bad.push((name.to_string_lossy().into_owned(), Unusable::Name));
                }
            }
        }
        keys
    }

    /// A writer's close is announced a moment before the kernel counts the file as closed, so busy files are tried
    /// again, soon at first and ever less often.
    fn postpone(&mut self, name: &OsStr, evidence: Evidence, tries: u32) {
        let wait = FIRST_RETRY.saturating_mul(1 << tries.min(10)).min(LAST_RETRY);
        let due = Instant::now() + wait;
        self.pending.insert(name.to_owned(), Pending { evidence, tries, due });
    }

    /// Turns a listing, and `keys` read after it, into what is to be told. Keys that could not be read keep the value
    /// told before: then only the others are told.
    pub(super) fn tell_whole(
        &mut self,
        mut listing: Listing,
        keys: Vec<(OsString, Option<String>)>,
    ) -> Content {
        for (key, value) in keys.into_iter().filter_map(utf8_key) {
            listing.unread.remove(&key);
            match value {
                Some(value) => listing.values.insert(key, value),
                None => listing.values.remove(&key),
            };
        }
        let Listing { values, unread } = listing;
        let kept: HashSet<Box<str>> = unread
            .into_iter()
            .map(String::into_boxed_str)
            .filter(|key| self.told.contains(key))
            .collect();
        if kept.is_empty() {
            self.told = values.keys().map(|key| key.as_str().into()).collect();
            return Content::Whole(values);
        }
        let mut told: HashSet<Box<str>> = values.keys().map(|key| key.as_str().into()).collect();
        told.extend(kept);
        let gone = self.told.difference(&told).map(|key| (key.to_string(), None));
        let keys = gone.chain(values.into_iter().map(|(key, value)| (key, Some(value)))).collect();
        self.told = told;
        Content::Keys(keys)
    }

    /// What is to be told of `keys`, if anything.
    pub(super) fn tell_keys(&mut self, keys: Vec<(OsString, Option<String>)>) -> Option<Content> {
        let keys: Vec<_> = keys
            .into_iter()
            .filter_map(utf8_key)
            .filter(|(key, value)| match value {
                Some(_) => {
                    self.told.insert(key.as_str().into());
                    true
                }
                None => self.told.remove(key.as_str()),
            })
            .collect();
        (!keys.is_empty()).then_some(Content::Keys(keys))
    }
}

fn utf8_key((key, value): (OsString, Option<String>)) -> Option<(String, Option<String>)> {
    let key = String::from_utf8(key.into_vec()).ok()?;
    Some((key, value))
}
