//! Commands as a person types them, on a machine that has `kubectl` and a kubeconfig.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::host::Host;

/// After which a command is killed: the longest waits for a whole installation.
const TIMEOUT: &str = "300";

/// The API server is a machine of the test bed: no proxy knows the way to it.
const NOT_INHERITED: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

/// Runs command lines on one machine, in the directory of this repository.
#[derive(Debug)]
pub struct Shell {
    host: Host,
    variables: Vec<(&'static str, OsString)>,
    echo: bool,
}

impl Shell {
    /// A shell on that machine. `programs` is a directory that commands are looked for in first.
    pub(crate) fn on(host: &Host, programs: &Path, kubeconfig: &Path) -> Result<Self> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(
            std::iter::once(programs.to_owned()).chain(env::split_paths(&inherited)),
        )
        .context("the programs' directory cannot be in PATH")?;
        let variables = vec![("PATH", path), ("KUBECONFIG", kubeconfig.into())];
        Ok(Self { host: host.clone(), variables, echo: false })
    }

    /// As given, but commands and what they print appear on standard output.
    #[must_use]
    pub fn echoing(mut self) -> Self {
        self.echo = true;
        self
    }

    /// Runs a line of shell and returns what it printed, standard error included.
    ///
    /// # Errors
    /// When it fails or takes longer than five minutes; the text has its output, unless that was
    /// shown already.
    pub fn run(&self, line: &str) -> Result<String> {
        self.say(&format!("$ {line}"))?;
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "-k", "1", TIMEOUT, "sh", "-c", &format!("exec 2>&1; {line}")])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for variable in NOT_INHERITED {
            command.env_remove(variable);
        }
        let mut child = self.host.spawn(&mut command)?;
        let output = child.stdout.take().context("no output")?;
        let mut text = String::new();
        for printed in BufReader::new(output).lines() {
            let printed = printed.context("cannot read what a command prints")?;
            self.say(&printed)?;
            text.push_str(&printed);
            text.push('\n');
        }
        let status = child.wait().context("cannot wait for a command")?;
        let shown = if self.echo { "its output is above" } else { &text };
        ensure!(status.success(), "`{line}` failed ({status}): {shown}");
        Ok(text)
    }

    fn say(&self, line: &str) -> Result<()> {
        if self.echo {
            writeln!(stdout(), "  {line}").context("cannot write to standard output")?;
        }
        Ok(())
    }
}

/// The root directory of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).unwrap_or(Path::new(".")).to_owned()
}
