//! The direct path in the running agent: has it proven, has ports counted, tells what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shared::config_map::BlockUse;
use shared::{Block, Mappings, Vip, VipPath};

use crate::block_use::{BlockUses, own_blocks};
use crate::direct::Hindrance;
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
    targets: Vec<IpAddr>,
    prover: Prover,
    counter: PortCounter,
    metrics: DirectMetrics,
    uses: BlockUses,
}

impl Direct {
    /// For the node of that name, whose uplink is `interface`, if that is given. `targets` are asked
    /// instead of the default gateway.
    pub fn start(
        kernel: &Kernel,
        metrics: DirectMetrics,
        node: &str,
        interface: Option<&str>,
        targets: &[IpAddr],
    ) -> Result<Self, KernelError> {
        Ok(Self {
            node: node.to_owned(),
            interface: interface.map(str::to_owned),
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
        if sync.assumes_direct() {
            return;
        }
        let choice = Choice { interface: self.interface.as_deref(), targets: &self.targets };
        self.prover.claim(claims(mappings, sync.facts(), &self.node, &choice));
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
        let mut verdicts = self.prover.verdicts();
        let mut open = BTreeMap::new();
        for (vip, direct) in sync.direct() {
            open.insert(vip, direct.open.clone());
            // What stands in the way of proof is known better by who proves.
            let hindrance = direct.hindrance.filter(|why| *why != Hindrance::NotProven);
            if let Some(why) = hindrance {
                verdicts.entry(vip).or_default().message = why.to_string();
            }
        }
        let report = self.uses.report(&own, &open, &verdicts, &found);
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
