//! What the holder of a VIP has to know of connections: on the path over it, and on the direct one.

use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Host;

use crate::table::{self, Verdicts, count};
use crate::variants::{Pod, Stage, Variant, direct, with_agents};

/// Ports of the pod (fewer than a process may have sockets), and ports outside: as many connections
/// as both multiplied.
const PORTS: u16 = 900;
const DESTINATIONS: u16 = 112;
/// The first port outside; nobody listens there.
const FIRST: u16 = 40_000;
const TURN: Duration = Duration::from_millis(500);
const TURNS: usize = 3;

/// Opens the connections on both paths, and says what each node keeps of them and how many answers
/// get through meanwhile.
pub(crate) fn measure(verdicts: &mut Verdicts) -> Result<()> {
    let many = usize::from(PORTS) * usize::from(DESTINATIONS);
    let entry_bytes = entry_bytes()?;
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for stage in [with_agents(1, 0, &[Pod::Mapped])?, direct(8, 1, &[Pod::Mapped])?] {
        for &variant in &stage.variants {
            let before = best(&stage, variant)?;
            let sockets = open(stage.load(variant).client, &stage)?;
            let [of_pod, of_holder] = [1, 2].map(|node| connections(stage.node(node)));
            let (of_pod, of_holder) = (of_pod?, of_holder?);
            let after = best(&stage, variant)?;
            drop(sockets);
            let megabytes = |entries: usize| {
                #[expect(clippy::cast_precision_loss, reason = "for people")]
                let bytes = (entries * entry_bytes) as f64;
                format!("{entries} ({:.1} MB)", bytes / 1e6)
            };
            let times = vec![count(before), count(after)];
            rows.push(
                [variant.to_string(), megabytes(of_pod), megabytes(of_holder)]
                    .into_iter()
                    .chain(times)
                    .collect::<Vec<_>>(),
            );
            kept.push((variant, of_pod, of_holder));
        }
    }
    table::heading(&format!("The holder at {many} connections of one pod elsewhere"));
    table::rows(
        &[
            "",
            "known to the pod's node",
            "known to the holder",
            "answers/s before",
            "answers/s with them",
        ],
        &rows,
    );
    for (variant, of_pod, of_holder) in kept {
        ensure!(of_pod >= many * 9 / 10, "{variant}: only {of_pod} connections came to be");
        if let Variant::Direct { .. } = variant {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let of_holder = of_holder as f64;
            verdicts.at_most("connections that the holder knows, direct", of_holder, 100.0, "");
        }
    }
    Ok(())
}

/// The best of some turns.
fn best(stage: &Stage, variant: Variant) -> Result<f64> {
    let mut turns = (0..TURNS).map(|_| stage.load(variant).replies(TURN));
    turns.try_fold(0.0, |best, rate| Ok(f64::max(best, rate?)))
}

/// One packet on each connection.
fn open(pod: &Host, stage: &Stage) -> Result<Vec<UdpSocket>> {
    let outside = stage.outside().v4;
    let sockets = pod.enter(|| -> io::Result<Vec<UdpSocket>> {
        let socket = |_| UdpSocket::bind(("0.0.0.0", 0));
        (0..PORTS).map(socket).collect()
    })??;
    for port in FIRST..FIRST + DESTINATIONS {
        let to = SocketAddr::V4(SocketAddrV4::new(outside, port));
        for socket in &sockets {
            // An error is about the packet before: the port is closed there.
            if socket.send_to(&[0], to).is_err() {
                socket.send_to(&[0], to)?;
            }
        }
    }
    Ok(sockets)
}

/// How many connections a node tracks.
fn connections(node: &Host) -> Result<usize> {
    let text =
        node.enter(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))??;
    Ok(text.trim().parse()?)
}

/// What the kernel takes for a tracked connection, without its extensions.
fn entry_bytes() -> Result<usize> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let line = text.lines().find(|line| line.starts_with("nf_conntrack "));
    // Kernels merge caches of one size, and then this one has no line of its own.
    Ok(line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(256))
}
