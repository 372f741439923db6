//! The controller: turns `Vip` and `Egress` objects into the `ConfigMaps` that agents read.

pub mod candidates;
pub mod model;
pub mod resolve;
pub mod route_ids;

pub use resolve::resolve;
