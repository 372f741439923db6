//! Values of flags that both programs have.

use std::time::Duration;

/// Whole seconds, as `5` or `5s`: up to an hour.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u32>() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds.into())),
        _ => Err("use whole seconds from 1 to 3600, such as 5 or 5s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("5", Some(5))]
    #[case("5s", Some(5))]
    #[case("3600", Some(3600))]
    #[case("0", None)]
    #[case("1m", None)]
    #[case("-1", None)]
    #[case("", None)]
    fn an_interval_is_seconds_as_text(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(seconds(text).ok(), expected.map(Duration::from_secs));
    }
}
