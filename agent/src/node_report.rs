//! What this node says of itself: which VIPs it holds and whether it is in sync, in a `ConfigMap` of its own. The one
//! thing the agent writes to the API server.
//!
//! A VIP that comes or goes and an address that was learnt are written at once, anything else at most once a second, nothing when nothing differs.
//! What fails is tried again. Nobody waits for any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams};
use shared::config_map::{
    BlockUse, NodeReport, REPORT_LABEL, decode_node_report, encode_node_report, label_of_node,
    report_keys, report_of_node,
};
use shared::{PodIp, PodUid, Vip};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::api_server::{ANSWER_WITHIN, ApiThread, told};
use crate::keepalived::agent_health::fetch;
use crate::launcher_presence::LAUNCHER;

/// Whose fields of the object are ours.
const FIELD_MANAGER: &str = "egress-agent";
/// Between two writes, but for those of VIPs that come or go.
const BETWEEN_WRITES: Duration = Duration::from_secs(1);
/// How often it is looked whether the object is still as written.
const BETWEEN_LOOKS: Duration = Duration::from_mins(5);
/// The longest message, in characters.
const LONGEST_MESSAGE: usize = 1000;

/// Where the launcher of keepalived serves what it has seen of others that use our VIPs.
pub const CONFLICTS_PATH: &str = "/conflicts";
/// How often it is asked, and how long an answer may take and be, in bytes.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(5);
const TOLD_WITHIN: Duration = Duration::from_secs(1);
const LONGEST_ANSWER: u64 = 200_000;

/// What the agent knows of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The VIPs that are an address of the node; none when that is not known, then what was
    /// reported before goes on to count.
    pub holds: Option<BTreeSet<Vip>>,
    /// The kernel holds all that is desired.
    pub synced: bool,
    /// Why it does not.
    pub message: String,
    /// Addresses of pods that the API server may not know.
    pub pods: BTreeMap<PodUid, Vec<PodIp>>,
    /// What the node makes of its blocks of VIPs on the direct path; none when that is not known, then
    /// what was reported before goes on to count.
    pub blocks: Option<BTreeMap<Vip, BlockUse>>,
}

/// Takes what is to be reported. Dropping it ends the reports.
pub struct Reporter {
    standing: watch::Sender<Option<Standing>>,
    task: AbortHandle,
}

impl Reporter {
    /// Reports on this node; nothing before the first [`tell`](Self::tell).
    pub fn start(api: &ApiThread, node: &str) -> Self {
        let (standing, news) = watch::channel(None);
        let name = report_of_node(node);
        let config_maps = api.config_maps();
        let (sender, conflicts) = watch::channel(Conflicts::new());
        drop(api.runtime().spawn(watch_conflicts(LAUNCHER, sender)));
        let writer =
            Writer { config_maps, name, node: node.to_owned(), news, conflicts, complained: false };
        Self { standing, task: api.runtime().spawn(writer.run()).abort_handle() }
    }

    /// Has this reported, if it is news. Does not wait.
    pub fn tell(&self, standing: Standing) {
        self.standing.send_if_modified(|told| {
            let new = told.as_ref() != Some(&standing);
            *told = Some(standing);
            new
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writer {
    config_maps: Api<ConfigMap>,
    name: String,
    node: String,
    news: watch::Receiver<Option<Standing>>,
    conflicts: watch::Receiver<Conflicts>,
    complained: bool,
}

impl Writer {
    /// Ends when nobody is left to tell anything.
    async fn run(mut self) {
        let mut backoff = backoff();
        // Since when VIPs are held survives the agent in its own report.
        let mut written = loop {
            match self.read().await {
                Ok(report) => break report,
                Err(why) => self.complain(&why),
            }
            sleep(backoff.next().unwrap_or(ANSWER_WITHIN)).await;
        };
        let mut last = written.clone().unwrap_or_default();
        let (mut write_at, mut look_at) = (Instant::now(), Instant::now() + BETWEEN_LOOKS);
        loop {
            let standing = self.news.borrow_and_update().clone();
            let conflicts = self.conflicts.borrow_and_update().clone();
            let mut wake_at = look_at;
            if let Some(standing) = standing {
                last = report(&standing, &last, conflicts, Timestamp::now());
                if written.as_ref() != Some(&last) {
                    if is_urgent(written.as_ref(), &last) || Instant::now() >= write_at {
                        match self.write(&last).await {
                            Ok(()) => {
                                self.recovered();
                                written = Some(last.clone());
                                backoff = self::backoff();
                            }
                            Err(why) => {
                                self.complain(&why);
                                sleep(backoff.next().unwrap_or(ANSWER_WITHIN)).await;
                            }
                        }
                        write_at = Instant::now() + BETWEEN_WRITES;
                        continue;
                    }
                    wake_at = write_at;
                }
            }
            tokio::select! {
                changed = self.news.changed() => if changed.is_err() { return },
                Ok(()) = self.conflicts.changed() => {}
                () = sleep_until(wake_at) => {}
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + BETWEEN_LOOKS;
                if let Ok(report) = self.read().await {
                    written = report;
                }
            }
        }
    }

    /// The report as the server has it; none where there is none, or where it is not ours to read.
    async fn read(&self) -> Result<Option<NodeReport>, String> {
        match answered(self.config_maps.get_opt(&self.name)).await? {
            Ok(found) => {
                let data = found.map(|object| object.data.unwrap_or_default());
                Ok(data.map(|data| decode_node_report(&self.name, &data).entries))
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
            Err(error) => Err(told(&error)),
        }
    }

    async fn write(&self, report: &NodeReport) -> Result<(), String> {
        let label = label_of_node(&self.node).to_owned();
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some([(REPORT_LABEL.to_owned(), label)].into()),
                ..ObjectMeta::default()
            },
            data: Some(encode_node_report(report)),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&object);
        let outcome = answered(self.config_maps.patch(&self.name, &params, &patch)).await?;
        debug!(report = ?encode_node_report(report), "reported");
        outcome.map(drop).map_err(|error| told(&error))
    }

    /// Tells of the first failure of several.
    fn complain(&mut self, why: &str) {
        if !self.complained {
            warn!("cannot report on this node as {}: {why}; tried again", self.name);
        }
        self.complained = true;
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.complained) {
            info!("reported on this node as {} again", self.name);
        }
    }
}

async fn answered<T>(question: impl Future<Output = T>) -> Result<T, String> {
    let late = |_| "the API server does not answer".to_owned();
    timeout(ANSWER_WITHIN, question).await.map_err(late)
}

fn backoff() -> ExponentialBackoff {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_millis(2500));
    delays.without_max_times().with_jitter().build()
}

/// The report to write, after `last`. A VIP that was held before is held since then.
fn report(
    standing: &Standing,
    last: &NodeReport,
    conflicts: Conflicts,
    now: Timestamp,
) -> NodeReport {
    let Standing { holds, synced, message, pods, blocks } = standing;
    let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
    NodeReport {
        holds: match holds {
            None => last.holds.clone(),
            Some(vips) => {
                let since = |vip: &Vip| last.holds.get(vip).copied().unwrap_or(now);
                vips.iter().map(|vip| (*vip, since(vip))).collect()
            }
        },
        synced: *synced,
        message: message.trim().chars().take(LONGEST_MESSAGE).collect(),
        pods: pods.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        conflicts,
        blocks: blocks.as_ref().unwrap_or(&last.blocks).clone(),
    }
}

type Conflicts = BTreeMap<Vip, String>;

/// Asks until nobody listens any more. Where no launcher answers, nothing is known of conflicts.
async fn watch_conflicts(launcher: SocketAddr, told: watch::Sender<Conflicts>) {
    while !told.is_closed() {
        let answer = timeout(TOLD_WITHIN, fetch(launcher, CONFLICTS_PATH, LONGEST_ANSWER)).await;
        let text = answer.ok().and_then(Result::ok).unwrap_or_default();
        let data = [(report_keys::CONFLICTS.to_owned(), text)].into();
        let conflicts = decode_node_report(CONFLICTS_PATH, &data).entries.conflicts;
        told.send_if_modified(|known| {
            let news = *known != conflicts;
            *known = conflicts;
            news
        });
        sleep(BETWEEN_QUESTIONS).await;
    }
}

/// Whether a VIP has come or gone, addresses of a pod were learnt, or blocks have come into use, gone out
/// of it, or lie on another path: others wait for that.
fn is_urgent(written: Option<&NodeReport>, report: &NodeReport) -> bool {
    written.is_none_or(|written| {
        let is_written = |(uid, ips): (&PodUid, _)| written.pods.get(uid) == Some(ips);
        let blocks = |report: &NodeReport| -> BTreeMap<_, _> {
            report.blocks.iter().map(|(vip, of)| (*vip, (of.blocks.clone(), of.path))).collect()
        };
        !written.holds.keys().eq(report.holds.keys())
            || !report.pods.iter().all(is_written)
            || blocks(written) != blocks(report)
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use shared::VipPath;
    use shared::telemetry::{Health, Page, listen, serve};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn standing(holds: Option<&[&str]>) -> Standing {
        let holds = holds.map(|vips| vips.iter().map(|vip| vip.parse().unwrap()).collect());
        Standing {
            holds,
            synced: true,
            message: String::new(),
            pods: BTreeMap::new(),
            blocks: None,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_vip_is_held_since_it_came() {
        let (a, b) = ("192.0.2.1", "192.0.2.2");
        let first = report(&standing(Some(&[a])), &NodeReport::default(), Conflicts::new(), at(1));
        let second = report(&standing(Some(&[a, b])), &first, Conflicts::new(), at(2));
        let since = |report: &NodeReport| report.holds.values().copied().collect::<Vec<_>>();
        assert_eq!(since(&second), [at(1), at(2)]);
        assert!(is_urgent(Some(&first), &second));
        let gone = report(&standing(Some(&[b])), &second, Conflicts::new(), at(3));
        let back = report(&standing(Some(&[a, b])), &gone, Conflicts::new(), at(4));
        assert_eq!(since(&back), [at(4), at(2)]);
        assert_eq!(
            report(&standing(None), &back, Conflicts::new(), at(5)).holds,
            back.holds,
            "not known"
        );
    }

    #[tokio::test]
    async fn what_the_launcher_has_seen_is_known_until_it_is_over() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let lines = "192.0.2.1 192.0.2.9 uses route id 7\nnonsense\n192.0.2.1 more\n".to_owned();
        let (page, text) = watch::channel(lines);
        let pages = vec![Page { path: CONFLICTS_PATH, text }];
        let health = Health::new(Duration::from_mins(1));
        let shutdown = CancellationToken::new();
        let registry = Registry::default();
        tokio::spawn(serve(listener, registry, health, pages, shutdown.clone()));
        let (sender, mut known) = watch::channel(Conflicts::new());
        tokio::spawn(watch_conflicts(addr, sender));
        let seen = known.wait_for(|known| !known.is_empty()).await.unwrap().clone();
        let expected = ("192.0.2.1".parse().unwrap(), "192.0.2.9 uses route id 7; more".to_owned());
        assert_eq!(seen, [expected].into());
        let report = super::report(&standing(None), &NodeReport::default(), seen, at(1));
        assert_eq!(report.conflicts.len(), 1);
        page.send_replace(String::new());
        known.wait_for(BTreeMap::is_empty).await.unwrap();
        shutdown.cancel();
    }

    #[test]
    fn only_vips_are_urgent() {
        let first = report(
            &standing(Some(&["192.0.2.1"])),
            &NodeReport::default(),
            Conflicts::new(),
            at(1),
        );
        let failed = Standing { synced: false, message: "x".repeat(2000), ..standing(None) };
        let second = report(&failed, &first, Conflicts::new(), at(2));
        assert!(!is_urgent(Some(&first), &second));
        assert_ne!(first, second);
        assert_eq!(second.message.len(), LONGEST_MESSAGE);
        assert!(is_urgent(None, &second), "the first report of all");

        let uid = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21".parse().unwrap();
        let pods = [(uid, vec!["10.0.0.1".parse().unwrap()])].into();
        let third = report(&Standing { pods, ..standing(None) }, &second, Conflicts::new(), at(3));
        assert!(is_urgent(Some(&second), &third), "an address was learnt");
        assert!(!is_urgent(Some(&third), &second), "the API server knows it by now");
    }

    #[test]
    fn blocks_that_come_and_go_are_urgent_and_their_use_is_not() {
        let of = |blocks: &[u32], path, used, message: &str| {
            let blocks = blocks.iter().map(|block| (*block).try_into().unwrap()).collect();
            let of = BlockUse { blocks, path, used, message: message.to_owned() };
            let blocks = Some([("192.0.2.1".parse().unwrap(), of)].into());
            Standing { blocks, ..standing(None) }
        };
        let none = NodeReport::default();
        let after = |standing: &Standing, last: &NodeReport| {
            report(standing, last, Conflicts::new(), at(1))
        };
        let first = after(&of(&[1, 2], VipPath::Direct, 0, ""), &none);
        assert!(is_urgent(Some(&none), &first), "others must not have them");
        let urgent = |standing| is_urgent(Some(&first), &after(&standing, &first));
        assert!(!urgent(of(&[1, 2], VipPath::Direct, 500, "half")));
        assert!(urgent(of(&[1, 2], VipPath::ViaHolder, 0, "no answer")), "another path");
        assert!(urgent(of(&[1], VipPath::Direct, 0, "")), "others may have it");
        assert_eq!(after(&standing(None), &first).blocks, first.blocks, "not known");
    }
}
