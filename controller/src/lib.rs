//! The controller: turns `Vip` and `Egress` objects into the `ConfigMaps` that agents read.

pub mod cli;
pub mod commands;
pub mod daemon_sets;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod publish;
pub mod resolve;
pub mod run;
pub mod watch;
pub mod world;

pub use resolve::resolve;
