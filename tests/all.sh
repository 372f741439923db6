#!/usr/bin/env bash
# Every check of the project, from nothing. The same list runs in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install.sh
export PATH=$PATH:/usr/sbin:/sbin
export CARGO_TERM_COLOR=never

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

step "format"
cargo fmt --all --check

step "programs of Kubernetes"
tests/kubernetes/build.sh

step "build"
cargo build --quiet --locked --workspace

step "clippy"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings

step "each crate by itself"
for crate in shared agent controller tests; do cargo check --quiet --locked -p "$crate"; done

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps --document-private-items

step "tests"
cargo test --quiet --locked --workspace --no-fail-fast

step "licences, sources, versions of what is depended on"
if ! command -v cargo-deny >/dev/null; then
  cargo install --quiet --locked --debug --root target/tools cargo-deny@0.20.2
  PATH=$PWD/target/tools/bin:$PATH
fi
# Also what is built for other systems only, which nothing has fetched yet.
cargo fetch --quiet --locked
cargo deny --offline check licenses bans sources

step "everything passed"
