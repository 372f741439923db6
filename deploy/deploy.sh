#!/usr/bin/env bash
# Installs egress-mapper into a cluster, or with -d removes it. Can be run again at any time.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'USAGE'
usage: deploy/deploy.sh [OPTION]...
  -d, --delete        remove egress-mapper, with all Egress, Vip and EgressMapper objects
  -n, --namespace NS  where the controller runs and Vips count (default: default)
  --context NAME      the context of kubeconfig to use (default: the current one)
  --kubeconfig FILE   the kubeconfig to use (default: $KUBECONFIG, ~/.kube/config)
  --registry NAME     take images from here instead of localhost
  --tag TAG           take images with this tag
  --timeout SECONDS   how long to wait for each part (default: 120)
Environment: KUBECTL, the kubectl program (default: kubectl).
USAGE
}

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$0" "$2" >&2; exit "$1"; }

delete='' namespace=default registry='' tag='' timeout=120 kubectl=("${KUBECTL:-kubectl}")
while [ "$#" -gt 0 ]; do
  case $1 in
    -d | --delete) delete=yes; shift; continue ;;
    -h | --help) usage; exit 0 ;;
    -n | --namespace | --context | --kubeconfig | --registry | --tag | --timeout) ;;
    *) usage >&2; fail 64 "unknown option $1" ;;
  esac
  [ "$#" -ge 2 ] || fail 64 "$1 needs a value"
  case $1 in
    -n | --namespace) namespace=$2 ;;
    --context | --kubeconfig) kubectl+=("$1" "$2") ;;
    --registry) registry=$2 ;;
    --tag) tag=$2 ;;
    --timeout) timeout=$2 ;;
  esac
  shift 2
done
[[ $namespace =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail 64 "$namespace cannot be a namespace's name"
[[ $timeout =~ ^[1-9][0-9]*$ ]] || fail 64 "--timeout is a number of seconds, not $timeout"

k() { "${kubectl[@]}" "$@"; }
kn() { k -n "$namespace" "$@"; }

# A manifest, for the namespace and the images asked for.
rendered() {
  sed -E -e "s|^( *)namespace: default\$|\1namespace: $namespace|" \
    -e "s|^( *kubernetes.io/metadata.name): default\$|\1: $namespace|" \
    ${registry:+-e "s|(: +)localhost/([a-z-]+:)|\1$registry/\2|"} \
    ${tag:+-e "s,(/(egress-mapper|kube-egress|kube-keepalived-vip)):[^ ]+\$,\1:$tag,"} "$here/$1"
}
apply() { rendered "$1" | k apply -f -; }

first=(service_account.yaml role.yaml role_binding.yaml)
keepalived=(keepalived-vip/service_account.yaml keepalived-vip/cluster_role.yaml keepalived-vip/cluster_role_binding.yaml)
# Beyond what the walkthrough of the README lists.
more=(
  cluster_role.yaml cluster_role_binding.yaml
  keepalived-vip/role.yaml keepalived-vip/role_binding.yaml
  kube-egress/service_account.yaml kube-egress/role.yaml kube-egress/role_binding.yaml
  kube-egress/report_policy.yaml kube-egress/report_policy_binding.yaml
)
daemon_sets=(kube-egress kube-keepalived-vip)
mapper=crds/egress_v1alpha1_egressmapper_cr.yaml
crd() { echo "crds/egress_v1alpha1_$1_crd.yaml"; }
# The plurals of the resources, as in the names of their CRDs.
resources=(egresses vips egressmappers)

install() {
  if ! k get namespace "$namespace" >/dev/null 2>&1; then k create namespace "$namespace"; fi
  for file in "${first[@]}"; do apply "$file"; done
  apply "$(crd egressmapper)"
  established egressmappers
  apply "$mapper"
  apply "$(crd egress)"
  apply "$(crd vip)"
  established egresses
  established vips
  for file in "${keepalived[@]}" operator.yaml "${more[@]}"; do apply "$file"; done
  ready
  next_steps
}

established() {
  k wait --for=condition=Established --timeout="${timeout}s" "crd/$1.egress.mapper.com" >/dev/null ||
    fail 70 "the API server does not serve $1.egress.mapper.com: see 'kubectl describe crd $1.egress.mapper.com'"
}

ready() {
  say "waiting until everything is ready"
  rolled_out deployment/egress-mapper
  for name in "${daemon_sets[@]}"; do
    kn wait --for=create --timeout="${timeout}s" "daemonset/$name" >/dev/null 2>&1 || {
      kn get egressmappers.egress.mapper.com >&2 || true
      kn logs --tail=20 deployment/egress-mapper >&2 || true
      fail 70 "the controller did not make DaemonSet $name; its last words are above"
    }
    rolled_out "daemonset/$name"
  done
}

rolled_out() {
  kn rollout status --timeout="${timeout}s" "$1" >/dev/null 2>&1 && return
  {
    echo
    kn get "$1"
    kn get pods -l "$(selector "$1")" -o wide
    kn logs -l "$(selector "$1")" --tail=5 --prefix
    kn get events --field-selector type=Warning,involvedObject.kind=Pod --sort-by=.lastTimestamp | tail -n 8
  } >&2 || true
  fail 70 "$1 is not ready after $timeout s: above are its pods, what they said last, and warnings"
}

selector() {
  case $1 in
    daemonset/kube-egress) echo app=kube-egress ;;
    *) echo "name=${1#*/}" ;;
  esac
}

next_steps() {
  say
  say "egress-mapper works in namespace $namespace. Next, edit and create a VIP and an Egress:"
  say "  kubectl create -f deploy/crds/egress_v1alpha1_vip_cr.yaml      # an address of the nodes' network that is free"
  say "  kubectl create -f deploy/crds/egress_v1alpha1_egress_cr.yaml   # which pods leave with it"
  say "  kubectl get vip,egress                                         # who holds it, who uses it"
  say "Remove everything with: deploy/deploy.sh -d"
}

# --- removal: what is half there, or gone already, is no error

exists() { k get "$@" >/dev/null 2>&1; }
served() { exists crd "$1.egress.mapper.com"; }
gone() { rendered "$1" | k delete --ignore-not-found --timeout="${timeout}s" -f -; }

controller_works() {
  [ "$(kn get deployment egress-mapper -o jsonpath='{.status.readyReplicas}' 2>/dev/null || true)" != "" ]
}

# Objects of ours first, while the controller is there to let go of them.
remove_objects() {
  local plural name patience=$timeout
  controller_works || patience=1
  for plural in egresses vips; do
    served "$plural" || continue
    k delete "$plural.egress.mapper.com" --all --all-namespaces --timeout="${patience}s" 2>/dev/null |
      grep -v '^No resources found' || true
    k get "$plural.egress.mapper.com" --all-namespaces \
      -o jsonpath='{range .items[*]}{.metadata.namespace}{" "}{.metadata.name}{"\n"}{end}' |
      while read -r where name; do
        say "the controller did not let go of $plural/$name in namespace $where: removing its finalizers"
        k -n "$where" patch "$plural.egress.mapper.com" "$name" --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null || true
      done
  done
}

# The agents clean their nodes up when they are told to stop and find their DaemonSet deleted.
remove_daemon_sets() {
  local name
  if served egressmappers; then
    k delete egressmappers.egress.mapper.com --all --all-namespaces --cascade=foreground --timeout="${timeout}s" ||
      say "an EgressMapper is not gone after $timeout s"
  fi
  for name in "${daemon_sets[@]}"; do
    kn delete daemonset "$name" --ignore-not-found --cascade=foreground --timeout="${timeout}s" || true
    kn wait --for=delete pod -l "$(selector "daemonset/$name")" --timeout="${timeout}s" >/dev/null 2>&1 || true
  done
  kn get pods -l "$(selector daemonset/kube-egress)" -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' |
    while read -r node; do
      say "the agent on $node did not stop: run 'agent --cleanup' there once it has"
    done
}

# What the controller and the agents published, but for the three objects that people know.
remove_published() {
  local kept='^(vip-configmap|vip-routeid-mappings|podip-vip-mappings)$' label name
  for label in app.kubernetes.io/managed-by=egress-mapper egress.mapper.com/report-of; do
    kn get configmaps -l "$label" -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' |
      { grep -Ev "$kept" || true; } | while read -r name; do kn delete configmap "$name" --ignore-not-found; done
  done
  kn delete lease egress-mapper --ignore-not-found
}

remove() {
  exists namespace "$namespace" || fail 69 "there is no namespace $namespace, or the cluster does not answer: $(k get namespace "$namespace" 2>&1 | tail -n 1)"
  remove_objects
  remove_daemon_sets
  gone operator.yaml
  kn wait --for=delete pod -l "$(selector deployment/egress-mapper)" --timeout="${timeout}s" >/dev/null 2>&1 || true
  gone keepalived-vip/cluster_role_binding.yaml
  gone keepalived-vip/cluster_role.yaml
  gone keepalived-vip/service_account.yaml
  gone "$(crd vip)"
  gone "$(crd egress)"
  gone "$(crd egressmapper)"
  local i
  for ((i = ${#first[@]} - 1; i >= 0; i--)); do gone "${first[$i]}"; done
  for ((i = ${#more[@]} - 1; i >= 0; i--)); do gone "${more[$i]}"; done
  remove_published
  left_over
}

left_over() {
  local name left=''
  for name in vip-configmap vip-routeid-mappings podip-vip-mappings; do
    if exists -n "$namespace" configmap "$name"; then left+=" $name"; fi
  done
  say
  say "egress-mapper is removed."
  [ -z "$left" ] || say "Its last mappings are left to look at; delete them with:
  kubectl${namespace:+ -n $namespace} delete configmap$left"
}

command -v "${kubectl[0]}" >/dev/null || fail 69 "${kubectl[0]} is missing: install kubectl, or name it in \$KUBECTL"
reason=$(k get --raw /readyz 2>&1) || fail 69 "the cluster does not answer: $(tail -n 1 <<<"$reason")"
if [ -n "$delete" ]; then remove; else install; fi
