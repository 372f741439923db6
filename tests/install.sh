#!/usr/bin/env bash
# Installs the Debian packages that the laboratory needs, if any is missing. Needs root.
set -euo pipefail

# What it has to provide, and the package that has it.
declare -A needed=(
  [nft]=nftables [ip]=iproute2 [tc]=iproute2 [bridge]=iproute2
  [iptables-nft]=iptables [iptables-legacy]=iptables
  [conntrack]=conntrack [tcpdump]=tcpdump [ping]=iputils-ping [setpriv]=util-linux
  [cc]=gcc [strip]=binutils [buildah]=buildah [keepalived]=keepalived
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
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "$0: cargo is missing: install Rust 1.95 or later" >&2; exit 69; }
