//! Waits until the tests that started it have ended, then removes their test bed.

use anyhow::Result;

fn main() -> Result<()> {
    tests::guard()
}
