#!/usr/bin/env bash
# Makes the root file system of an image: the named programs, the shared libraries they load, and
# the licences of the Debian packages that those come from. No shell, no package manager.
#   collect.sh DIRECTORY PROGRAM...
# Runs on a Debian system (in a build stage, or on the machine itself) that has the programs.
set -euo pipefail
[ "$#" -ge 2 ] || { echo "usage: $0 DIRECTORY PROGRAM..." >&2; exit 64; }
root=$1
shift
PATH=$PATH:/usr/sbin:/sbin

# One layout on every Debian: /bin, /lib and the like are links into /usr.
mkdir -p "$root"/{etc,run,var,usr/bin,usr/sbin,usr/local/bin,usr/lib,usr/lib64,usr/share/doc}
for directory in bin sbin lib lib64; do ln -sfn "usr/$directory" "$root/$directory"; done
ln -sfn /run "$root/var/run"
install -d -m 1777 "$root/tmp"
printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"

# Where a file goes in the image: Debian's files where Debian has them, our own to /usr/local/bin.
place() {
  case $1 in
    /usr/local/* | /usr/lib* | /usr/bin/* | /usr/sbin/*) echo "$root$1" ;;
    /bin/* | /sbin/* | /lib*) echo "$root/usr$1" ;;
    *) echo "$root/usr/local/bin/$(basename "$1")" ;;
  esac
}

files=()
for program; do
  path=$(command -v "$program") || { echo "$0: $program is missing" >&2; exit 69; }
  # "libc.so.6 => /lib/… (0x…)" and "/lib64/ld-linux… (0x…)"; no output for a static program.
  libraries=$(ldd "$path" 2>/dev/null | sed -nE 's/^.*=> (\/[^ ]+) .*$|^\s+(\/[^ ]+) .*$/\1\2/p')
  if ldd "$path" 2>/dev/null | grep -q 'not found'; then
    echo "$0: a library of $program is missing" >&2
    exit 69
  fi
  for file in $path $libraries; do
    target=$(place "$file")
    [ -e "$target" ] && continue
    install -D -m 755 "$(realpath "$file")" "$target"
    files+=("$file" "$(realpath "$file")" "/usr$file")
  done
done

# Files of no package, our own programs, are not known to dpkg: it says so, and fails.
{ dpkg-query -S "${files[@]}" 2>/dev/null || true; } | sed 's/:.*//' | sort -u | while read -r package; do
  copyright=/usr/share/doc/$package/copyright
  [ ! -e "$copyright" ] || install -D -m 644 "$copyright" "$root$copyright"
done
