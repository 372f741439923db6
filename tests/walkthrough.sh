#!/usr/bin/env bash
# The main job, from nothing: a real Kubernetes on this machine, the images built and loaded,
# egress-mapper deployed, every step of the README shown and checked, all of it removed.
# Arguments go to the walkthrough: --keep leaves the cluster running (see --help).
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install.sh
export PATH=$PATH:/usr/sbin:/sbin
tests/kubernetes/build.sh
cargo build --quiet --locked --workspace
programs=${CARGO_TARGET_DIR:-target}/debug
deploy/images/build.sh --engine buildah --programs "$programs" --archives target/images
exec "$programs/walkthrough" "$@"
