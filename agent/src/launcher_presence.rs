//! Whether the launcher of keepalived is there on this node: whether something listens on its port. A launcher that is
//! busy or frozen still does; the kernel answers for it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::leftovers::Presence;

/// Where the launcher of keepalived on this node serves probes, and what it has seen of others.
pub const LAUNCHER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9799);
/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks until nobody listens any more.
pub async fn watch_launcher(launcher: SocketAddr, told: mpsc::Sender<Presence>) {
    loop {
        let presence = match timeout(INTERVAL, TcpStream::connect(launcher)).await {
            Ok(Ok(_)) => Presence::Answers,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Presence::Refused,
            Ok(Err(_)) | Err(_) => Presence::Unclear,
        };
        if told.send(presence).await.is_err() {
            return;
        }
        sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_launcher_that_ends_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut told) = mpsc::channel(1);
        tokio::spawn(watch_launcher(listener.local_addr().unwrap(), sender));
        assert_eq!(told.recv().await, Some(Presence::Answers));
        drop(listener);
        while told.recv().await.unwrap() != Presence::Refused {}
    }
}
