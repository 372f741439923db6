//! The direct path: packets of pods leave from their own nodes with the VIP, whoever holds it.

#![expect(clippy::unwrap_used, reason = "what the scene is made of is known")]

mod changes;
mod exhausted;
mod faults;
mod flooded;
mod moves;
mod odd;
mod proof;
mod scene;
mod still;
mod trace;
mod two_networks;
mod via_holder;
