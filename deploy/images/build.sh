#!/usr/bin/env bash
# Builds the images egress-mapper, kube-egress and kube-keepalived-vip (see Containerfile).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
images=(egress-mapper kube-egress kube-keepalived-vip)

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
registry=localhost tag=$version engine='' local='' programs='' archives='' push=''

usage() {
  cat <<USAGE
usage: deploy/images/build.sh [OPTION]...
  --registry NAME    what image names begin with (default: localhost)
  --tag TAG          the images' tag (default: $version, the version in Cargo.toml)
  --engine PROGRAM   docker, podman or buildah (default: the first of them that works)
  --push             push the images to the registry
  --archives DIR     write each image to DIR/NAME.tar as well, as 'ctr images import' reads it
  --local            needs no registry: builds the programs here with cargo, and takes nft,
                     keepalived and libraries from this machine, which has to be a Debian
  --programs DIR     as --local, with the programs controller and agent that are in DIR
USAGE
}
fail() { echo "$0: $2" >&2; exit "$1"; }

while [ "$#" -gt 0 ]; do
  case $1 in
    --registry | --tag | --engine | --programs | --archives)
      [ "$#" -ge 2 ] || fail 64 "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --local | --push) declare "${1#--}=yes"; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail 64 "unknown option $1" ;;
  esac
done

works() { command -v "$1" >/dev/null && { [ "$1" = buildah ] || "$1" info >/dev/null 2>&1; }; }
if [ -z "$engine" ]; then
  for candidate in docker podman buildah; do works "$candidate" && { engine=$candidate; break; }; done
fi
[ -n "$engine" ] || fail 69 "no container engine works here: install docker, podman or buildah"
works "$engine" || fail 69 "$engine does not work here: is it installed, is its service running?"
if [ "$engine" = buildah ]; then
  # Work without overlay mounts and without a container runtime, in containers too.
  export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
fi

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" -f deploy/images/Containerfile)
context=.
if [ -n "$local" ] && [ -z "$programs" ]; then
  cargo build --quiet --locked --release -p controller -p agent
  programs=${CARGO_TARGET_DIR:-target}/release
fi
if [ -n "$programs" ]; then
  context=$(mktemp -d)
  trap 'rm -rf "$context"' EXIT
  mkdir "$context/programs" "$context/files"
  for program in controller agent; do
    [ -x "$programs/$program" ] || fail 69 "there is no program $programs/$program"
    strip -o "$context/programs/$program" "$programs/$program"
  done
  collect() {
    PATH=$context/programs:$PATH deploy/images/collect.sh "$context/files/$1" "${@:2}"
    install -D -m 644 -t "$context/files/$1/usr/share/doc/egress-mapper" LICENSE
  }
  collect egress-mapper controller
  collect kube-egress agent nft
  collect kube-keepalived-vip agent keepalived
  arguments+=(--build-arg FILES=given)
  context=$context/files
fi

# What an archive was made from: one that is still right is left alone.
ingredients() { # image, name
  {
    echo "$2 $revision"
    cat deploy/images/Containerfile
    tar -C "$context/$1" --sort=name --mtime=@0 --owner=0 --group=0 -c .
  } | sha256sum | cut -d ' ' -f 1
}

for image in "${images[@]}"; do
  name=$registry/$image:$tag
  archive=$archives/$image.tar
  if [ -n "$programs" ] && [ -n "$archives" ] && [ -z "$push" ]; then
    made_from=$(ingredients "$image" "$name")
    if [ -e "$archive" ] && [ "$(cat "$archive.made-from" 2>/dev/null)" = "$made_from" ]; then
      echo "$archive is up to date"
      continue
    fi
  fi
  echo "building $name"
  "$engine" build --quiet "${arguments[@]}" --target "$image" -t "$name" "$context" >/dev/null
  if [ -n "$archives" ]; then
    mkdir -p "$archives"
    rm -f "$archive" "$archive.made-from"
    case $engine in
      docker) docker save -o "$archive" "$name" ;;
      podman) podman save --quiet --format oci-archive -o "$archive" "$name" ;;
      buildah) buildah push --quiet "$name" "oci-archive:$archive:$name" >/dev/null ;;
    esac
    [ -z "${made_from:-}" ] || echo "$made_from" >"$archive.made-from"
    echo "wrote $archive ($(du -h --apparent-size "$archive" | cut -f1))"
  fi
  [ -z "$push" ] || "$engine" push "$name"
done
