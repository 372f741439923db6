//! A real Kubernetes: its own programs, built by `tests/kubernetes/build.sh`.
//!
//! [`ApiServer`] is etcd and kube-apiserver alone, in a network of their own or on the LAN of a
//! [`Lab`](crate::Lab): for tests of what talks to the API only. It is up in some seconds.
//! [`KubeCluster`] has workers too, which run pods: the machines of a laboratory are its nodes.

mod api_server;
mod client;
mod cluster;
mod control_plane;
mod node;
mod node_files;
mod pod;
mod program;
mod workload;

pub use api_server::ApiServer;
pub use cluster::{KubeCluster, ProxyMode};
pub use node::KubeNode;
pub use pod::RunningPod;
pub use workload::PodIdentity;
