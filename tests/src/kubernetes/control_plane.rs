//! The programs of the API server's machine, and what they need.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result};

use super::program::{Program, kubernetes};
use crate::command::{run, run_with_input};
use crate::host::Host;
use crate::lab::Lab;

/// The API server's address.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 10);
pub(super) const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x122, 0, 0, 0, 0, 0, 0x10);
/// The API server's port.
pub(super) const PORT: u16 = 6443;
pub(super) const ADMIN_TOKEN: &str = "admin";
/// As many nodes as a laboratory may have: `n1` to `n9`, with tokens `n1` to `n9`.
const NODES: std::ops::RangeInclusive<usize> = 1..=9;

/// A namespace with the server's address: on the LAN, or on `lo`, since nobody else is there.
pub(super) fn make_host(host: &Host, lab: Option<&Lab>) -> Result<()> {
    let Host { netns, v4, v6, .. } = host;
    run(&["ip", "netns", "add", netns])?;
    let (interface, link) = match lab {
        None => ("lo", String::new()),
        Some(lab) => {
            let (lan, port) = (&lab.lan().netns, "api");
            run(&[
                "ip", "-n", lan, "link", "add", port, "type", "veth", "peer", "name", "eth0",
                "netns", netns,
            ])?;
            run(&["ip", "-n", lan, "link", "set", port, "up", "master", "br0"])?;
            ("eth0", "link set eth0 up\n".to_owned())
        }
    };
    let batch = format!(
        "link set lo up\n{link}addr add {v4}/24 dev {interface}\naddr add {v6}/64 dev {interface} nodad\n"
    );
    run_with_input(&["ip", "-n", netns, "-batch", "-"], &batch).map(drop)
}

pub(super) fn write_files(files: &Path) -> Result<()> {
    let pki = files.join("pki");
    fs::create_dir_all(&pki).with_context(|| format!("cannot make {}", pki.display()))?;
    let key = pki.join("service-accounts.key");
    run(&[
        "openssl",
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        &key.to_string_lossy(),
    ])?;
    let mut tokens = format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n");
    for number in NODES {
        let user = format!("n{number},system:node:n{number},n{number}");
        let _ = writeln!(tokens, "{user},\"system:nodes\"");
    }
    fs::write(files.join("tokens.csv"), tokens).context("cannot write the tokens")
}

pub(super) fn start_etcd(host: &Host, files: &Path) -> Result<Program> {
    let (clients, peers) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    let mut command = kubernetes("etcd")?;
    command
        .arg("--data-dir")
        .arg(files.join("etcd"))
        .args(["--listen-client-urls", clients, "--advertise-client-urls", clients])
        .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        // What a crash of this machine would lose is of no use after it.
        .args(["--unsafe-no-fsync", "--log-level", "error"]);
    Program::start(host, files, command)
}

pub(super) fn start_server(host: &Host, files: &Path) -> Result<Program> {
    let key = files.join("pki/service-accounts.key");
    let mut command = kubernetes("kube-apiserver")?;
    command
        .args(["--etcd-servers", "http://127.0.0.1:2379"])
        .args(["--advertise-address", &ADDRESS.to_string()])
        .args(["--secure-port", &PORT.to_string()])
        .arg("--cert-dir")
        .arg(files.join("pki"))
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .arg("--service-account-key-file")
        .arg(&key)
        .arg("--service-account-signing-key-file")
        .arg(&key)
        .args(["--service-cluster-ip-range", "10.96.0.0/12,fd00:96::/112"])
        .arg("--token-auth-file")
        .arg(files.join("tokens.csv"))
        .args(["--authorization-mode", "Node,RBAC"])
        .args(["--enable-admission-plugins", "NodeRestriction"])
        // Host names of nodes are known to nobody.
        .args(["--kubelet-preferred-address-types", "InternalIP"])
        .arg("--allow-privileged");
    Program::start(host, files, command)
}
