//! How logs look, and which of them are written.

use std::env::{self, VarError};
use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The variables that may say which logs are written, the first one that is not empty counts.
const VARIABLES: [&str; 2] = ["EGRESS_LOG", "RUST_LOG"];

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; with colours if standard error is a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The text is not a log format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log format; use text or json")]
pub struct UnknownLogFormat(pub String);

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<Self, UnknownLogFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat(text.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("cannot read {variable}={text:?} as a log filter such as info or agent=debug")]
    Filter { variable: &'static str, text: String, source: ParseError },
    #[error("cannot read {variable} as a log filter: it is not UTF-8")]
    NotText { variable: &'static str },
    #[error("cannot set up logs twice")]
    Twice(#[source] TryInitError),
}

/// Writes logs to standard error from now on, for the whole program; to be called once.
///
/// `EGRESS_LOG`, otherwise `RUST_LOG`, filters them (`debug`, `agent=trace,info`, ...); without
/// either it is `info`.
pub fn init_logs(format: LogFormat) -> Result<(), LogsError> {
    let filter = filter(|name| env::var(name))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => logs.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => logs.json().flatten_event(true).finish().try_init(),
    }
    .map_err(LogsError::Twice)
}

fn filter(read: impl Fn(&str) -> Result<String, VarError>) -> Result<EnvFilter, LogsError> {
    for variable in VARIABLES {
        match read(variable) {
            Err(VarError::NotPresent) => {}
            Err(VarError::NotUnicode(_)) => return Err(LogsError::NotText { variable }),
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => {
                return EnvFilter::try_new(&text).map_err(|source| LogsError::Filter {
                    variable,
                    text,
                    source,
                });
            }
        }
    }
    Ok(EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn chosen(egress: Option<&str>, rust: Option<&str>) -> Result<String, LogsError> {
        let variable = |name: &str| {
            let text = if name == "EGRESS_LOG" { egress } else { rust };
            text.map(str::to_owned).ok_or(VarError::NotPresent)
        };
        filter(variable).map(|filter| filter.to_string())
    }

    #[rstest]
    #[case(None, None, "info")]
    #[case(None, Some("debug"), "debug")]
    #[case(Some(" "), Some("debug"), "debug")]
    #[case(Some("agent=trace,warn"), Some("debug"), "agent=trace,warn")]
    fn the_first_variable_that_is_set_filters_the_logs(
        #[case] egress: Option<&str>,
        #[case] rust: Option<&str>,
        #[case] expected: &str,
    ) {
        assert_eq!(chosen(egress, rust).unwrap(), expected);
    }

    #[test]
    fn a_bad_filter_names_the_variable() {
        assert_eq!(
            chosen(Some("agent=loud"), None).unwrap_err().to_string(),
            "cannot read EGRESS_LOG=\"agent=loud\" as a log filter such as info or agent=debug"
        );
    }

    #[test]
    fn log_formats_survive_being_written_and_read() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
