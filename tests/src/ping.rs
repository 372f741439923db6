//! ICMP echo.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::host::Host;

/// Sends `count` echo requests, 20 a second, and says how many were answered.
pub fn ping(host: &Host, to: IpAddr, count: u32) -> Result<u32> {
    let (count, to) = (count.to_string(), to.to_string());
    // Without an answer ping fails; what counts is the summary. The shell keeps it from being an error.
    let command = ["sh", "-c", "ping -n -q -i 0.05 -W 1 -c \"$0\" \"$1\" || true", &count, &to];
    let text = host.run(&command)?;
    text.lines()
        .find_map(|line| line.split(", ").find_map(|part| part.strip_suffix(" received")))
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("cannot understand what ping says: {text}"))
}
