//! The agent.

pub mod sources;
