//! Where mappings and VIPs come from: a directory or the API server.

use std::path::Path;

use prometheus_client::registry::Registry;
use shared::MappingsStore;
use shared::config_map::{CANDIDATES, NETWORKS, Object, ROUTE_IDS, VIPS};
use tokio::sync::mpsc;

use super::Refusal;
use crate::api_server::{ApiServer, ApiThread};
use crate::cli::Keepalived;
use crate::launcher_presence::{LAUNCHER, watch_launcher};
use crate::leftovers::Presence;
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
    /// Whether the launcher of keepalived is there, again and again.
    pub(super) launcher: Option<mpsc::Receiver<Presence>>,
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
                launcher: None,
                store: MappingsStore::default(),
            });
        }
        let server = api_server.ok_or(Refusal::NoSource)?;
        let api = ApiThread::start(server)?;
        let reporter = Some(Reporter::start(&api, node));
        let (told, launcher) = mpsc::channel(1);
        drop(api.runtime().spawn(watch_launcher(LAUNCHER, told)));
        let source = ApiSource::of_mappings(api, node, SourceMetrics::register(registry));
        Ok(Self {
            address: server.address(),
            source: Source::Api(Box::new(source)),
            reporter,
            launcher: Some(launcher),
            store: MappingsStore::of_node(node),
        })
    }
}

/// Where the launcher of keepalived learns of VIPs.
pub(super) async fn of_vips(
    options: &Keepalived,
    node: &str,
    registry: &mut Registry,
) -> anyhow::Result<Source> {
    if let Some(directory) = &options.mappings_dir {
        let wanted = |object: &str| [VIPS, ROUTE_IDS, CANDIDATES, NETWORKS].contains(&object);
        return Ok(Source::Directory(DirectorySource::open(directory, wanted)?));
    }
    let namespace = options.services_configmap.as_ref().ok_or(Refusal::NoVips)?;
    let api = ApiThread::start(&ApiServer::find(namespace).await?)?;
    Ok(Source::Api(Box::new(ApiSource::of_vips(api, node, SourceMetrics::register(registry)))))
}
