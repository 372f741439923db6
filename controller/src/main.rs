//! The controller's program: reads the command line, does what it says, tells how it ended.

use std::process::ExitCode;

use clap::Parser;
use controller::cli::Cli;
use controller::commands;

fn main() -> ExitCode {
    commands::execute(&Cli::parse())
}
