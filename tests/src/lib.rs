//! A laboratory of network namespaces, and what black-box tests of the built programs need in it.
//!
//! [`Lab`] builds a small cluster on this machine and removes it when dropped: nodes with CNI-like
//! bridges and VXLAN between them, pods, a LAN, a router and two hosts outside. [`UdpProbe`],
//! [`TcpServer`] and the like make traffic, [`Capture`] is the witness of what left the nodes,
//! [`Agent`] runs the built program on a node, [`MappingsDir`] is what it reads.
//!
//! [`ApiServer`] and [`KubeCluster`] are a real Kubernetes: the API alone, or with workers.

mod agent;
mod announce;
mod capture;
mod cluster;
mod cni_results;
mod command;
mod controller;
mod failover;
mod guard;
mod host;
mod installation;
mod kubernetes;
mod lab;
mod launcher;
mod load;
mod mappings_dir;
mod ping;
mod process;
mod reference;
mod rules;
mod shell;
mod sweep;
mod tcp;
mod traffic;
mod udp;
mod vip;
mod wait;
mod witness;

pub use agent::{Agent, HEALTH_PORT};
pub use capture::{Capture, Flow, Seen};
pub use cluster::{Cluster, KernelText, kernel_text, seen_as, vip};
pub use cni_results::CniResults;
pub use command::{run, run_with_input};
pub use controller::{Controller, ObjectCluster};
pub use failover::{Fault, Gateways, Outcome, Watch};
pub use guard::guard;
pub use host::{Host, TcpCounters};
pub use installation::{Container, Installation, left_on};
pub use kubernetes::{ApiServer, KubeCluster, KubeNode, PodIdentity, ProxyMode, RunningPod};
pub use lab::{
    CLUSTER_IP_PORT, Family, Lab, LabBuilder, Masquerade, NODE_PORT, SERVICE_TARGET_PORT,
    TrafficPolicy,
};
pub use launcher::Launcher;
pub use load::{Connections, Destinations, Load, LoadServer, Packets};
pub use mappings_dir::{Layout, MappingsDir};
pub use ping::ping;
pub use process::Process;
pub use reference::load_reference_rules;
pub use shell::{Shell, repository};
pub use sweep::{leftovers_of, sweep};
pub use tcp::{ConnectRate, TcpReport, TcpServer, TcpSession, TcpTransfer, connect_rate, whoami};
pub use traffic::{EchoLoop, EchoReport, NewFlows, PodReport, Traffic};
pub use udp::{UdpProbe, UdpReport, UdpServer, UdpServerReport, udp_flood};
pub use vip::MoveOrder;
pub use wait::{eventually, wait_until};
pub use witness::{NeighbourNews, Witness, sender};
