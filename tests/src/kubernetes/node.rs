//! A worker: one machine of the laboratory, with containerd, kubelet and kube-proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::api_server::ApiServer;
use super::cluster::ProxyMode;
use super::node_files;
use super::program::{Program, path_of};
use crate::command::{TIMEOUT, run_within};
use crate::host::Host;
use crate::lab::{Family, Lab};
use crate::wait::wait_until;

const SCRIPT: &str = include_str!("node.sh");
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// Lines of each log that are shown in an error.
const SHOWN_LINES: usize = 10;
/// Images are unpacked on a busy machine.
const IMPORTED_WITHIN: Duration = Duration::from_mins(2);

/// A node of a [`KubeCluster`](super::KubeCluster); its programs are killed when it is dropped.
#[derive(Debug)]
pub struct KubeNode {
    machine: Mutex<Program>,
    host: Host,
    files: PathBuf,
}

impl KubeNode {
    /// Starts its programs; kubelet registers it some seconds later.
    pub(super) fn start(
        lab: &Lab,
        server: &ApiServer,
        number: usize,
        proxy_mode: ProxyMode,
    ) -> Result<Self> {
        let host = lab.node(number).clone();
        let files = server.files().join(&host.name);
        let group = format!("{}{}", lab.prefix(), host.name);
        fs::create_dir_all(files.join("cni"))?;
        let kubeconfig = server.kubeconfig_of(&host.name, &server.node_token(&host.name))?;
        fs::rename(kubeconfig, files.join("kubeconfig"))?;
        fs::write(files.join("containerd.toml"), node_files::containerd(&files))?;
        fs::write(files.join("kubelet.yaml"), node_files::kubelet(&group))?;
        fs::write(files.join("cni/10-bridge.conflist"), node_files::cni(number))?;
        let script = files.join("node.sh");
        fs::write(&script, SCRIPT)?;
        let programs = path_of("kubelet")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"])
            .args(["--kill-child=KILL", "bash"])
            .arg(script)
            .arg(&files)
            .args([&group, &host.name, &format!("{},{}", host.v4, host.v6)])
            .arg(Family::ALL.map(|family| lab.pod_subnet(family)).join(","))
            .arg(programs.parent().context("kubelet is in no directory")?)
            .arg(proxy_mode.name());
        let machine = Program::start(&host, &files, command)?;
        Ok(Self { machine: Mutex::new(machine), host, files })
    }

    /// The machine it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs a program on the node, 20 seconds at most, with its network, mounts and processes.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        self.run_within(TIMEOUT, command)
    }

    /// Imports an image archive, OCI's or docker's, for pods of this node.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.run_within(IMPORTED_WITHIN, &["ctr", "-n", "k8s.io", "images", "import", &archive])
            .with_context(|| format!("cannot import {archive} on {}", self.host.name))
            .map(drop)
    }

    /// # Errors
    /// When one of its programs has ended.
    pub(super) fn check_running(&self) -> Result<()> {
        self.machine().check_running()
    }

    /// The log of containerd, kubelet or kube-proxy.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.files.join(format!("{program}.log"))).unwrap_or_default()
    }

    /// The ends of the logs of all its programs, for people.
    pub(super) fn log_ends(&self) -> String {
        let end = |program| {
            let log = self.log(program);
            let lines: Vec<&str> = log.lines().rev().take(SHOWN_LINES).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!("{program} on {}:\n{}\n", self.host.name, lines.join("\n"))
        };
        ["unshare", "containerd", "kubelet", "kube-proxy"].map(end).concat()
    }

    fn run_within(&self, timeout: Duration, command: &[&str]) -> Result<String> {
        let target = format!("--target={}", self.init()?);
        let enter = ["nsenter", &target, "--mount", "--pid", "--net", "--"];
        run_within(timeout, &[&enter, command].concat(), "")
            .with_context(|| format!("on {}", self.host.name))
    }

    /// The number of the node's process 1 outside.
    fn init(&self) -> Result<u32> {
        let parent = self.machine().pid();
        let mut init = None;
        // The moment after the start `unshare` has no child yet.
        let started = wait_until(STARTED_WITHIN, || {
            init = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
                .ok()
                .and_then(|children| children.split(' ').next()?.parse().ok());
            init.is_some()
        });
        init.filter(|_| started).with_context(|| format!("{} does not run", self.host.name))
    }

    fn machine(&self) -> MutexGuard<'_, Program> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
