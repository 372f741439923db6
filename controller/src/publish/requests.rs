//! Requests for single objects, each for the version that was seen, and what their answers mean.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use tokio::time::timeout;
use tracing::{debug, info};

use super::patch::{Change, Desired, Scope, change};
use super::{ConfigMaps, FIELD_MANAGER, PublishError, Publisher};
use crate::metrics::Written;
use crate::watch::objects::ConfigMapObject;

/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One object and what is to be done with it.
pub(super) struct Task {
    name: String,
    kind: Written,
    change: Change,
    present: Option<(Option<String>, Option<String>)>,
}

impl Task {
    pub(super) fn new(name: String, kind: Written, change: Change, observed: &ConfigMaps) -> Self {
        let present = observed
            .get(&name)
            .map(|object| (object.metadata.uid.clone(), object.metadata.resource_version.clone()));
        Self { name, kind, change, present }
    }
}

/// None where nothing is to be done.
pub(super) fn task(
    name: &str,
    kind: Written,
    desired: &Desired,
    observed: &ConfigMaps,
    scope: Scope,
) -> Option<Task> {
    let present = observed.get(name);
    let change = change(name, desired, present, scope)?;
    Some(Task::new(name.to_owned(), kind, change, observed))
}

impl Publisher {
    pub(super) async fn delete(
        &self,
        name: &str,
        observed: &mut ConfigMaps,
    ) -> Result<(), PublishError> {
        let Some(object) = observed.get(name) else { return Ok(()) };
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
        });
        let outcome = self.send(name, self.objects.delete(name, &params)).await;
        if outcome.is_ok() {
            observed.deleted(name);
        }
        outcome.map(drop)
    }

    /// Does all, some at once, and says what went wrong first.
    pub(super) async fn carry_out(
        &self,
        tasks: Vec<Task>,
        observed: &mut ConfigMaps,
    ) -> Result<(), PublishError> {
        let mut outcomes =
            stream::iter(tasks).map(|task| self.carry_out_one(task)).buffer_unordered(AT_ONCE);
        let mut first = Ok(());
        while let Some((name, outcome)) = outcomes.next().await {
            match outcome {
                Ok(object) => observed.written(object),
                Err(error) => {
                    debug!("{error}");
                    if matches!(error, PublishError::Missing { .. }) {
                        observed.deleted(&name);
                    }
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    async fn carry_out_one(&self, task: Task) -> (String, Result<ConfigMapObject, PublishError>) {
        let Task { name, kind, change, present } = task;
        let (bytes, outcome) = match change {
            Change::Create(object) => {
                let bytes = serde_json::to_vec(&object).map_or(0, |text| text.len());
                (bytes, self.create(&name, &object).await)
            }
            Change::Patch(patch) => {
                let bytes = patch.to_string().len();
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let patch = Patch::Merge(patch);
                (bytes, self.send(&name, self.objects.patch(&name, &params, &patch)).await)
            }
            Change::Recreate => {
                let (uid, resource_version) = present.unwrap_or_default();
                let preconditions = Preconditions { uid, resource_version };
                let params = DeleteParams::default().preconditions(preconditions);
                let deleted = self.send(&name, self.objects.delete(&name, &params)).await;
                // The watch shows that it is gone, and the next pass makes it.
                let next = PublishError::Outdated { object: name.clone() };
                (0, deleted.and(Err(next)))
            }
        };
        match &outcome {
            Ok(_) => {
                info!(bytes, "wrote {name}");
                self.metrics.wrote(kind, bytes);
            }
            // Nothing is wrong: the next pass sees what it is now.
            Err(
                PublishError::Outdated { .. }
                | PublishError::Missing { .. }
                | PublishError::NotLeading,
            ) => {}
            Err(_) => self.metrics.failed(kind),
        }
        (name, outcome)
    }

    async fn create(
        &self,
        name: &str,
        object: &ConfigMapObject,
    ) -> Result<ConfigMapObject, PublishError> {
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.send(name, self.objects.create(&params, object)).await
    }

    /// The answer to a request that only a leader may make.
    async fn send<T>(
        &self,
        name: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, PublishError> {
        let object = name.to_owned();
        match self.leadership.during(timeout(PATIENCE, request)).await {
            None => Err(PublishError::NotLeading),
            Some(Err(_)) => Err(PublishError::NoAnswer { object }),
            Some(Ok(Err(kube::Error::Api(status)))) if status.code == 404 => {
                Err(PublishError::Missing { object })
            }
            Some(Ok(Err(kube::Error::Api(status)))) if status.code == 409 => {
                Err(PublishError::Outdated { object })
            }
            Some(Ok(Err(source))) => Err(PublishError::Write { object, source }),
            Some(Ok(Ok(answer))) => Ok(answer),
        }
    }
}
