//! What the agent reads from and writes to a real kernel, with `nft` and `conntrack` as witnesses.
//!
//! Needs root; fails without.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]

mod conntrack;
mod elements;
mod lan;
mod namespace;
mod port_counting;
mod proving;
mod tables;
