//! The agent.

pub mod kernel;
pub mod node_facts;
pub mod routing;
