#!/usr/bin/env bash
# Installs the Debian packages that the laboratory and the Kubernetes test bed need, if any is
# missing, and checks for the compilers. Needs root.
set -euo pipefail

# What it has to provide, and the package that has it.
declare -A needed=(
  [nft]=nftables [ip]=iproute2 [tc]=iproute2 [bridge]=iproute2
  [iptables-nft]=iptables [iptables-legacy]=iptables
  [conntrack]=conntrack [tcpdump]=tcpdump [ping]=iputils-ping [setpriv]=util-linux
  [cc]=gcc [curl]=curl [sysctl]=procps
  # Kubernetes: its nodes, what runs on them, and the images.
  [containerd]=containerd [ctr]=containerd [runc]=runc
  [/usr/lib/cni/bridge]=containernetworking-plugins
  [openssl]=openssl [busybox]=busybox-static [keepalived]=keepalived
  [buildah]=buildah [strip]=binutils
)

[ "$(id -u)" = 0 ] || { echo "$0: run as root: network namespaces and packages need it" >&2; exit 77; }
PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in "${!needed[@]}"; do
  command -v "$program" >/dev/null || missing+=("${needed[$program]}")
done
if [ "${#missing[@]}" != 0 ]; then
  mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
  echo "installing ${packages[*]}"
  # A package may bring a service; nothing of it is to start on this machine.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

command -v cargo >/dev/null || { echo "$0: cargo is missing: install Rust 1.95 or later" >&2; exit 69; }
# Debian's Go may be too old for the programs of Kubernetes.
go_version=$(go env GOVERSION 2>/dev/null) || go_version=none
oldest=go$(awk '$1 == "go" {print $2}' "$(dirname "$0")/kubernetes/go.mod")
if [ "$go_version" = none ] || ! printf '%s\n' "$oldest" "$go_version" | sort -VC; then
  echo "$0: Go $oldest or later is needed to build Kubernetes, there is $go_version: see https://go.dev/dl" >&2
  exit 69
fi
