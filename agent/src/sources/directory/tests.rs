//! The directory source against a real directory. Every wait has a deadline.

mod editing;
mod half_written;
mod kubelet;
mod random;
mod unusable;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::mappings::{Change, Content};
use tempfile::TempDir;
use tokio::time::timeout;

use super::super::Unreadable;
use super::{Batch, DirectorySource};

const DEADLINE: Duration = Duration::from_secs(10);
const PODS: &str = "podip-vip-mappings";
const VIPS: &str = "vip-routeid-mappings";

/// Object → key → value.
type State = BTreeMap<String, BTreeMap<String, String>>;

/// A directory of mappings, made by the test.
struct Maps {
    temporary: TempDir,
}

/// A source, and what its batches add up to.
struct Follower {
    source: DirectorySource,
    state: State,
    changes: Vec<Change>,
    unreadable: Vec<Unreadable>,
}

impl Maps {
    fn new() -> Self {
        let maps = Self { temporary: tempfile::tempdir().unwrap() };
        fs::create_dir(maps.directory()).unwrap();
        maps
    }

    /// With one object of two keys.
    fn with_pods() -> Self {
        let maps = Self::new();
        maps.write(PODS, "10.0.0.1", "one");
        maps.write(PODS, "10.0.0.2", "two");
        maps
    }

    fn directory(&self) -> PathBuf {
        self.temporary.path().join("maps")
    }

    fn aside(&self) -> PathBuf {
        self.temporary.path().join("aside")
    }

    fn object(&self, object: &str) -> PathBuf {
        self.directory().join(object)
    }

    fn key(&self, key: &str) -> PathBuf {
        self.object(PODS).join(key)
    }

    fn write(&self, object: &str, key: &str, value: &str) {
        write_in(&self.object(object), key, value);
    }

    fn follow(&self) -> Follower {
        let source = DirectorySource::open(&self.directory(), |name| name.contains("mappings"));
        Follower {
            source: source.unwrap(),
            state: State::new(),
            changes: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    async fn followed(&self) -> Follower {
        let mut follower = self.follow();
        follower.step().await;
        follower
    }

    /// What a fresh look finds, without the source under test.
    fn found(&self) -> State {
        let mut state = State::new();
        for object in visible(&self.directory()).filter(|path| path.is_dir()) {
            let files = visible(&object).filter(|path| path.is_file());
            let content = files.map(|path| (name(&path), fs::read_to_string(path).unwrap()));
            state.insert(name(&object), content.collect());
        }
        state
    }
}

fn visible(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !name(path).starts_with('.'))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn write_in(folder: &Path, key: &str, value: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(key), value).unwrap();
}

fn state_of(objects: &[(&str, &[(&str, &str)])]) -> State {
    let content = |keys: &[(&str, &str)]| {
        keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    objects.iter().map(|(object, keys)| ((*object).to_owned(), content(keys))).collect()
}

impl Follower {
    async fn step(&mut self) {
        let batch = timeout(DEADLINE, self.source.next()).await.expect("a batch in time").unwrap();
        self.apply(batch);
    }

    fn apply(&mut self, Batch { changes, unreadable, waiting: _ }: Batch) {
        for Change { object, content } in changes.clone() {
            match content {
                Content::Whole(content) => {
                    self.state.insert(object, content);
                }
                Content::Missing => {
                    self.state.remove(&object).expect("it was there before");
                }
                Content::Keys(keys) => {
                    let state = self.state.get_mut(&object).expect("it was told whole before");
                    for (key, value) in keys {
                        match value {
                            Some(value) => state.insert(key, value),
                            None => state.remove(&key),
                        };
                    }
                }
            }
        }
        self.changes.extend(changes);
        self.unreadable.extend(unreadable);
    }

    async fn until(&mut self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let wait = async {
            while !reached(self) {
                let batch = self.source.next().await.unwrap();
                self.apply(batch);
            }
        };
        let in_time = timeout(DEADLINE, wait).await.is_ok();
        let Self { state, unreadable, .. } = self;
        assert!(in_time, "not in time: {what}; state: {state:?}; unreadable: {unreadable:?}");
    }

    async fn until_state(&mut self, wanted: &State) {
        self.until(&format!("{wanted:?}"), |follower| follower.state == *wanted).await;
    }

    async fn until_pods(&mut self, keys: &[(&str, &str)]) {
        self.until_state(&state_of(&[(PODS, keys)])).await;
    }

    /// Makes a change of which nothing but itself is to be told, after whatever else is still to be told.
    async fn fence(&mut self, maps: &Maps) {
        let fence = "fence-mappings";
        maps.write(fence, "key", "fence");
        self.until("fence", |follower| follower.state.contains_key(fence)).await;
        fs::remove_dir_all(maps.object(fence)).unwrap();
        self.until("no fence", |follower| !follower.state.contains_key(fence)).await;
    }

    /// Whether `value` was ever told for any key.
    fn ever_told(&self, value: &str) -> bool {
        self.values_told().any(|told| told == value)
    }

    fn values_told(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().flat_map(|change| -> Vec<&str> {
            match &change.content {
                Content::Whole(content) => content.values().map(String::as_str).collect(),
                Content::Keys(keys) => {
                    keys.iter().filter_map(|(_, value)| value.as_deref()).collect()
                }
                Content::Missing => Vec::new(),
            }
        })
    }
}
