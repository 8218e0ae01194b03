#!/bin/bash
# The slow part of a lab host, kept in the cache by itself: Debian trixie, a kernel, OpenZFS from contrib, packages.
# usage: build.sh WORK      needs root; leaves WORK/base.tar.zst
# Lines that begin with "==> " on stdout are progress; all else belongs in a log.
set -euo pipefail
work=${1:?usage: build.sh WORK}
here=$(cd "$(dirname "$0")" && pwd)
root=$work/root
suite=trixie
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

step() { echo "==> $*"; }
detach() { umount "$root/dev" "$root/sys" "$root/proc" 2>/dev/null || true; }
trap detach EXIT

step "debootstrap $suite"
debootstrap --variant=minbase --components=main,contrib --include=ca-certificates "$suite" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount --bind /dev "$root/dev"

# Nothing starts inside the chroot, no fsync per file, no documents, no initrd yet.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
printf '%s\n' force-unsafe-io force-confold 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/locale/*' \
  > "$root/etc/dpkg/dpkg.cfg.d/lab-build"
echo 'man-db man-db/auto-update boolean false' | chroot "$root" debconf-set-selections
install -d "$root/etc/initramfs-tools"
echo 'update_initramfs=no' > "$root/etc/initramfs-tools/update-initramfs.conf"

step "packages"
chroot "$root" apt-get -q update
mapfile -t packages < <(sed 's/#.*//; /^ *$/d' "$here/packages.txt" | tr -s ' ' '\n')
chroot "$root" apt-get -qy install --no-install-recommends "${packages[@]}"

step "OpenZFS kernel module (the longest part: it is compiled)"
chroot "$root" apt-get -qy install --no-install-recommends zfs-dkms zfsutils-linux
kernel=$(basename "$(echo "$root"/lib/modules/*)")
chroot "$root" modinfo -k "$kernel" zfs > /dev/null

rm "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/lab-build"
chroot "$root" apt-get -q clean
detach
trap - EXIT
tar -C "$root" --numeric-owner --xattrs -cf - . | zstd -q -1 -T0 -o "$work/base.tar.zst"
rm -rf --one-file-system "$root"
