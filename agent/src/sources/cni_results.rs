//! Addresses of this node's pods, from where CNI plugins' results are kept: known when they are assigned, which is
//! before the pod's first container starts and some second before the API server knows.
//!
//! libcni, which container runtimes call plugins with, leaves one file for each attachment, writes it anew when
//! something changes, and removes it with the attachment. Nobody promises more than that, so a file that is not
//! understood is passed over and counted: the pod is then mapped when the API server tells its address, as without
//! any of this. A file is read when its writer has closed it or moved it there. Links are not followed.

mod cached;
mod folder;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use shared::{PodIp, PodUid};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::cached::Attachment;
use self::folder::{Folder, Read};
pub use self::folder::{Ignored, MAX_FILES, MAX_SIZE};
use crate::metrics::ResultMetrics;
use crate::unsure::Assigned;

/// How often to look whether the directory is there, and still the same one.
const LOOK: Duration = Duration::from_secs(1);

/// A directory of results, and what is in it.
#[derive(Debug)]
pub struct CniResults {
    directory: PathBuf,
    folder: Option<Folder>,
    look_at: Instant,
    attachments: BTreeMap<OsString, Attachment>,
    metrics: ResultMetrics,
    /// The directory was there at the last look.
    found: bool,
    strict: bool,
    complained: bool,
}

impl CniResults {
    /// Follows `directory`, which need not exist.
    /// `strict`: pods that are not told of are held.
    pub fn open(directory: &Path, strict: bool, metrics: ResultMetrics) -> Self {
        let mut results = Self {
            directory: directory.to_owned(),
            folder: None,
            look_at: Instant::now() + LOOK,
            attachments: BTreeMap::new(),
            metrics,
            found: false,
            strict,
            complained: false,
        };
        results.look();
        results
    }

    /// Waits until something may have changed, and has read it then.
    ///
    /// Cancel safe: what was read before is kept.
    pub async fn changed(&mut self) {
        loop {
            let Some(folder) = &mut self.folder else {
                sleep_until(self.look_at).await;
                if self.look() {
                    return;
                }
                continue;
            };
            tokio::select! {
                read = folder.changed() => {
                    match read {
                        Ok(read) => self.take_in(read),
                        // All of it is read again.
                        Err(_) => self.folder = None,
                    }
                    return;
                }
                () = sleep_until(self.look_at) => {
                    self.look_at = Instant::now() + LOOK;
                    if !folder.is(&self.directory) {
                        self.folder = None;
                        self.attachments.clear();
                        self.look();
                        return;
                    }
                }
            }
        }
    }

    /// All addresses, each with the one pod that it was given to last; `None` without a directory.
    pub fn addresses(&self) -> Option<Assigned> {
        let owners = self.owners();
        let all = self.attachments.values().flat_map(|attachment| &attachment.ips);
        let others = all.filter(|ip| !owners.contains_key(*ip)).copied().collect();
        let mut addresses = Assigned { pods: BTreeMap::new(), others };
        for (ip, (_, uid)) in owners {
            addresses.pods.entry(uid).or_default().insert(ip);
        }
        self.found.then_some(addresses)
    }

    /// Since when the pods have their addresses; the latest time of those of a pod.
    pub fn assigned(&self) -> BTreeMap<PodUid, SystemTime> {
        let mut assigned = BTreeMap::new();
        for (_, (at, uid)) in self.owners() {
            let of_pod = assigned.entry(uid).or_insert(at);
            *of_pod = at.max(*of_pod);
        }
        assigned
    }

    fn owners(&self) -> BTreeMap<PodIp, (SystemTime, PodUid)> {
        let mut owners = BTreeMap::new();
        for attachment in self.attachments.values() {
            let Some(uid) = attachment.uid else { continue };
            for ip in &attachment.ips {
                let this = (attachment.written, uid);
                let owner = owners.entry(*ip).or_insert(this);
                *owner = this.max(*owner);
            }
        }
        owners
    }

    /// Reads all of the directory if it is there; whether it is.
    fn look(&mut self) -> bool {
        self.look_at = Instant::now() + LOOK;
        let directory = self.directory.display();
        match Folder::open(&self.directory) {
            Ok((folder, read)) => {
                info!("addresses of new pods are learnt from {directory}");
                self.complained = false;
                self.folder = Some(folder);
                self.found = true;
                self.attachments.clear();
                self.take_in(read);
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    let held = if self.strict {
                        "; with --strict-pods every pod without a VIP that is not known yet is held"
                    } else {
                        ""
                    };
                    warn!(
                        "cannot watch {directory} ({error}): new pods are mapped when the API server tells their \
                         addresses, a second after their first packet{held}; name the directory with \
                         --cni-results-dir"
                    );
                }
                self.folder = None;
                self.found = false;
                false
            }
        }
    }

    fn take_in(&mut self, read: Vec<(OsString, Read)>) {
        for (name, read) in read {
            match read {
                Read::Attachment(attachment) => {
                    self.attachments.insert(name, attachment);
                }
                Read::Gone => {
                    self.attachments.remove(&name);
                }
                // What was read of it before may be of another time.
                Read::Ignored(why) => {
                    self.metrics.ignored(why);
                    self.attachments.remove(&name);
                }
            }
        }
        self.metrics.known(self.attachments.len());
    }
}
