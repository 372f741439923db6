//! What a person sees on the machine outside the cluster: tcpdump's lines.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::Host;

const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// `tcpdump` on a host; it ends when this is dropped.
#[derive(Debug)]
pub struct Witness {
    tcpdump: Child,
    lines: Receiver<String>,
}

impl Witness {
    /// Starts to watch what fits the filter on `eth0`; it watches when this returns.
    pub fn on(host: &Host, filter: &str) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        command.args(["-nn", "-l", "-i", "eth0", filter]);
        let mut tcpdump =
            host.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let stdout = tcpdump.stdout.take().context("no output of tcpdump")?;
        let stderr = tcpdump.stderr.take().context("no output of tcpdump")?;
        let (sender, lines) = channel();
        let (speaker, spoken) = channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|l| speaker.send(l))
        });
        let witness = Self { tcpdump, lines };
        let mut said = String::new();
        let deadline = Instant::now() + STARTS_WITHIN;
        while !said.contains("listening on") {
            match spoken.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push_str(&line),
                Err(_) => bail!("tcpdump does not watch {}: {said}", host.name),
            }
        }
        Ok(witness)
    }

    /// The next lines, `count` of them or as many as there are after a time.
    pub fn lines(&self, count: usize, within: Duration) -> Vec<String> {
        let deadline = Instant::now() + within;
        let next = || {
            let wait = deadline.saturating_duration_since(Instant::now());
            self.lines.recv_timeout(wait).ok()
        };
        std::iter::from_fn(next).take(count).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Who sent the packet of that line, `… IP 192.0.2.1 > 192.0.2.2: …`.
pub fn sender(line: &str) -> Option<IpAddr> {
    let after = line.split_once(" IP ").or_else(|| line.split_once(" IP6 "))?.1;
    after.split_once(" > ")?.0.parse().ok()
}
