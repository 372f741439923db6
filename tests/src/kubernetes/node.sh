# Process 1 of a node. It has namespaces of its own for mounts and processes, so that all it
# starts and mounts is gone when it is. The network is the laboratory's.
# $1: directory of the node, $2: its control group, $3: its name, $4: its addresses,
# $5: the pods' network, $6: directory of the programs of Kubernetes, $7: mode of kube-proxy.
set -euo pipefail
dir=$1 group=$2 name=$3 addresses=$4 pods=$5 bin=$6 proxy_mode=$7

# Namespaces of others would live as long as this copy of their mounts.
umount --recursive --lazy /run/netns 2>/dev/null || true
mkdir -p /var/lib/cni
for own in /run /var/log /var/lib/cni; do mount -t tmpfs tmpfs $own; done
mkdir -p /run/lock "$dir/containerd" "$dir/kubelet"
# Layers of images do not stack on an overlay, which is what a container's own files are on.
if [ "$(stat -f -c %T "$dir")" = overlayfs ]; then mount -t tmpfs tmpfs "$dir/containerd"; fi
# Volumes that kubelet mounts are seen by containers that ask for it.
mount --make-rshared /

# Control groups: version 1 has a tree for each resource, version 2 one for all.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
  hand_on() { sed 's/^/+/; s/ / +/g' /sys/fs/cgroup/cgroup.controllers >"$1/cgroup.subtree_control"; }
  # Only a group without processes hands resources on. What looks like the root in a container is
  # not the real one, so that this matters: they move.
  if ! hand_on /sys/fs/cgroup 2>/dev/null; then
    mkdir -p /sys/fs/cgroup/init
    while read -r process; do
      echo "$process" >/sys/fs/cgroup/init/cgroup.procs 2>/dev/null || true
    done </sys/fs/cgroup/cgroup.procs
    hand_on /sys/fs/cgroup
  fi
  mkdir -p "/sys/fs/cgroup/$group"
  hand_on "/sys/fs/cgroup/$group"
else
  for tree in $(awk '$3 == "cgroup" {print $2}' /proc/mounts); do mkdir -p "$tree/$group"; done
  cpuset=$(awk '$3 == "cgroup" && $4 ~ /(^|,)cpuset(,|$)/ {print $2}' /proc/mounts)
  for what in cpus mems; do cat "$cpuset/cpuset.$what" >"$cpuset/$group/cpuset.$what"; done
fi

# As an init system does: what ends is started again. Logs are named like their programs.
keep_running() {
  while :; do
    "$@" >>"$dir/$(basename "$1").log" 2>&1 || true
    sleep 0.5
  done &
}
keep_running containerd -c "$dir/containerd.toml"
until ctr version >/dev/null 2>&1; do sleep 0.05; done
ctr -n k8s.io images import "$dir/../busybox.tar" >/dev/null
keep_running "$bin/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$dir/kubeconfig" \
  --root-dir "$dir/kubelet" --cert-dir "$dir/kubelet/pki" \
  --hostname-override "$name" --node-ip "$addresses"
keep_running "$bin/kube-proxy" --kubeconfig "$dir/kubeconfig" --hostname-override "$name" \
  --proxy-mode "$proxy_mode" --cluster-cidr "$pods" --conntrack-max-per-core 0
wait
