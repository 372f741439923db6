//! The direct path in the running agent: has it proven, has ports counted, tells what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shared::config_map::BlockUse;
use shared::{Block, Mappings, Vip, VipPath};

use crate::block_use::{BlockUses, own_blocks};
use crate::desired::Settings;
use crate::direct::Proven;
use crate::kernel::port_counting::{PortCounter, Wanted};
use crate::kernel::proving::Prover;
use crate::kernel::{Kernel, KernelError};
use crate::metrics::{DirectMetrics, OwnPorts};
use crate::port_use::{Destination, Own, OwnBlocks};
use crate::proof::{Choice, claims};
use crate::sync::Sync;

/// How long new connections to a destination go another way after its ports had run out: that changes
/// rules, which is not to be done each second.
const FULL_FOR: Duration = Duration::from_secs(30);
/// At most so many destinations are kept apart: each is an element of a rule.
const MOST_FULL: usize = 1000;

/// What proves and what counts.
pub struct Direct {
    node: String,
    interface: Option<String>,
    /// An operator knows that the way works.
    assumed: bool,
    targets: Vec<IpAddr>,
    prover: Prover,
    counter: PortCounter,
    metrics: DirectMetrics,
    uses: BlockUses,
    /// Where ports have run out, with when that was seen last.
    full: BTreeMap<Destination, Instant>,
}

impl Direct {
    /// Begins with nothing to prove. `targets` are asked instead of the default gateway.
    pub fn start(
        kernel: &Kernel,
        metrics: DirectMetrics,
        settings: &Settings,
        targets: &[IpAddr],
    ) -> Result<Self, KernelError> {
        Ok(Self {
            node: settings.node.clone(),
            interface: settings.interface.clone(),
            assumed: settings.proven == Proven::Assumed,
            targets: targets.to_vec(),
            prover: Prover::start(metrics.probes.clone()).map_err(KernelError::Thread)?,
            counter: kernel.count_ports()?,
            metrics,
            uses: BlockUses::default(),
            full: BTreeMap::new(),
        })
    }

    /// Has proven what there is to prove by now: before the kernel is changed, which takes a moment.
    pub fn claim(&self, sync: &Sync) {
        let Ok(mappings) = sync.store().mappings() else { return };
        if !self.assumed {
            let choice = Choice { interface: self.interface.as_deref(), targets: &self.targets };
            self.prover.claim(claims(mappings, sync.facts(), &self.node, &choice));
        }
    }

    /// Has ports counted, now that the kernel holds what is desired: no new connection gets a port of a
    /// block that drains.
    pub fn count(&mut self, sync: &Sync) {
        let Ok(mappings) = sync.store().mappings() else { return };
        let vips = mappings.vips().iter().map(|(vip, id)| (*id, *vip)).collect();
        self.counter.want(Wanted { own: self.own(mappings), vips });
    }

    /// Waits for news of proofs or ports. Cancel safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.prover.changed() => {}
            () = self.counter.changed() => {}
        }
    }

    /// The blocks that were proven.
    pub fn proven(&self) -> BTreeMap<Vip, BTreeSet<Block>> {
        let verdicts = self.prover.verdicts().into_iter();
        let proven = verdicts.map(|(vip, verdict)| (vip, verdict.proven));
        proven.filter(|(_, blocks)| !blocks.is_empty()).collect()
    }

    /// Where hardly a port is left, or was a moment ago: the most recent ones, if they are very many.
    pub fn full(&mut self) -> BTreeSet<Destination> {
        let now = Instant::now();
        self.full.extend(self.counter.found().ports.full.iter().map(|to| (*to, now)));
        self.full.retain(|_, seen| now.duration_since(*seen) < FULL_FOR);
        let mut full: Vec<_> = self.full.iter().map(|(to, seen)| (*seen, *to)).collect();
        full.sort_unstable_by(|a, b| b.cmp(a));
        full.into_iter().take(MOST_FULL).map(|(_, to)| to).collect()
    }

    /// What to report; none while the mappings are not known.
    pub fn report(&mut self, sync: &Sync) -> Option<BTreeMap<Vip, BlockUse>> {
        let mappings = sync.store().mappings().ok()?;
        let own = self.own(mappings);
        let found = self.counter.found();
        self.uses.learn(&own, &found);
        let verdicts = self.prover.verdicts();
        let report = self.uses.report(&own, |vip| sync.direct(vip), &verdicts, &found);
        let ports = report.iter().map(|(vip, of)| {
            let available = own.get(vip).map_or(0, OwnBlocks::ports);
            let ports = OwnPorts {
                direct: of.path == VipPath::Direct,
                used: found.ports.used.get(vip).copied().unwrap_or_default(),
                available: u16::try_from(available).unwrap_or(u16::MAX),
            };
            (*vip, ports)
        });
        self.metrics.set(&ports.collect());
        Some(report)
    }

    fn own(&self, mappings: &Mappings) -> Own {
        own_blocks(mappings, &self.node)
    }
}
