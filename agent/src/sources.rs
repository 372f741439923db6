//! Where the agent's mappings come from. A source turns what it reads into changes of objects (`ConfigMaps`); it
//! decides nothing about their meaning.

pub mod api;
pub mod cni_results;
pub mod directory;

use shared::mappings::Change;

use self::api::ApiSource;
use self::directory::{DirectorySource, SourceError, Unusable};

/// One of the two.
pub enum Source {
    /// A directory.
    Directory(DirectorySource),
    /// The Kubernetes API server.
    Api(Box<ApiSource>),
}

impl Source {
    /// Waits for changes. The first batch with any has the whole content of every wanted object that is there; later
    /// ones what changed. An error may pass: another call tries again.
    ///
    /// Cancel safe: a batch that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Batch, SourceError> {
        match self {
            Self::Directory(directory) => directory.next().await,
            Self::Api(api) => Ok(api.next().await),
        }
    }

    /// This node holds a VIP, also if nobody said that it may: it serves the pods of other nodes.
    pub fn holds_vip(&self) {
        match self {
            Self::Directory(_) => {}
            Self::Api(api) => api.holds_vip(),
        }
    }
}

/// What changed since the batch before.
#[derive(Debug, Default)]
pub struct Batch {
    /// At most one change per object, or [`Missing`](shared::mappings::Content::Missing) and its content if it went
    /// and came back.
    pub changes: Vec<Change>,
    /// What was found and cannot be used. It keeps the value told before.
    pub unreadable: Vec<Unreadable>,
    /// Why nothing could be read yet; then the rest is empty.
    pub waiting: Option<String>,
}

/// A key, or with no key an object, that is there but cannot be used.
#[derive(Debug)]
pub struct Unreadable {
    pub object: String,
    pub key: Option<String>,
    pub reason: Unusable,
}
