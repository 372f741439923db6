//! Mappings from the API server: `ConfigMaps` of one namespace, each watched by its name, but for the blocks of VIPs,
//! of which a node watches those that are its own. A node that may hold VIPs, or holds one,
//! watches the pods and blocks of all nodes.
//!
//! Nothing is told before all that is watched was listed once, so that a half-read state is never acted on. After
//! that an object that is gone is told as missing, which leaves its last content in use, and an outage is told to
//! nobody but the log and the metrics.

mod board;
mod follower;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use tracing::warn;

use self::board::Board;
use self::follower::Follower;
use self::watch::WIDER;
pub use self::watch::Watch;
use super::Batch;
use crate::api_server::ApiThread;
use crate::metrics::SourceMetrics;

/// Objects of the API server, as a stream of changes. Dropping it ends its thread.
pub struct ApiSource {
    board: Arc<Board>,
    api: ApiThread,
    node: String,
    metrics: SourceMetrics,
}

impl ApiSource {
    /// Starts to watch what mappings are made of on the node.
    pub fn of_mappings(api: ApiThread, node: &str, metrics: SourceMetrics) -> Self {
        let watches = [
            Watch::RouteIds,
            Watch::Networks,
            Watch::Candidates,
            Watch::PodsOfNode,
            Watch::BlocksOfNode,
        ];
        Self::start(api, node, &watches, metrics)
    }

    /// Starts to watch what says which VIPs there are, and who should hold them.
    pub fn of_vips(api: ApiThread, node: &str, metrics: SourceMetrics) -> Self {
        let watches = [Watch::Vips, Watch::RouteIds, Watch::Candidates, Watch::Networks];
        Self::start(api, node, &watches, metrics)
    }

    fn start(api: ApiThread, node: &str, watches: &[Watch], metrics: SourceMetrics) -> Self {
        let source = Self {
            board: Arc::new(Board::new(node, own_addresses(), watches)),
            api,
            node: node.to_owned(),
            metrics,
        };
        for watch in watches {
            source.follow(*watch);
        }
        source
    }

    /// Waits for changes, which are there as soon as the server tells them. Until everything was listed once, tells
    /// only what it waits for.
    ///
    /// Cancel safe: a batch that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Batch {
        loop {
            let news = self.board.news();
            let mut waiter = std::pin::pin!(news);
            waiter.as_mut().enable();
            if self.board.take_wider() {
                for watch in WIDER {
                    self.follow(watch);
                }
            }
            if let Some(batch) = self.board.take() {
                return batch;
            }
            waiter.await;
        }
    }

    /// This node holds a VIP, so the pods of other nodes are its business from now on.
    pub fn holds_vip(&self) {
        self.board.holds();
    }

    fn follow(&self, watch: Watch) {
        let follower = Follower {
            watch,
            config_maps: self.api.config_maps(),
            node: self.node.clone(),
            board: Arc::clone(&self.board),
            metrics: self.metrics.of(watch),
        };
        self.api.runtime().spawn(follower.run());
    }
}

/// None where the kernel does not tell: candidates alone count then.
fn own_addresses() -> BTreeSet<IpAddr> {
    let found =
        getifaddrs().inspect_err(|error| warn!("cannot read this node's addresses: {error}"));
    let addresses = found.into_iter().flatten().filter_map(|of| of.address);
    addresses.filter_map(|address| address_of(&address)).collect()
}

fn address_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}
