//! What the controller and the agent agree on: addresses, route ids, mappings, `ConfigMaps`.

pub mod route_id;

pub use route_id::RouteId;
