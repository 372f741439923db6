//! The controller: turns `Vip` and `Egress` objects into the `ConfigMaps` that agents read.
//!
//! It is not built yet. Agents do their whole job from a directory of mappings meanwhile
//! (`agent --mappings-dir`), in the format that the controller will publish.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut stderr = std::io::stderr();
    // Nobody is left to tell when even standard error is closed.
    let _ = writeln!(
        stderr,
        "controller: not built yet; run `agent --mappings-dir DIR` with the mappings in a directory"
    );
    ExitCode::from(69) // EX_UNAVAILABLE of sysexits.h
}
