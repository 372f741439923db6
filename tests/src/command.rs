//! How this crate runs other programs: always with a deadline, and with errors that name the command.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// After which any program this crate waits for is killed, unless told otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a program and returns its standard output.
///
/// # Errors
/// When it cannot be started, fails or takes longer than 20 seconds; the text has the whole command
/// and what it wrote to standard error.
pub fn run<S: AsRef<str>>(command: &[S]) -> Result<String> {
    run_with_input(command, "")
}

/// As [`run`], with `input` on standard input.
pub fn run_with_input<S: AsRef<str>>(command: &[S], input: &str) -> Result<String> {
    run_within(TIMEOUT, command, input)
}

/// As [`run_with_input`], killing the program after `timeout`.
pub(crate) fn run_within<S: AsRef<str>>(
    timeout: Duration,
    command: &[S],
    input: &str,
) -> Result<String> {
    let words: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
    let shown = words.join(" ");
    let mut child = Command::new("timeout")
        .args(["--foreground", "-k", "1", &timeout.as_secs_f32().to_string()])
        .args(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            // A program that ends early closes the pipe; its exit code says what is wrong.
            stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
        });
        child.wait_with_output()
    })
    .with_context(|| format!("cannot wait for `{shown}`"))?;
    ensure!(
        output.status.success(),
        "`{shown}` failed ({}):\n{}{}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        if input.is_empty() { "" } else { "with input:\n" },
        numbered(input),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn numbered(input: &str) -> String {
    let lines = (1..).zip(input.lines()).map(|(number, line)| format!("{number:4} {line}"));
    lines.collect::<Vec<_>>().join("\n")
}
