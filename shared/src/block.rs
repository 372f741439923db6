//! A block of a VIP's ports: what a node of its own translates with on the direct path.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Block *n* is the ports (of ICMP echo the ids) from *n* × 1024 to *n* × 1024 + 1023. Block 0, the
/// well-known ports, is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(u8);

/// The ports with which the holder of a VIP translates what goes its way, once nodes have blocks of
/// the VIP: clear of all of them.
pub const HOLDERS_PORTS: RangeInclusive<u16> = 49_152..=65_535;

impl Block {
    /// How many ports a block has.
    pub const SIZE: u16 = 1024;
    /// The lowest.
    pub const MIN: Self = Self(1);
    /// The highest: it ends where [`HOLDERS_PORTS`] begin.
    pub const MAX: Self = Self(47);

    /// Every block, in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (Self::MIN.0..=Self::MAX.0).map(Self)
    }

    /// Its number, 1 to 47.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its ports.
    pub const fn ports(self) -> RangeInclusive<u16> {
        // `as`: `u16::from` is not const
        let first = self.0 as u16 * Self::SIZE;
        first..=first + (Self::SIZE - 1)
    }

    /// The block that a port is in; `None` if it is in none.
    pub fn of_port(port: u16) -> Option<Self> {
        u32::from(port / Self::SIZE).try_into().ok()
    }
}

/// The number is none of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("it is no block of ports; use whole numbers from 1 to 47")]
pub struct InvalidBlock;

impl TryFrom<u32> for Block {
    type Error = InvalidBlock;

    fn try_from(number: u32) -> Result<Self, InvalidBlock> {
        let number = u8::try_from(number).map_err(|_| InvalidBlock)?;
        let block = Self(number);
        if (Self::MIN..=Self::MAX).contains(&block) { Ok(block) } else { Err(InvalidBlock) }
    }
}

impl FromStr for Block {
    type Err = InvalidBlock;

    fn from_str(text: &str) -> Result<Self, InvalidBlock> {
        text.parse::<u32>().map_err(|_| InvalidBlock)?.try_into()
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_in_one_block_or_in_none() {
        for port in 0..=u16::MAX {
            let of: Vec<_> = Block::all().filter(|block| block.ports().contains(&port)).collect();
            assert_eq!(of, Block::of_port(port).into_iter().collect::<Vec<_>>());
            assert_eq!(of.is_empty(), port < 1024 || HOLDERS_PORTS.contains(&port), "{port}");
        }
        assert_eq!(Block::all().count(), 47);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for text in ["0", "48", "256", "-1", "", "1.5"] {
            assert_eq!(text.parse::<Block>(), Err(InvalidBlock), "{text}");
        }
    }
}
