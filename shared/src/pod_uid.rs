//! What the UID of a pod is.

use std::fmt;
use std::str::FromStr;

/// The UID that the API server gave a pod: a UUID, as `8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(u128);

/// The text is not the UID of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a UUID; write one as 8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21")]
pub struct InvalidPodUid;

/// The digits between dashes.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for PodUid {
    type Err = InvalidPodUid;

    /// Lower-case digits only, so that no UID has two spellings.
    fn from_str(text: &str) -> Result<Self, InvalidPodUid> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let mut groups = text.split('-');
        let mut value = 0;
        for length in GROUPS {
            let group = groups.next().filter(|group| group.len() == length);
            let group = group.filter(|group| group.bytes().all(is_digit)).ok_or(InvalidPodUid)?;
            let digits = u128::from_str_radix(group, 16).map_err(|_| InvalidPodUid)?;
            value = (value << (4 * length)) | digits;
        }
        if groups.next().is_some() { Err(InvalidPodUid) } else { Ok(Self(value)) }
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let mut rest = digits.as_str();
        for (at, length) in GROUPS.into_iter().enumerate() {
            let (group, after) = rest.split_at(length);
            rest = after;
            write!(f, "{}{group}", if at == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_uid_survives_being_written_and_read(value: u128) {
            let uid = PodUid(value);
            prop_assert_eq!(uid.to_string().parse(), Ok(uid));
            prop_assert!(crate::config_map::addr_of_key(&uid.to_string()).is_err());
        }
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for text in [
            "",
            "fd00--1",
            "10.0.0.1",
            "8F14E45F-CEEA-467F-A0E6-5D1C5A3B7C21",
            "8f14e45fceea467fa0e65d1c5a3b7c21",
            "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c2",
            "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21-",
            "+f14e45f-ceea-467f-a0e6-5d1c5a3b7c21",
        ] {
            assert_eq!(text.parse::<PodUid>(), Err(InvalidPodUid), "{text}");
        }
    }
}
