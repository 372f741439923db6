//! The controller: turns `Vip` and `Egress` objects into the `ConfigMaps` that agents read.

pub mod model;
pub mod resolve;

pub use resolve::resolve;
