//! Changes what the tables contain, but for their pods: one transaction through `nft`.
//!
//! The only place that runs a program. nft checks and encodes the rules; it is not asked for
//! anything that changes with pods, nor to list what is there (see `kernel::tables`).

mod commands;
mod text;

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::plan::{IngressChange, TablesChange};
use crate::ruleset::TableNames;

/// Loading two tables of 252 VIPs takes some 0.1 s; a machine may be a hundred times slower.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Why a change did not take place. The tables are as they were.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no nft, or it may not be run.
    #[error(
        "cannot run {program}; install nftables 1.0.6 or later, or name the program with --nft"
    )]
    Start { program: String, source: std::io::Error },
    /// It did not listen, or did not end.
    #[error("cannot talk to nft")]
    Talk { source: std::io::Error },
    /// It did not end in time.
    #[error("cannot load tables: nft has not answered for {0:?}")]
    Slow(Duration),
    /// It refused.
    #[error("cannot load tables: nft ended with {status} and said: {said}")]
    Refused { status: ExitStatus, said: String },
    /// The commands cannot be written as JSON.
    #[error("cannot write tables as JSON")]
    Encode { source: serde_json::Error },
}

/// Runs nft in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Nft {
    program: String,
    names: TableNames,
}

impl Nft {
    /// A runner of `program` (a path, or a name to look for in `PATH`) for these tables.
    pub fn new(program: impl Into<String>, names: TableNames) -> Self {
        Self { program: program.into(), names }
    }

    /// Changes the main and the guard table in one transaction: everything or nothing.
    pub async fn change(&self, change: &TablesChange) -> Result<(), NftError> {
        self.run_json(&commands::of_change(&self.names, change)).await
    }

    /// Changes the ingress table in one transaction: everything or nothing.
    pub async fn change_ingress(&self, change: &IngressChange) -> Result<(), NftError> {
        let commands = text::of_change(&self.names, change);
        self.run(&["-f", "-"], commands.as_bytes()).await
    }

    /// Has these sets of the ingress table hold this and nothing else, in one transaction.
    pub async fn keep(&self, of_sets: &BTreeMap<&str, Vec<String>>) -> Result<(), NftError> {
        let commands = text::of_elements(&self.names, of_sets);
        self.run(&["-f", "-"], commands.as_bytes()).await
    }

    /// Removes all tables, whether or not they exist.
    pub async fn remove_tables(&self) -> Result<(), NftError> {
        self.run_json(&commands::of_removal(&self.names)).await
    }

    async fn run_json(&self, commands: &commands::Batch) -> Result<(), NftError> {
        let input = serde_json::to_vec(commands).map_err(|source| NftError::Encode { source })?;
        self.run(&["-j", "-f", "-"], &input).await
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(), NftError> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| NftError::Start { program: self.program.clone(), source })?;
        let stdin = child.stdin.take();
        let conversation = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    stdin.write_all(input).await?;
                }
                Ok::<(), std::io::Error>(())
            };
            // Side by side: nft may fill a pipe before it has read everything.
            let (written, output) = tokio::join!(write, child.wait_with_output());
            let output = output?;
            if output.status.success() {
                written?;
            }
            Ok(output)
        };
        let output = timeout(TIME_LIMIT, conversation)
            .await
            .map_err(|_| NftError::Slow(TIME_LIMIT))?
            .map_err(|source| NftError::Talk { source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).filter(|line| !line.is_empty());
        Err(NftError::Refused {
            status: output.status,
            said: said.take(6).collect::<Vec<_>>().join(" / "),
        })
    }
}
