//! Where the running agent's mappings come from: a directory or the API server.

use std::path::Path;

use prometheus_client::registry::Registry;
use shared::MappingsStore;
use shared::config_map::Object;

use super::Refusal;
use crate::api_server::{ApiServer, ApiThread};
use crate::metrics::SourceMetrics;
use crate::node_report::Reporter;
use crate::sources::Source;
use crate::sources::api::ApiSource;
use crate::sources::directory::DirectorySource;

/// Where mappings come from, and what depends on that.
pub(super) struct Origin {
    pub(super) address: String,
    pub(super) source: Source,
    pub(super) reporter: Option<Reporter>,
    pub(super) store: MappingsStore,
}

impl Origin {
    /// The directory if there is one, else the API server.
    pub(super) fn open(
        directory: Option<&Path>,
        api_server: Option<&ApiServer>,
        node: &str,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        if let Some(directory) = directory {
            let wanted = |object: &str| Object::of_name(object).is_some();
            return Ok(Self {
                address: directory.display().to_string(),
                source: Source::Directory(DirectorySource::open(directory, wanted)?),
                reporter: None,
                store: MappingsStore::default(),
            });
        }
        let server = api_server.ok_or(Refusal::NoSource)?;
        let api = ApiThread::start(server)?;
        let reporter = Some(Reporter::start(&api, node));
        let source = ApiSource::of_mappings(api, node, SourceMetrics::register(registry));
        Ok(Self {
            address: server.address(),
            source: Source::Api(Box::new(source)),
            reporter,
            store: MappingsStore::of_node(node),
        })
    }
}
