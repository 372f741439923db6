//! What both programs tell an operator: logs, probes and metrics.
//!
//! The programs decide what to say; how it is said and served is decided here.

mod health;
mod logs;
mod server;

pub use self::health::{Health, Stuck, Unready};
pub use self::logs::{LogFormat, LogsError, UnknownLogFormat, init_logs};
pub use self::server::{Page, ServeError, listen, serve};
