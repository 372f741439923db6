//! What a valid route id is.

use std::fmt;
use std::str::FromStr;

/// The number of a [`Vip`](crate::Vip), 1 to 252: policy-routing table, mark and VRRP id in one.
///
/// 0 means "no mark"; 253, 254 and 255 are the kernel's tables `default`, `main` and `local`
/// (`/etc/iproute2/rt_tables`), which the predecessor used as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(u8);

impl RouteId {
    /// The lowest valid id.
    pub const MIN: Self = Self(1);
    /// The highest valid id.
    pub const MAX: Self = Self(252);

    /// The number itself.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Every valid id, in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (Self::MIN.0..=Self::MAX.0).map(Self)
    }
}

/// The text or number is not a route id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{0:?} is not a route id; use a whole number from 1 to 252")]
pub struct InvalidRouteId(pub String);

impl TryFrom<u32> for RouteId {
    type Error = InvalidRouteId;

    fn try_from(number: u32) -> Result<Self, InvalidRouteId> {
        match u8::try_from(number) {
            Ok(id @ 1..=252) => Ok(Self(id)),
            _ => Err(InvalidRouteId(number.to_string())),
        }
    }
}

impl FromStr for RouteId {
    type Err = InvalidRouteId;

    fn from_str(text: &str) -> Result<Self, InvalidRouteId> {
        text.parse::<u32>()
            .ok()
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| InvalidRouteId(text.to_owned()))
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
