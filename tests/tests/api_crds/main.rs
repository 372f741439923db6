//! The definitions in `deploy/crds/` on a real API server: what is accepted, what is refused and
//! with which words, and what `kubectl get` shows.

mod accepted;
mod kubectl;
mod refused;

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use shared::crd::{Egress, EgressMapper, Vip};
use tests::ApiServer;

/// The server with the definitions that are checked in.
fn server() -> Result<&'static ApiServer> {
    static INSTALLED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let server = ApiServer::shared()?;
    let installed = INSTALLED.get_or_init(|| install(server).map_err(|error| format!("{error:#}")));
    installed.clone().map_err(anyhow::Error::msg)?;
    Ok(server)
}

fn install(server: &ApiServer) -> Result<()> {
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for kind in ["vip", "egress", "egressmapper"] {
        let file = crds.join(format!("egress_v1alpha1_{kind}_crd.yaml"));
        server.kubectl(&["apply", "-f", file.to_str().context("no text")?])?;
    }
    let names = ["vips", "egresses", "egressmappers"]
        .map(|plural| format!("crd/{plural}.egress.mapper.com"));
    let mut wait = vec!["wait", "--for=condition=Established", "--timeout=30s"];
    wait.extend(names.iter().map(String::as_str));
    server.kubectl(&wait)?;
    Ok(())
}

fn api(client: &Client, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
    let resource = match kind {
        "Vip" => ApiResource::erase::<Vip>(&()),
        "Egress" => ApiResource::erase::<Egress>(&()),
        "EgressMapper" => ApiResource::erase::<EgressMapper>(&()),
        _ => bail!("no kind {kind}"),
    };
    Ok(Api::namespaced_with(client.clone(), namespace, &resource))
}

fn object(kind: &str, spec: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "egress.mapper.com/v1alpha1",
        "kind": kind,
        "metadata": { "name": "x" },
        "spec": spec,
    }))?)
}

/// What the API server says of an object with that spec: a line for each field that is wrong.
async fn said(client: &Client, kind: &str, spec: &Value) -> Result<Vec<String>> {
    let dry_run = PostParams { dry_run: true, field_manager: None };
    let created = api(client, kind, "default")?.create(&dry_run, &object(kind, spec)?).await;
    complaints(created)
}

fn complaints<T>(outcome: kube::Result<T>) -> Result<Vec<String>> {
    let status = match outcome {
        Ok(_) => return Ok(Vec::new()),
        Err(kube::Error::Api(status)) => status,
        Err(error) => return Err(error.into()),
    };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice());
    let causes = causes.filter(|causes| !causes.is_empty());
    let causes = causes.with_context(|| status.message.clone())?.iter();
    // A cause without a field says that rules were not looked at because of the others.
    let named = causes.filter(|cause| cause.field != "<nil>");
    Ok(named.map(|cause| format!("{}: {}", cause.field, reason(&cause.message))).collect())
}

/// Without the value that the API server puts before the words of a rule.
fn reason(message: &str) -> &str {
    let invalid = message.strip_prefix("Invalid value: ");
    invalid.and_then(|rest| rest.split_once("\": ")).map_or(message, |(_, words)| words)
}

#[tokio::test]
async fn the_address_of_a_vip_cannot_be_changed() -> Result<()> {
    let server = server()?;
    server.create_namespace("immutable")?;
    let vips = api(&server.client().await?, "Vip", "immutable")?;
    vips.create(&PostParams::default(), &object("Vip", &json!({"ip": "192.0.2.1"}))?).await?;
    let change = |spec: Value| {
        let vips = vips.clone();
        let patch = Patch::Merge(json!({ "spec": spec }));
        async move { complaints(vips.patch("x", &PatchParams::default(), &patch).await) }
    };
    assert_eq!(
        change(json!({"ip": "192.0.2.2"})).await?,
        ["spec.ip: ip cannot be changed; create another Vip and let the Egresses name it"]
    );
    let others = json!({"ip": "192.0.2.1", "routeid": 7, "namespaces": ["a"]});
    assert_eq!(change(others).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_status_is_apart_from_the_spec() -> Result<()> {
    let server = server()?;
    server.create_namespace("status")?;
    let vips: Api<Vip> = Api::namespaced(server.client().await?, "status");
    let vip = serde_json::from_value(json!({
        "metadata": {"name": "x"}, "spec": {"ip": "192.0.2.1"}, "status": {"holder": "nobody"},
    }))?;
    let created = vips.create(&PostParams::default(), &vip).await?;
    assert_eq!(created.status, None);
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Any", "message": "",
               "lastTransitionTime": "2026-01-02T03:04:05Z"})
    };
    // Conditions are a list by type: two writers do not remove each other's.
    for (manager, conditions) in [
        ("one", json!([condition("Accepted", "True"), condition("Held", "False")])),
        ("other", json!([condition("example.com/Checked", "True")])),
    ] {
        let status = json!({
            "apiVersion": "egress.mapper.com/v1alpha1", "kind": "Vip",
            "status": {"conditions": conditions},
        });
        let params = PatchParams::apply(manager).force();
        vips.patch_status("x", &params, &Patch::Apply(&status)).await?;
    }
    let vip = vips.get("x").await?;
    let types: Vec<_> =
        vip.status.unwrap_or_default().conditions.into_iter().map(|is| is.type_).collect();
    assert_eq!(types, ["Accepted", "Held", "example.com/Checked"]);
    assert_eq!(vip.metadata.generation, Some(1));
    Ok(())
}

#[tokio::test]
async fn drop_is_the_default_while_a_vip_is_unavailable() -> Result<()> {
    let server = server()?;
    server.create_namespace("defaults")?;
    let egresses = api(&server.client().await?, "Egress", "defaults")?;
    let spec = json!({"ip": "192.0.2.1", "kind": "pod", "name": "a", "unknown": 1});
    let created = egresses.create(&PostParams::default(), &object("Egress", &spec)?).await?;
    assert_eq!(
        created.data["spec"],
        json!({"ip": "192.0.2.1", "kind": "pod", "name": "a", "whenUnavailable": "Drop"})
    );
    Ok(())
}
