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
        Self::start(host, &[filter])
    }

    /// Starts to watch who says where addresses are, and who asks.
    pub fn of_neighbours(host: &Host) -> Result<Self> {
        // ip6[40] is the type of a message of ICMPv6 without extension headers.
        Self::start(host, &["-e", "arp or (icmp6 and (ip6[40] = 135 or ip6[40] = 136))"])
    }

    fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        command.args(["-nn", "-l", "--immediate-mode", "-i", "eth0"]).args(arguments);
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

    /// What was said of neighbours and not told before; see [`Witness::of_neighbours`].
    pub fn neighbour_news(&self) -> Vec<NeighbourNews> {
        let all = self.lines(usize::MAX, Duration::from_millis(50));
        all.iter().filter_map(|line| NeighbourNews::read(line)).collect()
    }
}

/// A frame of ARP or neighbour discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourNews {
    /// The MAC address of its sender.
    pub from: String,
    /// The address that it is about.
    pub about: IpAddr,
    /// Whether it asks for that address; else it says to everybody where it is.
    pub asks: bool,
}

impl NeighbourNews {
    /// Reads a line of `tcpdump -e`; an answer to somebody is none.
    fn read(line: &str) -> Option<Self> {
        let from = line.split_whitespace().nth(1)?.to_owned();
        let after =
            |word: &str| -> Option<&str> { line.split_once(word)?.1.split([' ', ',']).next() };
        let told =
            |about: &str, asks| Some(Self { from: from.clone(), about: about.parse().ok()?, asks });
        if let Some(about) = after("Announcement ") {
            return told(about, false);
        }
        if let Some(about) = after("who-has ") {
            return told(about, after(" tell ") != Some(about));
        }
        if let Some(about) = after("neighbor solicitation, who has ") {
            return told(about, true);
        }
        after("neighbor advertisement, tgt is ")
            .filter(|_| line.contains(" > ff02::1: "))
            .and_then(|about| told(about, false))
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
