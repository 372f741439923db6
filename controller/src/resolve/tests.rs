//! Each rule of who gets which VIP, and the properties of all of them together.

mod builders;
mod first_packet;
mod placement;
mod pods;
mod properties;
mod reasons;
mod vips;
