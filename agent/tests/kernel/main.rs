//! What the agent reads from and writes to a real kernel, with `nft` and `conntrack` as witnesses.
//!
//! Needs root; fails without.

mod conntrack;
mod elements;
mod figures;
mod namespace;
mod tables;
