//! What the controller and the agent agree on: addresses, route ids, mappings, `ConfigMaps`.

pub mod address;
pub mod block;
pub mod config_map;
pub mod crd;
pub mod flags;
pub mod mappings;
pub mod networks;
pub mod pod_ip;
pub mod pod_uid;
pub mod process;
pub mod route_id;
pub mod telemetry;
pub mod vip;
pub mod vip_path;

pub use block::Block;
pub use config_map::Rejected;
pub use mappings::{Mappings, MappingsStore};
pub use networks::ClusterNetworks;
pub use pod_ip::PodIp;
pub use pod_uid::PodUid;
pub use route_id::RouteId;
pub use vip::Vip;
pub use vip_path::VipPath;
