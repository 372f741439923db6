//! The launcher of keepalived: which VIPs there are comes from `ConfigMaps`, who holds them is keepalived's business.
//!
//! What the launcher adds to that:
//! - priorities by rank, by who holds a VIP, and by whether this node's agent does its work ([`priority`]);
//! - a VIP is let go by a keepalived that is dead or frozen, too, once another node serves it ([`hearing`]);
//! - a VIP that is no longer wanted is let go last by its holder, so that it does not hop from node to node;
//! - on SIGTERM the VIPs are handed over before keepalived ends, and none is left behind.

pub(crate) mod agent_health;
pub mod config;
pub mod hearing;
mod metrics;
pub mod priority;
mod process;
pub mod render;
mod state;
mod supervisor;
mod tracked;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use shared::Vip;
use shared::telemetry::Health;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::agent_health::{Verdict, watch_agent};
use self::config::Settings;
use self::hearing::Advert;
pub use self::metrics::Metrics;
use self::priority::Standing;
use self::state::State;
use self::supervisor::Event;
pub use self::supervisor::{Supervisor, SupervisorError};
use self::tracked::Tracked;
use crate::kernel::KernelError;
use crate::kernel::addresses::remove_vip;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::links::read_node_facts;
use crate::kernel::notifications::{Interest, Notice, Notifications, OwnPorts};
use crate::kernel::route_socket::RouteSocket;
use crate::kernel::vrrp::VrrpSocket;
use crate::routing::{MarkMask, Ownership};
use crate::sources::{Batch, Source};

/// How often interfaces are looked at, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(5);
/// Before a directory that could not be read is read again.
const BEFORE_READING: Duration = Duration::from_secs(1);
/// How long others may take to notice that this node is the worst, in adverts and besides.
const HANDED_OVER_WITHIN: (u32, Duration) = (5, Duration::from_millis(300));

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

/// The launcher at work.
struct Work {
    supervisor: Supervisor,
    settings: Settings,
    metrics: Metrics,
    health: Health,
    conflicts: watch::Sender<String>,
    tracked: Tracked,
    state: State,
    standing: Option<Standing>,
    /// Without it: the right to is missing.
    ear: Option<VrrpSocket>,
    kernel: RouteSocket,
    conntrack: Conntrack,
    agent_answers: Arc<AtomicBool>,
    has_read: bool,
    /// It is handing over its VIPs, and ends by then.
    stop_by: Option<Instant>,
    told: BTreeSet<String>,
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
            state: State::new(supervisor.accepted().map(render::vips_in).unwrap_or_default()),
            // What is known of the agent is what was known before, when keepalived runs already.
            standing: None,
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
        if !work.supervisor.is_running() {
            work.stand(Standing::Unhealthy);
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

impl Work {
    fn wake_at(&self, look_at: Instant) -> Instant {
        let retry = (!self.has_read).then_some(look_at);
        [self.stop_by, self.state.due(), retry].into_iter().flatten().fold(look_at, Instant::min)
    }

    /// Whether there is nothing to wait for any more.
    fn is_over(&self) -> bool {
        self.stop_by.is_some_and(|by| {
            by <= Instant::now() || self.state.held().is_empty() || !self.supervisor.is_running()
        })
    }

    /// Has the other nodes take over, while this one still serves.
    fn hand_over(&mut self) {
        let (adverts, besides) = HANDED_OVER_WITHIN;
        self.stop_by = Some(Instant::now() + self.settings.advert_interval * adverts + besides);
        info!("stops: {} VIPs are handed over", self.state.held().len());
        self.stand(Standing::Stopping);
    }

    fn stand(&mut self, standing: Standing) {
        if self.stop_by.is_some() && standing != Standing::Stopping {
            return;
        }
        self.standing = Some(standing);
        if let Err(error) = self.tracked.say(render::STANDING, standing.adds()) {
            error!("{}", told(&error));
        }
    }

    fn hear_agent(&mut self, verdict: &Verdict) {
        let standing = match verdict {
            None => return,
            Some(Ok(())) => Standing::Healthy,
            Some(Err(_)) => Standing::Unhealthy,
        };
        self.metrics.agent_ready.set(i64::from(standing == Standing::Healthy));
        if let Some(Err(why)) = verdict {
            warn!("the agent of this node is not ready, so other nodes are better: {why}");
        } else {
            info!("the agent of this node is ready");
        }
        self.stand(standing);
    }

    /// What happened to keepalived; true when addresses are to be looked at.
    async fn take_in(&mut self, event: Event) -> Result<bool, KernelError> {
        match event {
            Event::Due => {
                // keepalived would do it as well, a little later.
                self.look().await?;
                self.remove_remains().await;
                self.look().await?;
                self.state.begin_anew();
                self.write_places();
                match self.supervisor.start().await {
                    Ok(()) => drop(self.metrics.starts.inc()),
                    Err(error) => error!("{}", told(&error)),
                }
            }
            Event::Reloaded => {
                info!("keepalived reloads its configuration");
                self.metrics.reloads.inc();
            }
            Event::Accepted => {}
            Event::Refused => drop(self.metrics.refusals.inc()),
            Event::Ended(how) => {
                let wait = self.supervisor.start_at().saturating_duration_since(Instant::now());
                // It says that another one runs, and calls that a success.
                error!("keepalived ended ({how}); started again in {:.1} s", wait.as_secs_f64());
            }
        }
        Ok(true)
    }

    /// Takes adverts in; true when a VIP was let go.
    async fn hear(&mut self, adverts: &[Advert]) -> bool {
        let rivals = self.state.hear(adverts, Clock::now());
        if rivals.is_empty() || self.supervisor.serves() {
            return false;
        }
        for vip in &rivals {
            warn!("another node serves VIP {vip}, and keepalived here does not: it is let go");
            self.metrics.released.inc();
        }
        self.remove(&rivals).await;
        self.supervisor.kill();
        true
    }

    async fn look(&mut self) -> Result<(), KernelError> {
        let facts = read_node_facts(&self.kernel).await?;
        let before = self.state.held().clone();
        self.state.look(facts);
        let marks = MarkMask::default();
        let mut wrong = BTreeSet::new();
        for vip in self.state.held().difference(&before) {
            info!("VIP {vip} is here");
            self.metrics.gained.inc();
            wrong.extend(self.state.route_id(*vip).map(|id| marks.away(id)));
        }
        for vip in before.difference(self.state.held()) {
            info!("VIP {vip} has left");
            self.metrics.lost.inc();
            wrong.extend(self.state.route_id(*vip).map(|id| marks.here(id)));
        }
        if !wrong.is_empty() && !self.agent_answers.load(Ordering::Relaxed) {
            self.rebind(&wrong, marks);
        }
        Ok(())
    }

    /// Does what the agent does when a VIP comes or goes, while it cannot: connections that were decided otherwise are
    /// decided anew, in the rules that it has left.
    fn rebind(&mut self, wrong: &BTreeSet<u32>, marks: MarkMask) {
        let outcome =
            self.conntrack.delete_where(|entry| wrong.contains(&(entry.mark & marks.mask())));
        if let Err(error) = outcome {
            error!("{}", told(&error));
        }
    }

    /// What keepalived has left behind: it does not run.
    async fn remove_remains(&mut self) {
        let remains = self.state.held().clone();
        self.remove(&remains).await;
    }

    async fn remove(&self, vips: &BTreeSet<Vip>) {
        for (vip, device) in self.state.places_of(vips) {
            if let Err(error) = remove_vip(&self.kernel, vip, device).await {
                error!("{}", told(&error));
            }
        }
    }

    fn write_places(&mut self) {
        for (vip, adds) in self.state.adds() {
            if let Err(error) = self.tracked.say(&render::file_of(vip), adds.into()) {
                error!("{}", told(&error));
            }
        }
    }

    /// Has keepalived do what is wanted, as far as that is known.
    async fn bring_in_line(&mut self) -> Result<(), KernelError> {
        if self.has_read && self.stop_by.is_none() {
            self.state.decide(&self.settings);
            if let Some(ear) = &mut self.ear {
                ear.join(self.state.interfaces());
            }
        }
        self.write_places();
        let mut faults = self.state.faults(Clock::now());
        self.metrics.conflicts.set(i64::try_from(faults.conflicts.len()).unwrap_or(i64::MAX));
        if self.has_read && self.stop_by.is_none() {
            match self.state.render(&self.settings, self.tracked.directory()) {
                Some(text) => {
                    if let Err(error) = self.supervisor.want(text) {
                        faults.others.push(told(&error));
                    }
                }
                None if self.supervisor.accepted().is_some() => {
                    self.supervisor.stop().await;
                    self.look().await?;
                    self.remove_remains().await;
                }
                None => {}
            }
            if self.supervisor.accepted().is_some_and(|text| text.len() > 1) {
                let state = &self.state;
                self.tracked.keep_only(|name| name == render::STANDING || state.names(name));
            }
        }
        if let Some(refusal) = self.supervisor.refusal() {
            faults.others.push(told(refusal));
        }
        let count = self.state.counts();
        self.metrics.vips.set(count.0);
        self.metrics.held.set(count.1);
        self.metrics.faults.set(i64::try_from(faults.others.len()).unwrap_or(i64::MAX));
        let lines: Vec<String> =
            faults.conflicts.iter().map(|(vip, seen)| format!("{vip} {seen}\n")).collect();
        self.conflicts.send_if_modified(|told| {
            let lines = lines.concat();
            let news = *told != lines;
            *told = lines;
            news
        });
        let conflicts = faults.conflicts.into_iter().map(|(_, seen)| seen);
        self.tell(faults.others.into_iter().chain(conflicts).collect());
        if !self.has_read {
            self.health.set_unready("VIPs were not read yet");
        } else if self.supervisor.accepted().is_some() && !self.supervisor.is_running() {
            self.health.set_unready("keepalived does not run");
        } else {
            self.health.set_ready();
        }
        Ok(())
    }

    /// Tells each fault when it comes and when it goes.
    fn tell(&mut self, faults: BTreeSet<String>) {
        for fault in faults.difference(&self.told) {
            error!("{fault}");
        }
        for fault in self.told.difference(&faults) {
            info!("no longer: {fault}");
        }
        self.told = faults;
    }
}

/// An error with its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
