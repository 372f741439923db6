//! What a valid VIP is.
