//! What the launcher does when something is news: it says what it is worth to keepalived, has it take a new
//! configuration, and takes VIPs off this node that keepalived no longer serves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use shared::Vip;
use shared::telemetry::Health;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::agent_health::Verdict;
use super::config::{Adverts, Settings};
use super::hearing::Advert;
use super::metrics::Metrics;
use super::priority::{STAYING, STOPPING};
use super::render;
use super::state::State;
use super::supervisor::{Event, Supervisor};
use super::tracked::Tracked;
use crate::kernel::KernelError;
use crate::kernel::addresses::remove_vip;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::links::read_node_facts;
use crate::kernel::neighbour_queue::shorten_queue;
use crate::kernel::route_socket::RouteSocket;
use crate::kernel::vrrp::VrrpSocket;
use crate::routing::MarkMask;

/// How long others may take to notice that this node is the worst, in adverts and besides.
const HANDED_OVER_WITHIN: (u32, Duration) = (5, Duration::from_millis(300));

/// The launcher at work.
pub(super) struct Work {
    pub(super) supervisor: Supervisor,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) conflicts: watch::Sender<String>,
    pub(super) tracked: Tracked,
    pub(super) state: State,
    /// Without it: the right to is missing.
    pub(super) ear: Option<VrrpSocket>,
    /// Interfaces on which little waits for neighbours that do not answer.
    pub(super) shortened: BTreeSet<u32>,
    pub(super) kernel: RouteSocket,
    pub(super) conntrack: Conntrack,
    pub(super) agent_answers: Arc<AtomicBool>,
    pub(super) has_read: bool,
    /// It is handing over its VIPs, and ends by then.
    pub(super) stop_by: Option<Instant>,
    pub(super) told: BTreeSet<String>,
}

impl Work {
    pub(super) fn wake_at(&self, look_at: Instant) -> Instant {
        let retry = (!self.has_read).then_some(look_at);
        [self.stop_by, self.state.due(), retry].into_iter().flatten().fold(look_at, Instant::min)
    }

    /// Whether there is nothing to wait for any more.
    pub(super) fn is_over(&self) -> bool {
        self.stop_by.is_some_and(|by| {
            by <= Instant::now() || self.state.held().is_empty() || !self.supervisor.is_running()
        })
    }

    /// Has the other nodes take over, while this one still serves.
    pub(super) fn hand_over(&mut self) {
        let (adverts, besides) = HANDED_OVER_WITHIN;
        self.stop_by = Some(Instant::now() + self.settings.advert_interval * adverts + besides);
        info!("stops: {} VIPs are handed over", self.state.held().len());
        self.say_for_all(STOPPING);
    }

    /// Takes back what a launcher before may have said when it stopped.
    pub(super) fn stay(&mut self) {
        self.say_for_all(STAYING);
    }

    fn say_for_all(&mut self, adds: i16) {
        if let Err(error) = self.tracked.say(render::STANDING, adds) {
            error!("{}", told(&error));
        }
    }

    pub(super) fn hear_agent(&mut self, verdict: &Verdict) {
        let Some(verdict) = verdict else { return };
        self.metrics.agent_ready.set(verdict.is_ok().into());
        match verdict {
            Ok(()) => info!("the agent of this node is ready"),
            Err(why) => {
                warn!("the agent of this node is not ready, so other nodes are better: {why}");
            }
        }
        self.state.hear_agent(verdict.is_ok());
    }

    /// What happened to keepalived; true when addresses are to be looked at.
    pub(super) async fn take_in(&mut self, event: Event) -> Result<bool, KernelError> {
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
    pub(super) async fn hear(&mut self, adverts: &[Advert]) -> bool {
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

    pub(super) async fn look(&mut self) -> Result<(), KernelError> {
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
    pub(super) async fn remove_remains(&mut self) {
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

    /// Adverts that are sent to each node by itself must not wait for one that is gone.
    async fn shorten_queues(&mut self) {
        if self.settings.adverts == Adverts::Multicast {
            return;
        }
        for index in self.state.interfaces() {
            if self.shortened.insert(index)
                && let Err(error) = shorten_queue(&self.kernel, index).await
            {
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
    pub(super) async fn bring_in_line(&mut self) -> Result<(), KernelError> {
        if self.has_read && self.stop_by.is_none() {
            self.state.decide(&self.settings);
            if let Some(ear) = &mut self.ear {
                ear.join(self.state.interfaces());
            }
            self.shorten_queues().await;
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
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
