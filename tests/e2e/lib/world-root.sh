# SPDX-License-Identifier: LGPL-2.1-or-later
# Run by lib/world.py as the first process of new mount, pid and uts namespaces: makes the root directory of a host and becomes its shell.
# Arguments: ROOT NAME SHELL ASKS ANSWERS OUTSIDE:INSIDE...   (ASKS, ANSWERS: descriptors)
set -euo pipefail
root=$1 name=$2 shell=$3 asks=$4 answers=$5
shift 5
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=755 world "$root"
cd "$root"
for entry in /usr /bin /sbin /lib /lib32 /lib64 /libx32; do
  if [ -L "$entry" ]; then
    cp -P "$entry" ".$entry"
  elif [ -d "$entry" ]; then
    mkdir ".$entry"
    mount --bind "$entry" ".$entry"
    mount -o remount,bind,ro ".$entry"
  fi
done
mkdir -p dev proc sys etc tmp run srv opt root home mnt var/lib var/log var/tmp var/cache
chmod 1777 tmp var/tmp
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
cp -a /etc/. etc
printf '%s\n' '127.0.0.1 localhost' '192.0.2.1 host-a' '192.0.2.2 host-b' >etc/hosts
repo=$(cd "$(dirname "$0")/../../.." && pwd)
for bind in "$repo:$repo" "$@"; do
  mkdir -p ".${bind#*:}"
  mount --rbind "${bind%%:*}" ".${bind#*:}"
done
pivot_root . mnt
cd /
umount -l /mnt
eval "exec 3<&$asks 4>&$answers"
exec bash "$shell"
