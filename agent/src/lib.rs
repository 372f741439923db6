//! The agent.

pub mod kernel;
pub mod pod_tables;
