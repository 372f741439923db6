//! Which of the replicas writes: the one that holds the Lease and renews it in time.
//!
//! # Guarantees
//! - A replica stops leading `renew_deadline` after it *sent* its last successful renewal, measured
//!   on its own monotonic clock, whether or not it hears anything more.
//! - Another takes over only when it has seen the Lease unchanged for the holder's whole duration,
//!   on its own clock, or when the holder has let go of it. Clocks of hosts are never compared.
//!
//! # Caveats
//! A request that was sent just before the deadline may arrive after it, which is why every write
//! of ours also carries the version of what it changes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long each thing of an election takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    duration: Duration,
    renew_deadline: Duration,
    retry: Duration,
}

/// Terms under which two could lead at once, or nobody for long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTerms {
    #[error("use a lease duration of whole seconds, at least 1")]
    Duration,
    #[error("use a renew deadline that is shorter than the lease duration")]
    Deadline,
    #[error("use a retry period that is shorter than the renew deadline, and not 0")]
    Retry,
}

impl Terms {
    /// `duration`: how long the Lease is valid after a renewal; whole seconds. `renew_deadline`:
    /// how long its holder leads after it. `retry`: how often it is renewed, or looked at.
    pub fn new(
        duration: Duration,
        renew_deadline: Duration,
        retry: Duration,
    ) -> Result<Self, InvalidTerms> {
        if duration.is_zero() || duration.subsec_nanos() != 0 {
            Err(InvalidTerms::Duration)
        } else if renew_deadline >= duration {
            Err(InvalidTerms::Deadline)
        } else if retry >= renew_deadline || retry.is_zero() {
            Err(InvalidTerms::Retry)
        } else {
            Ok(Self { duration, renew_deadline, retry })
        }
    }
}

/// Whether this replica leads, and until when. Clones share it.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Whether this replica may write now.
    pub fn leads(&self) -> bool {
        self.until().is_some()
    }

    /// Until when this replica leads unless it renews; `None` if it does not now.
    pub fn until(&self) -> Option<Instant> {
        self.0.borrow().filter(|until| *until > Instant::now())
    }

    /// Waits for news of the election; renewals are news, too. Ends never if there will be none.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The outcome of `work`, unless this replica stops leading first.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.until()?, work).await.ok()
    }
}

/// What keeps the Lease.
pub struct Elector {
    leases: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
    seen: Option<Seen>,
    lead: watch::Sender<Option<Instant>>,
}

/// The Lease as it was last read or written.
struct Seen {
    lease: Lease,
    /// When it was first seen like that.
    at: Instant,
}

/// What a Lease allows a replica to do.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It is ours.
    Renew,
    /// Nobody holds it, or its holder is silent.
    Take,
    /// Somebody else holds it.
    Wait,
}

fn turn(spec: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Turn {
    match spec.holder_identity.as_deref() {
        None | Some("") => Turn::Take,
        Some(holder) if holder == identity => Turn::Renew,
        Some(_) if unchanged_for >= duration_of(spec) => Turn::Take,
        Some(_) => Turn::Wait,
    }
}

fn duration_of(spec: &LeaseSpec) -> Duration {
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// The Lease that makes `identity` its holder from `now` on.
fn held(
    before: Option<&Lease>,
    name: &str,
    identity: &str,
    terms: &Terms,
    now: Timestamp,
) -> Lease {
    let before_spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let metadata = before.map_or_else(
        || ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        |lease| lease.metadata.clone(),
    );
    let renews = before_spec.holder_identity.as_deref() == Some(identity);
    let transitions = before_spec.lease_transitions.unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(terms.duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: if renews { before_spec.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if renews || before.is_none() {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..before_spec
    };
    Lease { metadata, spec: Some(spec) }
}

impl Elector {
    /// Takes part in the election for the Lease `name`; `identity` has to be this replica's alone.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        terms: Terms,
    ) -> (Self, Leadership) {
        let (lead, leadership) = watch::channel(None);
        let elector = Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            terms,
            seen: None,
            lead,
        };
        (elector, Leadership(leadership))
    }

    /// Stands for election until `stop`, then lets go of the Lease, so that another can take it at
    /// once. Nothing may be written any more when `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut complaint = String::new();
        while !stop.is_cancelled() {
            let started = Instant::now();
            let attempt = timeout(self.terms.renew_deadline / 2, self.attempt());
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                () = stop.cancelled() => break,
            };
            let problem = match outcome {
                Ok(Ok(leads)) => {
                    self.tell(leads.then(|| started + self.terms.renew_deadline));
                    String::new()
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer in time".to_owned(),
            };
            if !problem.is_empty() && problem != complaint {
                warn!("cannot renew or look at the lease {}: {problem}", self.name);
            }
            complaint = problem;
            tokio::select! {
                () = sleep_until(self.next(started)) => {}
                () = stop.cancelled() => break,
            }
        }
        self.let_go().await;
    }

    fn tell(&self, until: Option<Instant>) {
        let before = self.lead.send_replace(until);
        let led = before.is_some_and(|until| until > Instant::now());
        match (led, until.is_some()) {
            (false, true) => info!("leads: {} holds the lease {}", self.identity, self.name),
            (true, false) => info!("no longer leads: {} holds the lease", self.holder()),
            _ => {}
        }
    }

    fn holder(&self) -> &str {
        let spec = self.seen.as_ref().and_then(|seen| seen.lease.spec.as_ref());
        spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("nobody")
    }

    /// When to try next: after the retry period, or when the holder's time is over.
    fn next(&self, started: Instant) -> Instant {
        let retry = started + self.terms.retry;
        let spec = self.seen.as_ref().and_then(|seen| Some((seen.at, seen.lease.spec.as_ref()?)));
        match spec {
            Some((at, spec)) if spec.holder_identity.as_deref() != Some(&self.identity) => {
                retry.min((at + duration_of(spec)).max(started + Duration::from_millis(20)))
            }
            _ => retry,
        }
    }

    /// Renews the Lease, takes it, or finds that it is another's; whether it is ours then.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        // A holder renews without reading: its last write is the newest version, or it has lost.
        if self.holder() == self.identity {
            match self.write().await {
                Ok(()) => return Ok(true),
                Err(error) if is_outdated(&error) => debug!("the lease has changed: {error}"),
                Err(error) => return Err(error),
            }
        }
        self.look().await?;
        let turn = self.seen.as_ref().map_or(Turn::Take, |seen| {
            let spec = seen.lease.spec.clone().unwrap_or_default();
            turn(&spec, &self.identity, seen.at.elapsed())
        });
        if turn == Turn::Wait {
            return Ok(false);
        }
        match self.write().await {
            Ok(()) => Ok(true),
            // Another was faster.
            Err(error) if is_outdated(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let found = self.leases.get_opt(&self.name).await?;
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        self.seen = found.map(|lease| match self.seen.take() {
            Some(seen) if version(&seen.lease) == version(&lease) => seen,
            _ => Seen { lease, at: Instant::now() },
        });
        Ok(())
    }

    async fn write(&mut self) -> Result<(), kube::Error> {
        let before = self.seen.as_ref().map(|seen| &seen.lease);
        let lease = held(before, &self.name, &self.identity, &self.terms, Timestamp::now());
        let written = self.send(before.is_some(), &lease).await?;
        self.seen = Some(Seen { lease: written, at: Instant::now() });
        Ok(())
    }

    async fn send(&self, exists: bool, lease: &Lease) -> Result<Lease, kube::Error> {
        let params = PostParams::default();
        if exists {
            self.leases.replace(&self.name, &params, lease).await
        } else {
            self.leases.create(&params, lease).await
        }
    }

    async fn let_go(mut self) {
        self.lead.send_replace(None);
        if self.holder() != self.identity {
            return;
        }
        let Some(Seen { mut lease, .. }) = self.seen.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match timeout(Duration::from_secs(2), self.send(true, &lease)).await {
            Ok(Ok(_)) => info!("has let go of the lease {}", self.name),
            Ok(Err(error)) => warn!("cannot let go of the lease {}: {error}", self.name),
            Err(_) => warn!("cannot let go of the lease {}: no answer", self.name),
        }
    }
}

/// Somebody else has written, created or deleted it since we looked.
fn is_outdated(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn spec(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    fn terms() -> Terms {
        Terms::new(Duration::from_secs(15), Duration::from_secs(10), Duration::from_secs(2))
            .unwrap()
    }

    #[rstest]
    #[case(None, 0, Turn::Take)]
    #[case(Some(""), 0, Turn::Take)]
    #[case(Some("me"), 100, Turn::Renew)]
    #[case(Some("other"), 14, Turn::Wait)]
    #[case(Some("other"), 15, Turn::Take)]
    fn a_lease_is_taken_when_its_holder_is_silent_or_gone(
        #[case] holder: Option<&str>,
        #[case] seconds: u64,
        #[case] expected: Turn,
    ) {
        assert_eq!(turn(&spec(holder), "me", Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn only_a_new_holder_counts_as_a_transition() {
        let now = Timestamp::from_second(1000).unwrap();
        let lease = |holder| Lease { spec: Some(spec(Some(holder))), ..Lease::default() };
        let after = |before: Option<Lease>| {
            held(before.as_ref(), "l", "me", &terms(), now).spec.unwrap_or_default()
        };
        let summary = |spec: LeaseSpec| (spec.lease_transitions, spec.acquire_time.map(|t| t.0));
        assert_eq!(summary(after(Some(lease("me")))), (Some(3), Some(Timestamp::UNIX_EPOCH)));
        assert_eq!(summary(after(Some(lease("other")))), (Some(4), Some(now)));
        assert_eq!(summary(after(None)), (Some(0), Some(now)));
    }

    #[rstest]
    #[case(15, 10, 2, Ok(()))]
    #[case(0, 10, 2, Err(InvalidTerms::Duration))]
    #[case(15, 15, 2, Err(InvalidTerms::Deadline))]
    #[case(15, 10, 10, Err(InvalidTerms::Retry))]
    #[case(15, 10, 0, Err(InvalidTerms::Retry))]
    fn terms_leave_no_room_for_two(
        #[case] duration: u64,
        #[case] deadline: u64,
        #[case] retry: u64,
        #[case] expected: Result<(), InvalidTerms>,
    ) {
        let [duration, deadline, retry] = [duration, deadline, retry].map(Duration::from_secs);
        assert_eq!(Terms::new(duration, deadline, retry).map(|_| ()), expected);
    }

    #[tokio::test]
    async fn leadership_ends_by_itself() {
        let (sender, receiver) = watch::channel(Some(Instant::now() + Duration::from_millis(300)));
        let leadership = Leadership(receiver);
        assert!(leadership.leads());
        assert_eq!(leadership.during(async { 1 }).await, Some(1));
        assert_eq!(leadership.during(std::future::pending::<()>()).await, None);
        assert!(!leadership.leads());
        assert_eq!(leadership.during(async { 1 }).await, None);
        drop(sender);
    }
}
