//! The direct path in the running agent: has it proven, has ports counted, tells what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::config_map::BlockUse;
use shared::{Block, Mappings, Vip, VipPath};

use crate::block_use::{BlockUses, own_blocks};
use crate::desired::Settings;
use crate::direct::Proven;
use crate::kernel::port_counting::{PortCounter, Wanted};
use crate::kernel::proving::Prover;
use crate::kernel::{Kernel, KernelError};
use crate::metrics::{DirectMetrics, OwnPorts};
use crate::port_use::{Own, OwnBlocks};
use crate::proof::{Choice, claims};
use crate::sync::Sync;

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
