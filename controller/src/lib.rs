//! The controller: turns `Vip` and `Egress` objects into the `ConfigMaps` that agents read.

pub mod blocks;
pub mod candidates;
pub mod cli;
pub mod commands;
pub mod daemon_sets;
pub mod gone;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod publish;
pub mod report;
pub mod resolve;
pub mod route_ids;
pub mod run;
pub mod watch;
pub mod world;

pub use resolve::resolve;
