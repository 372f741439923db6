#!/usr/bin/env bash
# Builds the Kubernetes programs of the test bed into target/kubernetes/bin, unless they are there
# and their inputs are the same: one program, and a link to it for each name it goes by.
# From nothing it takes 8 minutes of two cores, 3 GB of memory, and Go's module proxy.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${CARGO_TARGET_DIR:-target}/kubernetes/bin
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
cd tests/kubernetes

# Two runs at the same time would build the same thing twice.
exec 9>"$bin/.lock"
flock 9

inputs=$(cat go.mod go.sum main.go | sha256sum | cut -d' ' -f1)
if [ ! -x "$bin/hyperkube" ] || [ "$(cat "$bin/.inputs" 2>/dev/null)" != "$inputs" ]; then
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  echo "building the programs of Kubernetes $version: some minutes, the first time"
  package=k8s.io/component-base/version
  minor=${version#v1.}
  rm -f "$bin/.inputs"
  go build -trimpath -o "$bin/hyperkube.new" -ldflags "-s -w \
    -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}" .
  mv "$bin/hyperkube.new" "$bin/hyperkube"
  echo "$inputs" >"$bin/.inputs"
fi
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
  # Somebody may be calling it.
  [ -x "$bin/$name" ] || ln -sf hyperkube "$bin/$name"
done
