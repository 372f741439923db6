#!/usr/bin/env bash
# The main job on an embedded default: pods in network namespaces reach a host outside with their
# VIP, while the VIP moves from node to node. Arguments go to the demonstration (see --help).
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install.sh
export PATH=$PATH:/usr/sbin:/sbin
cargo build --quiet --locked -p agent -p tests
exec "${CARGO_TARGET_DIR:-target}/debug/demo" "$@"
