//! The launcher of keepalived: which VIPs there are comes from `ConfigMaps`, who holds them is keepalived's business.

pub mod config;
mod supervisor;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::config::{Objects, Settings};
pub use self::supervisor::{Supervisor, SupervisorError};
use crate::kernel::KernelError;
use crate::kernel::links::read_node_facts;
use crate::kernel::route_socket::RouteSocket;
use crate::sources::Source;

/// How often interfaces are looked at, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(5);

/// What runs.
pub struct Launcher {
    pub source: Source,
    pub supervisor: Supervisor,
    pub settings: Settings,
}

impl Launcher {
    /// Runs until `shutdown`, and has the VIPs let go then.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), KernelError> {
        let socket = RouteSocket::open().map_err(KernelError::RouteSocket)?;
        let mut objects = Objects::default();
        let mut has_read = false;
        let mut told = BTreeSet::new();
        let mut look_at = Instant::now();
        loop {
            let wake_at = self.supervisor.due().map_or(look_at, |due| due.min(look_at));
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.supervisor.ended() => {}
                batch = self.source.next() => match batch {
                    Ok(batch) => {
                        has_read |= batch.waiting.is_none();
                        batch.changes.into_iter().for_each(|change| objects.apply(change));
                    }
                    Err(error) => {
                        warn!("{:#}", anyhow::Error::from(error));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                () = sleep_until(wake_at) => look_at = Instant::now() + INTERVAL,
            }
            if has_read {
                let facts = read_node_facts(&socket).await?;
                let rendered = objects.render(&facts, &self.settings);
                let mut faults: BTreeSet<String> = rendered.faults.into_iter().collect();
                debug!("{}", rendered.text.as_deref().unwrap_or("no VIP for this node"));
                let outcome = self.supervisor.bring_in_line(rendered.text.as_deref()).await;
                faults
                    .extend(outcome.err().map(|error| format!("{:#}", anyhow::Error::from(error))));
                tell(&mut told, faults);
            }
        }
        self.supervisor.stop().await;
        Ok(())
    }
}

/// Tells each fault when it comes and when it goes.
fn tell(told: &mut BTreeSet<String>, faults: BTreeSet<String>) {
    for fault in faults.difference(told) {
        error!("{fault}");
    }
    for fault in told.difference(&faults) {
        info!("no longer: {fault}");
    }
    *told = faults;
}
