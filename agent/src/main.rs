//! The agent's program: reads the command line, does what it says, tells how it ended.

use std::process::ExitCode;

use agent::cli::Cli;
use agent::commands;
use clap::Parser;

fn main() -> ExitCode {
    commands::execute(&Cli::parse())
}
