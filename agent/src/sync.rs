//! Keeps the kernel what it should be: look, decide, act, remember.
//!
//! The shell around [`desired`](crate::desired) and [`plan`](crate::plan). Level-triggered: what
//! is told to it only says what to look at again. What was seen or done is remembered, so that a
//! change of one pod costs one walk over memory and one transaction.

mod memory;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use shared::mappings::{Change, Incomplete};
use shared::{Block, MappingsStore, Vip};
use tracing::{debug, error, info, warn};

use self::memory::Memory;
pub use self::why::Why;
use crate::desired::{Note, Settings, desired, ruleset_input};
use crate::direct::{DirectVip, Proven};
use crate::kernel::notifications::Notice;
use crate::kernel::{Kernel, KernelError};
use crate::metrics::{Counts, Metrics, Part};
use crate::node_facts::NodeFacts;
use crate::plan::{Step, plan};
use crate::port_use::Destination;
use crate::routing::Foreign;
use crate::ruleset::{Input, Ruleset};
use crate::unsure::{Assigned, Strict, Unsure, Vouched, Waiting};

/// Why the kernel does not hold all that is desired.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Nothing was done: what the kernel holds stays as it is.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    /// The kernel could not be looked at; nothing was done.
    #[error("cannot look at the kernel")]
    Look(#[source] KernelError),
    /// Some steps failed, and the removals that had to wait for them were not taken.
    #[error("{failed} of {steps} steps failed")]
    Steps { failed: usize, steps: usize },
}

/// What the agent knows of mappings and kernel, and what it does about it.
pub struct Sync {
    kernel: Kernel,
    settings: Settings,
    metrics: Metrics,
    store: MappingsStore,
    memory: Memory,
    rendered: Option<(Input, Ruleset)>,
    /// The addresses of this node's pods, if they are told.
    assigned: Option<Assigned>,
    waiting: Waiting,
    /// Unknown pods never leave.
    strict: Option<Strict>,
    vouched: Vouched,
    notes: Vec<Note>,
    /// Whose rules and routes have been complained of.
    foreign: BTreeSet<Foreign>,
    why: Why,
    /// Connections that are kept may have ended.
    some_may_have_ended: bool,
    /// Something other than a stranger may have made the kernel differ from what is desired.
    unsettled: bool,
}

impl Sync {
    /// Knows nothing yet but how mappings are made.
    pub fn new(
        kernel: Kernel,
        settings: Settings,
        metrics: Metrics,
        store: MappingsStore,
        strict: Option<Strict>,
    ) -> Self {
        Self {
            kernel,
            settings,
            metrics,
            store,
            memory: Memory::default(),
            rendered: None,
            assigned: None,
            waiting: Waiting::default(),
            strict,
            vouched: Vouched::default(),
            notes: Vec::new(),
            foreign: BTreeSet::new(),
            why: Why::Start,
            some_may_have_ended: false,
            unsettled: true,
        }
    }

    /// Whether pods have to be asked about that no mapping is for.
    pub const fn asks(&self) -> bool {
        self.strict.is_some()
    }

    /// The mappings so far.
    pub const fn store(&self) -> &MappingsStore {
        &self.store
    }

    /// Numbers of what is mapped and what is wrong with it. Looks at every pod.
    pub fn counts(&self) -> Counts {
        let rejected = self.store.rejected().len();
        let missing = self.store.missing().count();
        let Ok(mappings) = self.store.mappings() else {
            return Counts { rejected, missing, ..Counts::default() };
        };
        let expected = self.store.expected().len();
        let mapped = mappings.pods().values().flatten().count();
        Counts {
            unknown_held: self.vouched.unsure.at(Instant::now()) != Unsure::No,
            known: self.vouched.known.len(),
            mapped,
            expected,
            held: mappings.pods().len() - mapped,
            vips: mappings.vips().len(),
            vips_here: self.memory.facts.held(mappings.vips().keys().copied()).len(),
            rejected,
            missing,
        }
    }

    /// The VIPs of the mappings that were an address of this node at the last look.
    pub fn held(&self) -> BTreeSet<Vip> {
        let vips = self.store.mappings().map(|mappings| mappings.vips().keys().copied());
        vips.map_or_else(|_| BTreeSet::new(), |vips| self.memory.facts.held(vips))
    }

    /// Takes a VIP off this node; the next synchronisation does what follows from that.
    pub async fn release(&mut self, vip: Vip) -> Result<(), KernelError> {
        // Of what is done over our own sockets no notice comes.
        self.notice(&Notice::Networks);
        match self.memory.facts.holding(vip).map(|device| device.index) {
            Some(device) => self.kernel.remove_vip(vip, device).await,
            None => Ok(()),
        }
    }

    /// Takes in news of mappings.
    pub fn learn(&mut self, changes: Vec<Change>) {
        for change in changes {
            let effect = self.store.apply(change);
            self.unsettled |= effect.vips || effect.networks || !effect.pods.is_empty();
            self.memory.pods_changed(effect.pods);
        }
        self.why = self.why.max(Why::Mappings);
    }

    /// Until when unknown pods are held, if they are and that ends by itself.
    pub fn unsure_until(&self) -> Option<Instant> {
        match self.vouched.unsure.at(Instant::now()) {
            Unsure::Until(end) => Some(end),
            Unsure::No | Unsure::Always => None,
        }
    }

    /// Takes in which addresses the pods of this node have: all that are known, if any are told.
    /// Whether that is news.
    pub fn learn_addresses(&mut self, assigned: Option<Assigned>) -> bool {
        if assigned == self.assigned {
            return false;
        }
        let pods = assigned.as_ref().map(|assigned| assigned.pods.clone());
        self.assigned = assigned;
        let effect = self.store.learn(pods.unwrap_or_default());
        self.unsettled |= !effect.pods.is_empty();
        self.memory.pods_changed(effect.pods);
        self.why = self.why.max(Why::Mappings);
        true
    }

    /// Decides anew which pods are known, and what becomes of others.
    fn vouch(&mut self) {
        let now = Instant::now();
        let expected = self.store.expected().into_keys().collect();
        let (assigned, seen) = (self.assigned.as_ref(), &self.memory.observed.pods);
        let vouched = match &mut self.strict {
            None => self.waiting.vouch(&expected, assigned, now),
            Some(strict) => strict.vouch(&expected, self.store.uncovered(), assigned, seen),
        };
        // What has gone by itself needs no step.
        let seen = &mut self.memory.observed.pods.unsure;
        *seen = seen.map(|unsure| unsure.at(now));
        self.unsettled |= vouched != self.vouched;
        self.vouched = vouched;
    }

    /// Takes in which blocks are proven: answers to what leaves here with their ports come back.
    /// Whether that changes anything.
    pub fn learn_proofs(&mut self, proven: BTreeMap<Vip, BTreeSet<Block>>) -> bool {
        // An operator who says that proof is not needed is not contradicted.
        if self.settings.proven == Proven::Assumed {
            return false;
        }
        let proven = Proven::These(proven);
        let is_news = self.settings.proven != proven;
        self.settings.proven = proven;
        self.unsettled |= is_news;
        if is_news {
            self.why = self.why.max(Why::Proofs);
        }
        is_news
    }

    /// Takes in where hardly a port of this node's blocks is left. Whether that changes anything.
    pub fn learn_full(&mut self, full: BTreeSet<Destination>) -> bool {
        let is_news = self.settings.full != full;
        self.settings.full = full;
        self.unsettled |= is_news;
        if is_news {
            self.why = self.why.max(Why::Proofs);
        }
        is_news
    }

    /// What the kernel was last to hold of VIPs on the direct path.
    pub fn direct(&self, vip: Vip) -> Option<&DirectVip> {
        self.rendered.as_ref()?.0.direct.get(&vip)
    }

    /// What the node was like at the last look.
    pub const fn facts(&self) -> &NodeFacts {
        &self.memory.facts
    }

    /// Takes in that something has changed in the kernel. Whether there is anything to look at.
    pub fn notice(&mut self, notice: &Notice) -> bool {
        let matters = self.memory.doubt(notice, self.settings.interface.as_deref());
        if matters {
            self.why = self.why.max(Why::of(notice));
        }
        matters
    }

    /// Has everything looked at again that can be looked at cheaply.
    pub fn look_again(&mut self) {
        self.memory.doubt_all();
        self.some_may_have_ended = true;
    }

    /// Makes the kernel what it should be, as far as it differs from that. Returns how many steps
    /// that took.
    pub async fn sync(&mut self) -> Result<usize, SyncError> {
        self.store.mappings()?;
        let looked = Instant::now();
        let look = self.memory.look(&mut self.kernel).await;
        self.metrics.took(Part::Observe, looked.elapsed());
        match look {
            Ok(node_changed) => self.unsettled |= node_changed,
            Err(error) => {
                self.metrics.failed(Part::Observe);
                return Err(SyncError::Look(error));
            }
        }
        let steps = self.decide()?;
        let outcome = self.act(steps).await;
        if std::mem::take(&mut self.some_may_have_ended) {
            let ended = self.kernel.keep_no_more(self.settings.ownership.marks()).await;
            if let Err(error) = ended {
                warn!("{:#}", anyhow::Error::from(error));
            }
        }
        if outcome.is_ok() {
            self.memory.settled();
        }
        self.why = if outcome.is_ok() { Why::Interval } else { Why::Retry };
        self.unsettled |= outcome.is_err();
        outcome
    }

    /// What there is to do. Looks at reverse path filters on the way, for which ones matter
    /// depends on what is desired.
    fn decide(&mut self) -> Result<Vec<Step>, SyncError> {
        self.vouch();
        let mappings = self.store.mappings()?;
        let (input, notes) = ruleset_input(mappings, &self.memory.facts, &self.settings);
        for note in notes.iter().filter(|note| !self.notes.contains(note)) {
            warn!(vip = %note.vip, "{note}");
        }
        self.notes = notes;
        let ruleset = match self.rendered.take() {
            Some((rendered, ruleset)) if rendered == input => ruleset,
            _ => Ruleset::render(&input),
        };
        let (_, ruleset) = self.rendered.insert((input, ruleset));
        let mut desired = desired(mappings, &self.memory.facts, &self.settings, ruleset);
        desired.vouched = &self.vouched;
        self.memory.look_at_filters(&self.kernel, &desired.loose);
        let foreign = &self.memory.observed.routing.foreign;
        for other in foreign.difference(&self.foreign).filter(|other| other.overrides_ours) {
            warn!("{other}: somebody else's, comes before ours, and is left alone; remove it");
        }
        self.foreign.clone_from(foreign);
        let marks = self.settings.ownership.marks();
        let memory = &self.memory;
        let touched = memory.touched.as_ref();
        let steps = plan(&desired, &memory.observed, touched, &memory.loaded, marks);
        // All pods are in that text: not for each that comes or goes.
        let only_pods = |step: &Step| {
            use Step::{ChangePods, ForgetPods, ForgetUndecided};
            matches!(step, ChangePods(_) | ForgetPods(_) | ForgetUndecided { .. })
        };
        if !steps.iter().all(only_pods) {
            debug!(why = %self.why, "desired state:\n{}", desired.as_text(self.kernel.tables()));
        }
        Ok(steps)
    }

    async fn act(&mut self, steps: Vec<Step>) -> Result<usize, SyncError> {
        let (planned, mut failed) = (steps.len(), Vec::new());
        let repair = !self.unsettled;
        // A notice about the node or of mappings may have come with it, but nothing came of that.
        let why = if repair { self.why.min(Why::Stranger) } else { self.why };
        for step in steps {
            if failed.iter().any(|failed| step.waits_for(failed, &self.memory.observed)) {
                debug!("waits for what failed before it: {step}");
                continue;
            }
            let part = Part::of(&step);
            let started = Instant::now();
            let outcome = self.take(&step).await;
            self.metrics.took(part, started.elapsed());
            match outcome {
                Ok(()) if repair => warn!(%why, "repaired: {step}"),
                Ok(()) => info!(%why, "{step}"),
                Err(error) => {
                    self.metrics.failed(part);
                    error!(%why, "{:#}", anyhow::Error::from(error));
                    failed.push(step);
                }
            }
        }
        let failed = failed.len();
        if repair {
            self.metrics.repaired(planned - failed);
        }
        if failed == 0 {
            self.metrics.succeeded();
        } else {
            return Err(SyncError::Steps { failed, steps: planned });
        }
        self.unsettled = false;
        Ok(planned)
    }

    /// Takes a step, and remembers what the kernel holds after it or, if it failed, that this is
    /// no longer known.
    async fn take(&mut self, step: &Step) -> Result<(), KernelError> {
        let outcome = self.kernel.perform(step, self.settings.ownership.marks()).await;
        self.memory.remember(step, outcome.is_ok(), &mut self.kernel)?;
        outcome
    }
}

impl Part {
    const fn of(step: &Step) -> Self {
        match step {
            Step::Loosen(_)
            | Step::AddRoute(_)
            | Step::AddRule(_)
            | Step::DeleteRule(_)
            | Step::DeleteRoute(_)
            | Step::DeleteStray(_) => Self::Routing,
            Step::ChangeTables(_) | Step::ChangeIngress(_) => Self::Tables,
            Step::ChangePods(_) => Self::Pods,
            Step::ForgetPods(_)
            | Step::ForgetUndecided { .. }
            | Step::ForgetHolder { .. }
            | Step::Keep(_)
            | Step::Rebind { .. } => Self::Connections,
        }
    }
}
