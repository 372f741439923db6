//! A real Kubernetes cluster on this machine, to try things in: it stays until it is told to end.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use tests::{KubeCluster, Lab, ProxyMode};

/// Starts a cluster; Ctrl-C removes it, and so does any other end of this program.
#[derive(Debug, Parser)]
#[command(name = "cluster", max_term_width = 100)]
struct Options {
    /// The number of workers, 1 to 9.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Lets kube-proxy use iptables instead of nftables.
    #[arg(long)]
    iptables: bool,
    /// An archive of an image to import on every node; may be given several times.
    #[arg(long = "image", value_name = "ARCHIVE")]
    images: Vec<PathBuf>,
    /// Ends at once and lets the cluster run on.
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // Before any thread is started, so that they all leave the signals to this one.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    ends.thread_block().context("cannot block signals")?;

    let start = Instant::now();
    let proxy_mode = if options.iptables { ProxyMode::Iptables } else { ProxyMode::Nftables };
    let cluster = KubeCluster::start_on(Lab::builder().nodes(options.nodes), proxy_mode)?;
    options.images.iter().try_for_each(|image| cluster.import_image(image))?;
    let names = cluster.lab().prefix();
    let mut out = stdout();
    writeln!(out, "up in {:.1} s; namespaces {names}*", start.elapsed().as_secs_f32())?;
    writeln!(out, "kubectl='{}'", cluster.server().kubectl_command()?)?;
    if options.keep {
        writeln!(out, "`kill {}` removes it.", cluster.keep()?)?;
        return Ok(());
    }
    writeln!(out, "Ctrl-C removes it.")?;
    ends.wait().context("cannot wait for a signal")?;
    Ok(())
}
