//! Which bits of a packet's mark are ours, and what they say.

use std::fmt;
use std::str::FromStr;

use shared::RouteId;

/// Eight neighbouring bits for the route id, one bit that says the VIP is away, on another node, and
/// one, which may be missing, that says the connection takes the direct path. All other bits of a
/// mark belong to others (the CNI, kube-proxy) and are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask {
    id_shift: u32,
    away: u32,
    /// 0 if there is none.
    direct: u32,
}

/// What was decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// This node holds the VIP and translates.
    Here,
    /// The VIP's holder translates.
    Away,
    /// This node translates with ports of its own, whoever holds the VIP.
    Direct,
}

impl MarkMask {
    /// The mark of a packet whose VIP is on this node, and of one that goes straight out.
    pub const fn here(self, id: RouteId) -> u32 {
        // `as`: `u32::from` is not const
        (id.number() as u32) << self.id_shift
    }

    /// The mark of a packet that is to go to the VIP's holder.
    pub const fn away(self, id: RouteId) -> u32 {
        self.here(id) | self.away
    }

    /// The mark of a connection (never of a packet) that takes the direct path; `None` where no bit
    /// is left for that.
    pub const fn direct(self, id: RouteId) -> Option<u32> {
        if self.direct == 0 { None } else { Some(self.here(id) | self.direct) }
    }

    /// All bits: those of a connection's mark.
    pub const fn mask(self) -> u32 {
        self.of_packets() | self.direct
    }

    /// The nine bits of a packet's mark, which policy rules go by.
    pub const fn of_packets(self) -> u32 {
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

    /// The bit that tells [`direct`](Self::direct) from [`here`](Self::here), if there is one.
    pub const fn direct_bit(self) -> Option<u32> {
        if self.direct == 0 { None } else { Some(self.direct) }
    }

    /// The route id in a connection's mark and what was decided; the bits of others do not matter.
    /// `None` when the mark is none of ours.
    pub fn id_of(self, mark: u32) -> Option<(RouteId, Decision)> {
        let id = RouteId::try_from((mark >> self.id_shift) & 0xff).ok()?;
        let decision = match (mark & self.away != 0, mark & self.direct != 0) {
            (false, false) => Decision::Here,
            (true, false) => Decision::Away,
            (false, true) => Decision::Direct,
            (true, true) => return None,
        };
        Some((id, decision))
    }
}

/// `0x000030ff`: clear of kube-proxy and flannel (0xc000), Cilium (0x0f00 and the upper half) and
/// Calico (the upper half).
impl Default for MarkMask {
    fn default() -> Self {
        Self { id_shift: 0, away: 0x1000, direct: 0x2000 }
    }
}

/// The number is no mask of eight neighbouring bits and one or two more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a mark mask; use ten bits, eight of them side by side for the route id and two \
     elsewhere for \"away\" and \"direct\", as in 0x000030ff, or nine bits where no VIP takes the \
     direct path"
)]
pub struct InvalidMarkMask(pub String);

/// The lowest eight neighbouring bits are the route id's; of those left over the lower one is "away",
/// the other, if there is one, "direct".
impl TryFrom<u32> for MarkMask {
    type Error = InvalidMarkMask;

    fn try_from(mask: u32) -> Result<Self, InvalidMarkMask> {
        (0..=24)
            .map(|id_shift| (id_shift, 0xff << id_shift))
            .find(|(_, id)| mask & id == *id)
            .map(|(id_shift, id)| (id_shift, mask & !id))
            .filter(|(_, others)| (1..=2).contains(&others.count_ones()))
            .map(|(id_shift, others)| {
                let away = 1 << others.trailing_zeros();
                Self { id_shift, away, direct: others & !away }
            })
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
        (0..=24_u32, 0..32_u32, prop::option::of(0..32_u32))
            .prop_filter("the other bits lie outside of the id", |(shift, away, direct)| {
                let id = 0xff_u32 << shift;
                id & (1 << away) == 0 && direct.is_none_or(|direct| id & (1 << direct) == 0)
            })
            .prop_filter("away is the lower of the two", |(_, away, direct)| {
                direct.is_none_or(|direct| away < &direct)
            })
            .prop_map(|(id_shift, away, direct)| MarkMask {
                id_shift,
                away: 1 << away,
                direct: direct.map_or(0, |direct| 1 << direct),
            })
    }

    #[test]
    fn the_default_is_the_one_the_documents_name() {
        let mask = MarkMask::default();
        let id = RouteId::try_from(64).unwrap();
        assert_eq!(mask.to_string(), "0x000030ff");
        assert_eq!("0x000030ff".parse(), Ok(mask));
        assert_eq!((mask.here(id), mask.away(id)), (0x0040, 0x1040));
        assert_eq!((mask.direct(id), mask.of_packets()), (Some(0x2040), 0x10ff));
    }

    #[rstest]
    #[case("0x1ff", 0, 0x100, 0)] // nine in a row: the lowest eight are the id
    #[case("0x3ff", 0, 0x100, 0x200)]
    #[case("0xff000001", 24, 1, 0)]
    #[case("0x80ff0000", 16, 0x8000_0000, 0)]
    #[case("0x80ff0001", 16, 1, 0x8000_0000)]
    #[case("4351", 0, 0x1000, 0)]
    fn a_mask_is_nine_or_ten_bits(
        #[case] text: &str,
        #[case] id_shift: u32,
        #[case] away: u32,
        #[case] direct: u32,
    ) {
        assert_eq!(text.parse(), Ok(MarkMask { id_shift, away, direct }));
    }

    #[test]
    fn nine_bits_are_as_they_were_before_there_was_a_tenth() {
        let mask: MarkMask = "0x000010ff".parse().unwrap();
        let id = RouteId::try_from(64).unwrap();
        assert_eq!((mask.mask(), mask.direct(id), mask.direct_bit()), (0x10ff, None, None));
        assert_eq!(mask.id_of(0x3040), Some((id, Decision::Away)), "0x2000 is somebody else's");
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("0xff")]
    #[case("0x10fe")]
    #[case("0x70ff")]
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
                prop_assert_eq!(mask.id_of(mask.here(id) | noise), Some((id, Decision::Here)));
                prop_assert_eq!(mask.id_of(mask.away(id) | noise), Some((id, Decision::Away)));
                if let Some(direct) = mask.direct(id) {
                    prop_assert_eq!(mask.id_of(direct | noise), Some((id, Decision::Direct)));
                }
                // A packet's mark has no such bit: somebody else's may be there.
                prop_assert_eq!(mask.here(id) & !mask.of_packets(), 0);
            }
        }
    }
}
