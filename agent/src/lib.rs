//! The agent.

pub mod routing;
