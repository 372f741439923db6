//! Shell: writes status, finalizers and `DaemonSets`, and publishes Events, in its own time.
//!
//! It always works on the newest list of tasks; what an older list said and a newer one does not is
//! forgotten. No object is written more often than once a second, however fast verdicts change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::{Value, json};
use shared::crd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{Action, Confirmed, Note, Target, Task, Tone};
use crate::daemon_sets::DaemonSet;
use crate::leader::Leadership;
use crate::metrics::{Kind, Metrics, Written};
use crate::model::ObjectKey;
use crate::publish::FIELD_MANAGER;

/// The least time between two writes of one thing.
const BETWEEN: Duration = Duration::from_secs(1);
/// The longest time before something that failed is tried again.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How many requests are under way at once: mappings go first.
const AT_ONCE: usize = 4;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest text of an Event, in bytes.
const LONGEST_NOTE: usize = 1000;
/// How many texts of Events are known again when they are told again.
const MOST_RECORDERS: usize = 1000;

/// What writes them. Clones share all.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    namespace: String,
    leadership: Leadership,
    metrics: Metrics,
    reporter: Reporter,
    recorders: Arc<Mutex<BTreeMap<String, Recorder>>>,
    confirmed: Arc<Mutex<Confirmed>>,
}

/// When something was written last, and how that ended.
struct Last {
    at: Instant,
    wait: Duration,
    /// What was written, and the version that it was compared with or led to. Writing it again
    /// would change nothing.
    done: Option<(Action, BTreeSet<String>)>,
}

/// What came of a task.
struct Outcome {
    task: Task,
    /// The version of the object after it.
    result: Result<Option<String>, Failure>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("this replica no longer leads")]
    NotLeading,
    #[error("the API server does not answer")]
    NoAnswer,
    #[error(transparent)]
    Refused(#[from] kube::Error),
}

impl Writer {
    pub fn new(
        client: Client,
        namespace: &str,
        identity: &str,
        leadership: Leadership,
        metrics: Metrics,
    ) -> Self {
        let reporter =
            Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self {
            reporter,
            recorders: Arc::default(),
            client,
            namespace: namespace.to_owned(),
            leadership,
            metrics,
            confirmed: Arc::default(),
        }
    }

    /// The `DaemonSets` that are known to be as they should.
    pub fn confirmed(&self) -> Confirmed {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Works on what is told until nobody tells any more.
    pub async fn run(self, mut told: watch::Receiver<Arc<Vec<Task>>>) {
        let mut last: BTreeMap<Target, Last> = BTreeMap::new();
        let mut complaints: BTreeMap<Target, String> = BTreeMap::new();
        loop {
            let tasks = told.borrow_and_update().clone();
            let now = Instant::now();
            let named: BTreeSet<&Target> = tasks.iter().map(|task| &task.target).collect();
            last.retain(|target, last| last.at + LAST_RETRY > now || named.contains(target));
            let open: Vec<&Task> =
                tasks.iter().filter(|task| !is_done(task, last.get(&task.target))).collect();
            self.metrics.status_backlog(open.len());
            let due = |task: &&Task| last.get(&task.target).map(|last| last.at + last.wait);
            let (ready, waiting): (Vec<&Task>, Vec<&Task>) =
                open.into_iter().partition(|task| due(task).is_none_or(|due| due <= now));
            let next = waiting.iter().filter_map(due).min();
            if ready.is_empty() || !self.leadership.leads() {
                let pause = next.unwrap_or(now + LAST_RETRY).max(now + Duration::from_millis(20));
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { return },
                    () = sleep_until(pause) => {}
                }
                continue;
            }
            // A few at a time: a newer list may say something else.
            let batch: Vec<Task> = ready.into_iter().take(4 * AT_ONCE).cloned().collect();
            let mut outcomes =
                stream::iter(batch).map(|task| self.carry_out(task)).buffer_unordered(AT_ONCE);
            while let Some(outcome) = outcomes.next().await {
                remember(outcome, &mut last, &mut complaints);
            }
            if told.has_changed().is_err() {
                return;
            }
        }
    }

    async fn carry_out(&self, task: Task) -> Outcome {
        let result = match (&task.target, &task.action) {
            (Target::Finalizers(key), Action::Finalizers { version, finalizers }) => {
                let patch = json!({
                    "metadata": { "resourceVersion": version, "finalizers": finalizers },
                });
                let api = self.objects(Kind::Vip, key);
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let bytes = patch.to_string().len();
                let patch = Patch::Merge(patch);
                let request = api.patch(&key.name, &params, &patch);
                self.send(Written::Finalizer, bytes, request).await.map(version_of)
            }
            (Target::DaemonSet(_), Action::Apply(set)) => self.apply(set).await,
            (Target::Status(kind, key), Action::Status { reference, status, notes, .. }) => {
                let result = self.state(*kind, key, reference.uid.as_deref(), status).await;
                if result.is_ok() {
                    self.tell(reference, notes).await;
                }
                result
            }
            _ => Ok(None),
        };
        Outcome { task, result }
    }

    async fn state(
        &self,
        kind: Kind,
        key: &ObjectKey,
        uid: Option<&str>,
        status: &Value,
    ) -> Result<Option<String>, Failure> {
        let resource = resource(kind);
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            // Not another object of that name.
            "metadata": { "name": key.name, "namespace": key.namespace, "uid": uid },
            "status": status,
        });
        let bytes = object.to_string().len();
        let patch = Patch::Apply(object);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.objects(kind, key);
        let request = api.patch_status(&key.name, &params, &patch);
        self.send(Written::Status, bytes, request).await.map(version_of)
    }

    async fn apply(&self, set: &DaemonSet) -> Result<Option<String>, Failure> {
        let resource = ApiResource::erase::<k8s_openapi::api::apps::v1::DaemonSet>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let bytes = set.object.to_string().len();
        let patch = Patch::Apply(&set.object);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let request = api.patch(set.name, &params, &patch);
        let object = self.send(Written::DaemonSet, bytes, request).await?;
        if let (Some(uid), Some(generation)) = (&object.metadata.uid, object.metadata.generation) {
            let entry = (uid.clone(), generation, set.digest.clone());
            let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
            let before = confirmed.insert(set.name.to_owned(), entry.clone());
            if before.as_ref() != Some(&entry) {
                info!(generation, "applied DaemonSet {}", set.name);
            }
        }
        Ok(version_of(object))
    }

    /// Publishes Events; one that is lost is lost, the status says it, too.
    async fn tell(&self, about: &ObjectReference, notes: &[Note]) {
        for Note { tone, reason, message } in notes {
            let name = about.name.as_deref().unwrap_or_default();
            let kind = about.kind.as_deref().unwrap_or_default();
            info!("{kind} {name}: {reason}: {message}");
            let event = Event {
                type_: match tone {
                    Tone::Normal => EventType::Normal,
                    Tone::Warning => EventType::Warning,
                },
                reason: reason.clone(),
                note: Some(shortened(message)),
                action: "Resolve".to_owned(),
                secondary: None,
            };
            let recorder = self.recorder(about, message);
            let published = recorder.publish(&event, about);
            let bytes = message.len();
            if let Err(error) = self.send(Written::Event, bytes, published).await {
                warn!("cannot publish an Event about {kind} {name}: {error}");
            }
        }
    }

    /// One for each text: a recorder counts what has the same reason as one Event, with the text of the first.
    fn recorder(&self, about: &ObjectReference, message: &str) -> Recorder {
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        if recorders.len() >= MOST_RECORDERS {
            // Some that are told again are Events of their own then.
            recorders.clear();
        }
        let text = format!("{}: {message}", about.uid.as_deref().unwrap_or_default());
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        recorders.entry(text).or_insert_with(new).clone()
    }

    fn objects(&self, kind: Kind, key: &ObjectKey) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &key.namespace, &resource(kind))
    }

    async fn send<T>(
        &self,
        kind: Written,
        bytes: usize,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let answer = match self.leadership.during(timeout(PATIENCE, request)).await {
            None => return Err(Failure::NotLeading),
            Some(Err(_)) => Err(Failure::NoAnswer),
            Some(Ok(answer)) => answer.map_err(Failure::from),
        };
        match &answer {
            Ok(_) => self.metrics.wrote(kind, bytes),
            Err(_) => self.metrics.failed(kind),
        }
        answer
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Vip => ApiResource::erase::<crd::Vip>(&()),
        Kind::Egress => ApiResource::erase::<crd::Egress>(&()),
        Kind::EgressMapper => ApiResource::erase::<crd::EgressMapper>(&()),
    }
}

fn version_of(object: DynamicObject) -> Option<String> {
    object.metadata.resource_version
}

/// Whether the very same was written already, and the object was not changed by others since.
fn is_done(task: &Task, last: Option<&Last>) -> bool {
    let Some((done, versions)) = last.and_then(|last| last.done.as_ref()) else { return false };
    match (&task.action, done) {
        (
            Action::Status { version: Some(version), status, .. },
            Action::Status { status: written, .. },
        ) => versions.contains(version) && without_times(status) == without_times(written),
        // A DaemonSet that is applied is found by its generation, a finalizer by its version.
        (Action::Finalizers { version: Some(version), .. }, Action::Finalizers { .. }) => {
            versions.contains(version)
        }
        _ => false,
    }
}

/// A condition that was written just now and not seen yet has another time in each list.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastTransitionTime");
        }
    }
    status
}

fn remember(
    outcome: Outcome,
    last: &mut BTreeMap<Target, Last>,
    complaints: &mut BTreeMap<Target, String>,
) {
    let Outcome { task: Task { target, action }, result } = outcome;
    let at = Instant::now();
    match result {
        Ok(after) => {
            let before = match &action {
                Action::Status { version, .. } | Action::Finalizers { version, .. } => {
                    version.clone()
                }
                Action::Apply(_) => None,
            };
            complaints.remove(&target);
            let versions = before.into_iter().chain(after).collect();
            let wait =
                if matches!(target, Target::Finalizers(_)) { Duration::ZERO } else { BETWEEN };
            last.insert(target, Last { at, wait, done: Some((action, versions)) });
        }
        Err(failure) => {
            let outdated = is_outdated(&failure);
            let wait = match last.get(&target) {
                _ if outdated => Duration::from_millis(50),
                Some(Last { wait, done: None, .. }) => (*wait * 2).clamp(BETWEEN, LAST_RETRY),
                _ => BETWEEN,
            };
            let text = failure.to_string();
            if !outdated && complaints.get(&target) != Some(&text) {
                warn!("cannot write {}: {text}", name_of(&target));
                complaints.insert(target.clone(), text);
            }
            last.insert(target, Last { at, wait, done: None });
        }
    }
}

/// The object has changed or gone since it was looked at; a newer list says what to do then.
fn is_outdated(failure: &Failure) -> bool {
    match failure {
        Failure::NotLeading => true,
        Failure::Refused(kube::Error::Api(status)) => matches!(status.code, 404 | 409),
        _ => false,
    }
}

fn name_of(target: &Target) -> String {
    match target {
        Target::Finalizers(key) => format!("the finalizers of Vip {key}"),
        Target::DaemonSet(name) => format!("DaemonSet {name}"),
        Target::Status(kind, key) => format!("the status of {kind:?} {key}"),
    }
}

fn shortened(text: &str) -> String {
    let end = (0..=text.len().min(LONGEST_NOTE)).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}
