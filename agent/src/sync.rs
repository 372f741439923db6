//! Keeps the kernel what it should be: look, decide, act, remember.
//!
//! The shell around [`desired`](crate::desired) and [`plan`](crate::plan). Level-triggered: what
//! is told to it only says what to look at again. What was seen or done is remembered, so that a
//! change of one pod costs one walk over memory and one transaction.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use shared::mappings::{Change, Incomplete};
use shared::{MappingsStore, PodIp};
use tracing::{debug, error, info, warn};

use crate::desired::{Note, Settings, desired, ruleset_input};
use crate::kernel::notifications::Notice;
use crate::kernel::{Kernel, KernelError};
use crate::kernel_state::{LoadedDigests, Observed};
use crate::metrics::{Counts, Metrics, Part};
use crate::node_facts::NodeFacts;
use crate::plan::{Step, TableChange, TablesChange, plan};
use crate::pod_tables::PodSet;
use crate::ruleset::{Input, Ruleset};

/// Why the kernel is looked at, the most telling reason of all that have come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Time has passed.
    Interval,
    /// Something of ours was changed by somebody else.
    Stranger,
    /// An attempt has failed.
    Retry,
    /// An address, a device or a network of the node has changed.
    Node,
    /// The mappings have changed.
    Mappings,
    /// The agent has started.
    Start,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interval => "found at a regular look",
            Self::Stranger => "changed by somebody else",
            Self::Retry => "tried again",
            Self::Node => "the node changed",
            Self::Mappings => "mappings changed",
            Self::Start => "agent started",
        })
    }
}

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

/// What of the kernel has to be looked at again.
#[derive(Clone, Copy, Debug)]
struct Stale {
    facts: bool,
    routing: bool,
    tables: bool,
    pods: bool,
    strict: bool,
}

impl Stale {
    const ALL: Self = Self { facts: true, routing: true, tables: true, pods: true, strict: true };
}

/// The agent's memory of mappings and kernel.
pub struct Sync {
    kernel: Kernel,
    settings: Settings,
    metrics: Metrics,
    store: MappingsStore,
    facts: NodeFacts,
    observed: Observed,
    /// Where the pods in `observed` are.
    holders: [Option<(u64, u64)>; 4],
    stale: Stale,
    generation: u32,
    rendered: Option<(Input, Ruleset)>,
    notes: Vec<Note>,
    loaded: [LoadedDigests; 2],
    unforgotten: BTreeSet<PodIp>,
    why: Why,
    /// Something other than a stranger may have made the kernel differ from what is desired.
    unsettled: bool,
}

impl Sync {
    /// Knows nothing yet.
    pub fn new(kernel: Kernel, settings: Settings, metrics: Metrics) -> Self {
        Self {
            kernel,
            settings,
            metrics,
            store: MappingsStore::default(),
            facts: NodeFacts::default(),
            observed: Observed::default(),
            holders: [None; 4],
            stale: Stale::ALL,
            generation: 0,
            rendered: None,
            notes: Vec::new(),
            loaded: Default::default(),
            unforgotten: BTreeSet::new(),
            why: Why::Start,
            unsettled: true,
        }
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
        let mapped = mappings.pods().values().flatten().count();
        Counts {
            mapped,
            held: mappings.pods().len() - mapped,
            vips: mappings.vips().len(),
            vips_here: self.facts.held(mappings.vips().keys().copied()).len(),
            rejected,
            missing,
        }
    }

    /// Takes in news of mappings.
    pub fn learn(&mut self, changes: Vec<Change>) {
        for change in changes {
            let effect = self.store.apply(change);
            if effect.vips || effect.networks || !effect.pods.is_empty() {
                self.unsettled = true;
            }
        }
        self.why = self.why.max(Why::Mappings);
    }

    /// Takes in that something has changed in the kernel.
    pub fn notice(&mut self, notice: &Notice) {
        let why = match notice {
            Notice::Address { .. } | Notice::Networks | Notice::Routed { .. } => {
                self.stale.facts = true;
                Why::Node
            }
            // Routes and settings go with their devices, without a notice of their own.
            Notice::Link { .. } | Notice::LinkGone { .. } => {
                self.stale.facts = true;
                self.stale.routing = true;
                self.stale.strict = true;
                Why::Node
            }
            Notice::Routing => {
                self.stale.routing = true;
                Why::Stranger
            }
            Notice::NetConf { .. } => {
                self.stale.strict = true;
                Why::Stranger
            }
            Notice::Nftables { .. } => {
                self.stale.tables = true;
                Why::Stranger
            }
            Notice::Elements { .. } => {
                self.stale.pods = true;
                Why::Stranger
            }
            Notice::Overrun => {
                self.stale = Stale::ALL;
                Why::Interval
            }
        };
        self.why = self.why.max(why);
    }

    /// Has everything looked at again; tables only if anybody has changed any since.
    ///
    /// Pods are not: reading them takes long, and every change of them by others is told of, or
    /// that it was lost. What shows of them with the tables has to agree.
    pub fn look_again(&mut self) -> Result<(), SyncError> {
        let stale = &mut self.stale;
        (stale.facts, stale.routing, stale.strict) = (true, true, true);
        let generation = self.kernel.generation().map_err(SyncError::Look)?;
        if generation != self.generation {
            stale.tables = true;
        }
        Ok(())
    }

    /// Makes the kernel what it should be, as far as it differs from that. Returns how many steps
    /// that took.
    pub async fn sync(&mut self) -> Result<usize, SyncError> {
        self.store.mappings()?;
        let looked = Instant::now();
        let look = self.look().await;
        self.metrics.took(Part::Observe, looked.elapsed());
        if let Err(error) = look {
            self.metrics.failed(Part::Observe);
            return Err(SyncError::Look(error));
        }
        let steps = self.decide()?;
        let outcome = self.act(steps).await;
        self.why = if outcome.is_ok() { Why::Interval } else { Why::Retry };
        self.unsettled |= outcome.is_err();
        outcome
    }

    async fn look(&mut self) -> Result<(), KernelError> {
        if self.stale.facts {
            let facts = self.kernel.node_facts().await?;
            self.unsettled |= facts != self.facts;
            self.facts = facts;
            self.stale.facts = false;
        }
        if self.stale.routing {
            self.observed.routing = self.kernel.observe_routing().await?;
            self.stale.routing = false;
        }
        if self.stale.tables {
            self.look_at_tables()?;
            self.stale.pods |= self.contents_differ();
        }
        if self.stale.pods {
            self.observed.pods = self.kernel.dump_pods()?;
            self.holders = PodSet::ALL.map(|set| self.holder(set));
            self.stale.pods = false;
        }
        Ok(())
    }

    /// Which set in which table it is that holds these pods, by their numbers.
    fn holder(&self, set: PodSet) -> Option<(u64, u64)> {
        let table = if set.is_map() { &self.observed.main } else { &self.observed.guard };
        let table = table.as_ref()?;
        Some((table.handle, table.contents.get(set.name())?.handle))
    }

    /// Whether the maps and sets that were just looked at cannot hold the pods that are remembered:
    /// they are others, or hold another number.
    fn contents_differ(&self) -> bool {
        let counts = self.observed.pods.counts();
        PodSet::ALL.into_iter().zip(self.holders).any(|(set, holder)| {
            let table = if set.is_map() { &self.observed.main } else { &self.observed.guard };
            let seen = table.as_ref().and_then(|table| table.contents.get(set.name()));
            let count = seen.and_then(|seen| seen.count);
            self.holder(set) != holder
                || count.is_some_and(|count| usize::try_from(count) != Ok(counts.of(set)))
        })
    }

    fn look_at_tables(&mut self) -> Result<(), KernelError> {
        let seen = self.kernel.look_at_tables()?;
        self.observed.main = seen.main;
        self.observed.guard = seen.guard;
        self.generation = seen.generation;
        self.stale.tables = false;
        Ok(())
    }

    /// What there is to do. Looks at reverse path filters on the way, for which ones matter
    /// depends on what is desired.
    fn decide(&mut self) -> Result<Vec<Step>, SyncError> {
        let mappings = self.store.mappings()?;
        let (input, notes) = ruleset_input(mappings, &self.facts, &self.settings);
        for note in notes.iter().filter(|note| !self.notes.contains(note)) {
            warn!(vip = %note.vip, "{note}");
        }
        self.notes = notes;
        let ruleset = match self.rendered.take() {
            Some((rendered, ruleset)) if rendered == input => ruleset,
            _ => Ruleset::render(&input),
        };
        let (_, ruleset) = self.rendered.insert((input, ruleset));
        let desired = desired(mappings, &self.facts, &self.settings, ruleset);
        if self.stale.strict {
            self.observed.strict = self.kernel.strict(desired.loose.iter());
            self.stale.strict = false;
        }
        let marks = self.settings.ownership.marks();
        let mut steps = plan(&desired, &self.observed, &self.loaded, marks);
        // All pods are in that text: not for each that comes or goes.
        let only_pods = |step: &Step| matches!(step, Step::ChangePods(_) | Step::ForgetPods(_));
        if !steps.iter().all(only_pods) {
            debug!(why = %self.why, "desired state:\n{}", desired.as_text(self.kernel.tables()));
        }
        if !self.unforgotten.is_empty() {
            steps.push(Step::ForgetPods(std::mem::take(&mut self.unforgotten)));
        }
        Ok(steps)
    }

    async fn act(&mut self, steps: Vec<Step>) -> Result<usize, SyncError> {
        let (planned, mut failed) = (steps.len(), Vec::new());
        let repair = !self.unsettled;
        // A notice about the node or of mappings may have come with it, but nothing came of that.
        let why = if repair { self.why.min(Why::Stranger) } else { self.why };
        for step in steps {
            if failed.iter().any(|failed| step.waits_for(failed, &self.observed)) {
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
        let done = outcome.is_ok();
        match step {
            Step::Loosen(_) => self.stale.strict = true,
            Step::AddRoute(_)
            | Step::AddRule(_)
            | Step::DeleteRule(_)
            | Step::DeleteRoute(_)
            | Step::DeleteStray(_) => self.stale.routing = true,
            Step::ChangeTables(change) if done => self.loaded(change)?,
            Step::ChangeTables(_) => (self.stale.tables, self.stale.pods) = (true, true),
            Step::ChangePods(changes) if done => {
                self.observed.pods.apply(changes);
                // Else somebody else has changed something too: the next look finds out what.
                let next = self.generation.wrapping_add(1);
                if self.kernel.generation()? == next {
                    self.generation = next;
                }
            }
            Step::ChangePods(_) => self.stale.pods = true,
            Step::ForgetPods(pods) | Step::ForgetUndecided(pods) if !done => {
                self.unforgotten.extend(pods)
            }
            Step::Rebind { places, .. } if done => self.observed.places = Some(places.clone()),
            Step::ForgetPods(_)
            | Step::ForgetUndecided(_)
            | Step::ForgetHolder { .. }
            | Step::Rebind { .. } => {}
        }
        outcome
    }

    /// Looks at what was just loaded, to know it again.
    fn loaded(&mut self, change: &TablesChange) -> Result<(), KernelError> {
        self.look_at_tables()?;
        let mut replaced = [false; 2];
        let pods = &mut self.observed.pods;
        let seen = [&self.observed.main, &self.observed.guard];
        for (index, change) in [&change.main, &change.guard].into_iter().enumerate() {
            let Some(change) = change else { continue };
            self.loaded[index] = seen[index].as_ref().map(LoadedDigests::of).unwrap_or_default();
            if matches!(change, TableChange::Replace(_)) {
                if index == 0 {
                    pods.vips.clear()
                } else {
                    pods.guarded.clear()
                }
                pods.strays.retain(|stray| stray.set.is_map() != (index == 0));
                replaced[index] = true;
            }
        }
        for (at, set) in PodSet::ALL.into_iter().enumerate() {
            if replaced[usize::from(!set.is_map())] {
                self.holders[at] = self.holder(set);
            }
        }
        Ok(())
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
            Step::ChangeTables(_) => Self::Tables,
            Step::ChangePods(_) => Self::Pods,
            Step::ForgetPods(_)
            | Step::ForgetUndecided(_)
            | Step::ForgetHolder { .. }
            | Step::Rebind { .. } => Self::Connections,
        }
    }
}
