//! A real Kubernetes: its own programs, built by `tests/kubernetes/build.sh`.
//!
//! [`ApiServer`] is etcd and kube-apiserver alone, in a network of their own or on the LAN of a
//! [`Lab`](crate::Lab): for tests of what talks to the API only. It is up in some seconds.

mod api_server;
mod client;
mod program;
mod workload;

pub use api_server::ApiServer;
pub use workload::PodIdentity;
