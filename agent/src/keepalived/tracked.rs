//! The files that keepalived watches and adds to its priorities. Written whole, by a rename; never twice the same.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::supervisor::SupervisorError;

/// The directory of these files.
pub(super) struct Tracked {
    directory: PathBuf,
    written: BTreeMap<String, i16>,
}

impl Tracked {
    /// Makes the directory. Files that are there already count until they are written.
    pub(super) fn open(directory: PathBuf) -> Result<Self, SupervisorError> {
        std::fs::create_dir_all(&directory)
            .map_err(|source| SupervisorError::Write { path: directory.clone(), source })?;
        Ok(Self { directory, written: BTreeMap::new() })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has that file say that number.
    pub(super) fn say(&mut self, name: &str, number: i16) -> Result<(), SupervisorError> {
        if self.written.get(name) == Some(&number) {
            return Ok(());
        }
        let (new, path) = (self.directory.join(".new"), self.directory.join(name));
        std::fs::write(&new, format!("{number}\n"))
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|source| SupervisorError::Write { path, source })?;
        self.written.insert(name.to_owned(), number);
        Ok(())
    }

    /// Removes the files of ours that are of no more use.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&str) -> bool) {
        self.written.retain(|name, _| {
            let keep = wanted(name);
            if !keep {
                // One that stays is in nobody's way.
                let _: io::Result<()> = std::fs::remove_file(self.directory.join(name));
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_say_the_last_number_and_go_when_not_wanted() {
        let root = tempfile::tempdir().unwrap();
        let mut tracked = Tracked::open(root.path().join("track")).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("track").join(name)).ok();
        tracked.say("a", 126).unwrap();
        tracked.say("b", -253).unwrap();
        tracked.say("a", 0).unwrap();
        assert_eq!(read("a").as_deref(), Some("0\n"));
        tracked.keep_only(|name| name == "a");
        assert_eq!((read("a").as_deref(), read("b")), (Some("0\n"), None));
    }
}
