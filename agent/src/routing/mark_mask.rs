//! Which bits of a packet's mark are ours, and what they say.

use std::fmt;
use std::str::FromStr;

use shared::RouteId;

/// Eight neighbouring bits for the route id, and one bit that says the VIP is away: on another
/// node. All other bits of a mark belong to others (the CNI, kube-proxy) and are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask {
    id_shift: u32,
    away: u32,
}

impl MarkMask {
    /// The mark of a packet whose VIP is on this node.
    pub const fn here(self, id: RouteId) -> u32 {
        // `as`: `u32::from` is not const
        (id.number() as u32) << self.id_shift
    }

    /// The mark of a packet that is to go to the VIP's holder.
    pub const fn away(self, id: RouteId) -> u32 {
        self.here(id) | self.away
    }

    /// All nine bits.
    pub const fn mask(self) -> u32 {
        (0xff << self.id_shift) | self.away
    }

    /// "Away", and of the id these bits.
    pub const fn away_group(self, bits: u8) -> u32 {
        ((bits as u32) << self.id_shift) | self.away
    }

    /// The bit that tells [`away`](Self::away) from [`here`](Self::here).
    pub const fn away_bit(self) -> u32 {
        self.away
    }

    /// The route id in a mark and whether its VIP is away; the bits of others do not matter.
    /// `None` when the id is none of ours.
    pub fn id_of(self, mark: u32) -> Option<(RouteId, bool)> {
        let id = RouteId::try_from((mark >> self.id_shift) & 0xff).ok()?;
        Some((id, mark & self.away != 0))
    }
}

/// `0x000010ff`: clear of kube-proxy and flannel (0xc000), Cilium (0x0f00 and the upper half) and
/// Calico (the upper half).
impl Default for MarkMask {
    fn default() -> Self {
        Self { id_shift: 0, away: 0x1000 }
    }
}

/// The number is no mask of eight neighbouring bits and one more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a mark mask; use nine bits, eight of them side by side for the route id and \
     one elsewhere for \"away\", as in 0x000010ff"
)]
pub struct InvalidMarkMask(pub String);

/// The lowest eight neighbouring bits are the route id's, the one left over is "away".
impl TryFrom<u32> for MarkMask {
    type Error = InvalidMarkMask;

    fn try_from(mask: u32) -> Result<Self, InvalidMarkMask> {
        (0..=24)
            .map(|id_shift| Self { id_shift, away: mask & !(0xff << id_shift) })
            .find(|candidate| candidate.away.is_power_of_two() && candidate.mask() == mask)
            .ok_or_else(|| InvalidMarkMask(format!("{mask:#x}")))
    }
}

/// Hexadecimal with `0x`, or decimal.
impl FromStr for MarkMask {
    type Err = InvalidMarkMask;

    fn from_str(text: &str) -> Result<Self, InvalidMarkMask> {
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number
            .ok()
            .and_then(|mask| Self::try_from(mask).ok())
            .ok_or_else(|| InvalidMarkMask(text.to_owned()))
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.mask())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn any_mask() -> impl Strategy<Value = MarkMask> {
        (0..=24_u32, 0..32_u32)
            .prop_filter("the away bit lies outside of the id", |(shift, away)| {
                (0xff_u32 << shift) & (1 << away) == 0
            })
            .prop_map(|(id_shift, away)| MarkMask { id_shift, away: 1 << away })
    }

    #[test]
    fn the_default_is_the_one_the_documents_name() {
        let mask = MarkMask::default();
        let id = RouteId::try_from(64).unwrap();
        assert_eq!(mask.to_string(), "0x000010ff");
        assert_eq!("0x000010ff".parse(), Ok(mask));
        assert_eq!((mask.here(id), mask.away(id)), (0x0040, 0x1040));
    }

    #[rstest]
    #[case("0x1ff", 0, 0x100)] // nine in a row: the lowest eight are the id
    #[case("0xff000001", 24, 1)]
    #[case("0x80ff0000", 16, 0x8000_0000)]
    #[case("4351", 0, 0x1000)]
    fn a_mask_is_nine_bits(#[case] text: &str, #[case] shift: u32, #[case] away: u32) {
        assert_eq!(text.parse(), Ok(MarkMask { id_shift: shift, away }));
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("0xff")]
    #[case("0x10fe")]
    #[case("0x30ff")]
    #[case("0x1010101")]
    #[case("0xffffffff")]
    #[case("-1")]
    #[case("eth0")]
    fn anything_else_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<MarkMask>(), Err(InvalidMarkMask(text.to_owned())));
    }

    proptest! {
        #[test]
        fn text_and_mask_are_one(mask in any_mask()) {
            // nine in a row can be read in two ways, and the lowest eight win
            let read: MarkMask = mask.to_string().parse().unwrap();
            prop_assert_eq!(read.mask(), mask.mask());
            prop_assert_eq!(read.to_string().parse::<MarkMask>(), Ok(read));
        }

        #[test]
        fn marks_are_told_apart_whatever_others_set(mask in any_mask(), noise: u32) {
            for id in RouteId::all() {
                let noise = noise & !mask.mask();
                prop_assert_eq!(mask.id_of(mask.here(id) | noise), Some((id, false)));
                prop_assert_eq!(mask.id_of(mask.away(id) | noise), Some((id, true)));
            }
        }
    }
}
