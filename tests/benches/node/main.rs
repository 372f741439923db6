//! What the node side costs: `cargo bench -p tests`, as root.
//!
//! Three parts: how much traffic of a pod gets through with ours, compared with forwarding as plain
//! as can be and with the rules of kube-egress, all in one run and in turns (`traffic`); what the
//! holder of a VIP keeps of connections (`holder`); and how long the agent takes for what it does, and
//! what it needs for it (`agent_times`). Figures of one
//! run can be compared with each other, those of two runs hardly.

mod agent_times;
mod holder;
mod kernel_news;
mod mapped;
mod plain;
mod table;
mod traffic;
mod variants;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tests::Agent;

use table::Verdicts;

#[derive(Debug, Parser)]
#[command(name = "node", about = "What the node side costs. Needs root.")]
struct Options {
    /// Fewer pods, fewer and shorter measurements.
    #[arg(long)]
    quick: bool,
    /// One part only.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How often each traffic measurement takes its turn.
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<usize>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets, connections and round trips.
    Traffic,
    /// What the holder knows at many connections.
    Holder,
    /// Times and memory of the agent.
    Agent,
}

fn main() -> Result<()> {
    let options = Options::parse();
    Agent::build_release()?;
    let mut verdicts = Verdicts::default();
    let wants = |part| options.only.is_none_or(|only| only == part);
    if wants(Part::Traffic) {
        traffic::measure(options.quick, options.rounds, &mut verdicts)?;
    }
    if wants(Part::Holder) {
        holder::measure(&mut verdicts)?;
    }
    if wants(Part::Agent) {
        agent_times::measure(options.quick, &mut verdicts)?;
    }
    verdicts.print();
    Ok(())
}
