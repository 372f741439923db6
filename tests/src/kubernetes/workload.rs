//! Programs that run as Kubernetes runs them: with a service account, as if in a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::api_server::ApiServer;
use super::control_plane::{ADDRESS, PORT};

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// A tmpfs over `/run`, which is empty else: there is no place to leave anything in.
const IN_POD: &str = "mount -t tmpfs none /run && mkdir -p \"$1\" && cp \"$0\"/* \"$1\" && \
                      shift && exec \"$@\"";

/// A pod of the API that no kubelet runs, and the token that it would be given.
#[derive(Clone, Debug)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it is bound to.
    pub node: String,
    /// A token of its service account, bound to the pod and so to the node.
    pub token: String,
    files: PathBuf,
}

impl ApiServer {
    /// Makes a pod of that service account that is bound to a node. The account has to exist.
    pub fn pod_on_node(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        node: &str,
    ) -> Result<PodIdentity> {
        self.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}}}
spec:
  serviceAccountName: {service_account}
  nodeName: {node}
  containers: [{{name: main, image: localhost/none}}]
"
        ))?;
        let token = self.token(namespace, service_account, Some(name))?;
        let files = self.files().join(format!("pod-{namespace}-{name}"));
        fs::create_dir_all(&files)?;
        fs::write(files.join("token"), &token)?;
        fs::write(files.join("namespace"), namespace)?;
        fs::copy(self.certificate(), files.join("ca.crt"))
            .context("cannot copy the certificate")?;
        Ok(PodIdentity {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            token,
            files,
        })
    }
}

impl PodIdentity {
    /// A command that finds the API server and its account as a program in that pod does, with
    /// `NODE_NAME`, `POD_NAME` and `POD_NAMESPACE`. Start it by [`Host::spawn`](crate::Host::spawn)
    /// on a host that reaches the API server; the child is the program itself.
    ///
    /// Its `/run` is its own and has nothing but the account.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", IN_POD])
            .args([self.files.as_os_str(), SERVICE_ACCOUNT.as_ref(), program.as_os_str()])
            .env("KUBERNETES_SERVICE_HOST", ADDRESS.to_string())
            .env("KUBERNETES_SERVICE_PORT", PORT.to_string())
            .env("NODE_NAME", &self.node)
            .env("POD_NAME", &self.name)
            .env("POD_NAMESPACE", &self.namespace);
        command
    }
}
