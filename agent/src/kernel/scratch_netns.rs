//! A network namespace for one test: a thread of its own inside, gone when the thread ends.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `story` in an empty network namespace. Fails, rather than skips, without the right to.
pub(crate) fn in_scratch_netns<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests in network namespaces need root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(story());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command line in the calling thread's namespace; what it printed. Fails if it fails.
pub(crate) fn run(line: &str) -> String {
    let (outcome, printed) = attempt(line);
    assert!(outcome, "{line}: {printed}");
    printed
}

/// Runs a command line that may fail: whether it did well, and what it printed.
pub(crate) fn attempt(line: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

/// What a command prints as JSON, sorted where it is a list.
pub(crate) fn json(line: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&run(line)).unwrap()
}
