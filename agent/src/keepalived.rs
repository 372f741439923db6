//! The launcher of keepalived: which VIPs there are comes from `ConfigMaps`, who holds them is keepalived's business.
//!
//! What the launcher adds to that:
//! - priorities by rank, by who holds a VIP, and by whether this node's agent does its work ([`priority`]);
//! - a VIP is let go by a keepalived that is dead or frozen, too, once another node serves it ([`hearing`]);
//! - a VIP that is no longer wanted is let go last by its holder, so that it does not hop from node to node;
//! - on SIGTERM the VIPs are handed over before keepalived ends, and none is left behind.

pub(crate) mod agent_health;
pub mod config;
mod earned;
pub mod hearing;
mod metrics;
pub mod priority;
mod process;
mod readiness;
pub mod render;
mod state;
mod supervisor;
mod tracked;
mod work;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use shared::telemetry::Health;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::agent_health::{Verdict, watch_agent};
use self::config::Settings;
use self::hearing::Advert;
pub use self::metrics::Metrics;
use self::state::State;
pub use self::supervisor::{Supervisor, SupervisorError};
use self::tracked::Tracked;
use self::work::{Work, told};
use crate::kernel::KernelError;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::notifications::{Interest, Notice, Notifications, OwnPorts};
use crate::kernel::route_socket::RouteSocket;
use crate::kernel::vrrp::VrrpSocket;
use crate::routing::Ownership;
use crate::sources::{Batch, Source};

/// How often interfaces are looked at, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(5);
/// Before a directory that could not be read is read again.
const BEFORE_READING: Duration = Duration::from_secs(1);

/// Why the launcher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Files(#[from] SupervisorError),
}

/// What runs.
pub struct Launcher {
    pub source: Source,
    pub supervisor: Supervisor,
    pub settings: Settings,
    /// Where the agent of this node says whether it is ready; none: it always is.
    pub agent: Option<SocketAddr>,
    pub metrics: Metrics,
    pub health: Health,
    /// Takes what is seen of others that use VIPs of ours: lines, each a VIP and what.
    pub conflicts: watch::Sender<String>,
}

impl Launcher {
    /// Runs until `shutdown`, and has the VIPs let go then.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), LauncherError> {
        let Self { mut source, supervisor, settings, agent, metrics, health, conflicts } = self;
        let kernel = RouteSocket::open().map_err(KernelError::RouteSocket)?;
        let mut notifications = Notifications::subscribe(Interest {
            owned: Ownership::default(),
            tables: BTreeSet::new(),
            own_ports: OwnPorts::default(),
        })
        .map_err(KernelError::from)?;
        let ear = VrrpSocket::open().inspect_err(|error| {
            warn!("cannot hear other nodes ({error}); add the capability NET_RAW");
        });
        let (sender, mut verdict) = watch::channel::<Verdict>(None);
        let agent_answers = Arc::new(AtomicBool::new(agent.is_none()));
        match agent {
            Some(addr) => {
                drop(tokio::spawn(watch_agent(addr, sender.clone(), Arc::clone(&agent_answers))));
            }
            None => drop(sender.send_replace(Some(Ok(())))),
        }
        let tracked = Tracked::open(supervisor.file("priorities"))?;
        let mut work = Work {
            state: State::new(
                supervisor.accepted().map(render::vips_in).unwrap_or_default(),
                settings.advert_interval,
            ),
            shortened: BTreeSet::new(),
            ear: ear.ok(),
            conntrack: Conntrack::open().map_err(KernelError::from)?,
            agent_answers,
            has_read: false,
            stop_by: None,
            told: BTreeSet::new(),
            supervisor,
            settings,
            metrics,
            health,
            conflicts,
            tracked,
            kernel,
        };
        work.look().await?;
        work.stay();
        // A keepalived that runs already goes by what was known of the agent before.
        if !work.supervisor.is_running() {
            work.state.assume_no_agent();
        }
        work.hear_agent(&verdict.borrow_and_update());
        let (mut look_at, mut read_at) = (Instant::now() + INTERVAL, Instant::now());
        while !work.is_over() {
            work.health.beat();
            let wake_at = work.wake_at(look_at);
            let mut look = false;
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if work.stop_by.is_none() => work.hand_over(),
                notice = notifications.next() => {
                    let notice = notice.map_err(KernelError::from)?;
                    let notices = notifications.drain().map_err(KernelError::from)?;
                    look = notices.iter().chain([&notice]).any(concerns_vips);
                }
                event = work.supervisor.next() => look = work.take_in(event).await?,
                Ok(()) = verdict.changed() => work.hear_agent(&verdict.borrow_and_update()),
                adverts = hear(work.ear.as_mut()) => {
                    look = work.hear(&adverts).await;
                    // There may be thousands a second, and nearly all of them are no news.
                    if !look && wake_at > Instant::now() {
                        continue;
                    }
                }
                batch = source.next(), if read_at <= Instant::now() && work.stop_by.is_none() => {
                    match batch {
                        Ok(Batch { waiting, changes, .. }) => {
                            work.has_read |= waiting.is_none();
                            work.state.learn(changes);
                        }
                        Err(error) => {
                            warn!("{}", told(&error));
                            read_at = Instant::now() + BEFORE_READING;
                        }
                    }
                }
                () = sleep_until(wake_at) => {}
            }
            if look || look_at <= Instant::now() {
                look_at = Instant::now() + INTERVAL;
                work.look().await?;
            }
            work.bring_in_line().await?;
        }
        work.supervisor.stop().await;
        work.look().await?;
        work.remove_remains().await;
        Ok(())
    }
}

/// Whether the VIPs that are here, or their interfaces, may be others now.
fn concerns_vips(notice: &Notice) -> bool {
    matches!(
        notice,
        Notice::Address { .. }
            | Notice::Link { .. }
            | Notice::LinkGone { .. }
            | Notice::Networks
            | Notice::Overrun
    )
}

async fn hear(ear: Option<&mut VrrpSocket>) -> Vec<Advert> {
    match ear {
        Some(ear) => ear.next().await,
        None => std::future::pending().await,
    }
}
