//! Whether the agent of this node does its work, asked often enough that one that hangs is noticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long an answer may take.
const ANSWERED_WITHIN: Duration = Duration::from_millis(400);
/// How long an agent may be away: its rules work without it, and a VIP that moves for every restart of an agent is worse
/// than one that stays.
const GRACE: Duration = Duration::from_secs(3);

/// What is known of the agent; the error says what is wrong.
pub(super) type Verdict = Option<Result<(), String>>;

/// Asks until nobody listens any more. `answers` is the last answer, of which the verdict makes allowance for a while.
pub(super) async fn watch_agent(
    addr: SocketAddr,
    verdict: watch::Sender<Verdict>,
    answers: Arc<AtomicBool>,
) {
    let mut good_until = Instant::now() + GRACE;
    while !verdict.is_closed() {
        let answer = match timeout(ANSWERED_WITHIN, ask(addr)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".to_owned()),
        };
        answers.store(answer.is_ok(), Ordering::Relaxed);
        let news = match answer {
            Ok(()) => {
                good_until = Instant::now() + GRACE;
                Some(Ok(()))
            }
            Err(_) if Instant::now() < good_until => None,
            Err(why) => Some(Err(why)),
        };
        if let Some(news) = news {
            verdict.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&news);
                *known = Some(news);
                changed
            });
        }
        sleep(INTERVAL).await;
    }
}

/// Ready, and its main loop turns.
async fn ask(addr: SocketAddr) -> Result<(), String> {
    for path in ["/readyz", "/healthz"] {
        get(addr, path).await?;
    }
    Ok(())
}

async fn get(addr: SocketAddr, path: &str) -> Result<(), String> {
    fetch(addr, path, 4096).await.map(drop)
}

/// The body of the answer, of which at most `most` bytes are read; the error says what is wrong.
pub(crate) async fn fetch(addr: SocketAddr, path: &str, most: u64) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let talk = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(most).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = talk.await.map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(body.to_owned());
    }
    Err(if body.is_empty() { "no answer of HTTP".to_owned() } else { body.to_owned() })
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use shared::telemetry::{Health, listen, serve};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn an_agent_is_good_when_it_says_so_and_bad_after_a_while() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (health, shutdown) = (Health::new(Duration::from_mins(1)), CancellationToken::new());
        let pages = Vec::new();
        let served = serve(listener, Registry::default(), health.clone(), pages, shutdown.clone());
        tokio::spawn(served);
        let (sender, mut verdict) = watch::channel(None);
        tokio::spawn(watch_agent(addr, sender, Arc::default()));
        let started = Instant::now();
        assert!(verdict.wait_for(Option::is_some).await.unwrap().as_ref().unwrap().is_err());
        assert!(started.elapsed() >= GRACE);
        health.set_ready();
        verdict.wait_for(|verdict| *verdict == Some(Ok(()))).await.unwrap();
        shutdown.cancel();
        let bad = |verdict: &Verdict| verdict.as_ref().is_some_and(Result::is_err);
        verdict.wait_for(bad).await.unwrap();
    }
}
