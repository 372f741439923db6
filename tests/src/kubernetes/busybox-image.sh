# Makes an image from the static busybox, as `docker save` writes it, at path $0 with name $1:
# something to run in pods and, since it can wait, what keeps their namespaces.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/layer/{bin,etc,tmp,root,proc,sys,dev}
cp "$(command -v busybox)" "$work/layer/bin/busybox"
chroot "$work/layer" /bin/busybox --install -s /bin ||
  { echo "busybox is not static: install busybox-static" >&2; exit 69; }
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/layer/etc/passwd"
cd "$work"
tar --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -C layer -cf layer.tar .
digest=$(sha256sum layer.tar | cut -d' ' -f1)
# It ends at once when it is told to: process 1 hears only signals that it asks for.
wait='trap exit TERM; while :; do sleep 3600 & wait; done'
cat >config.json <<JSON
{"architecture": "$(dpkg --print-architecture)", "os": "linux",
 "config": {"Cmd": ["/bin/sh", "-c", "$wait"], "Env": ["PATH=/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
JSON
cat >manifest.json <<JSON
[{"Config": "config.json", "RepoTags": ["$1"], "Layers": ["layer.tar"]}]
JSON
tar -cf "$0" manifest.json config.json layer.tar
