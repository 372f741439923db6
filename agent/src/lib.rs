//! The agent: programs a node's kernel so that mapped pods leave with their VIP, or not at all.

pub mod api_server;
pub mod block_use;
pub mod cli;
pub mod commands;
pub mod desired;
pub mod direct;
pub mod keepalived;
pub mod kernel;
pub mod kernel_state;
pub mod launcher_presence;
pub mod leftovers;
pub mod metrics;
pub mod node_facts;
pub mod node_report;
pub mod plan;
pub mod pod_tables;
pub mod port_use;
pub mod proof;
pub mod report;
pub mod routing;
pub mod ruleset;
pub mod run;
pub mod sources;
pub mod sync;
pub mod unsure;
