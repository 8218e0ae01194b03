#!/bin/bash
# Make the root image of a lab host: Debian trixie, its kernel, OpenZFS from contrib, and what the tests need.
# usage: build.sh WORK      needs root; WORK holds wheels/ and id.pub; leaves WORK/{base.raw,vmlinuz,initrd.img}
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

# Nothing starts inside the chroot, no fsync per file, no documents, one initrd at the end.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
printf '%s\n' force-unsafe-io force-confold 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/locale/*' \
  > "$root/etc/dpkg/dpkg.cfg.d/lab-build"
echo 'man-db man-db/auto-update boolean false' | chroot "$root" debconf-set-selections
tar -C "$here/files" --owner=0 --group=0 --mode=u=rwX,go=rX -cf - . | tar -C "$root" -xf -
install -d "$root/etc/initramfs-tools"
echo 'update_initramfs=no' > "$root/etc/initramfs-tools/update-initramfs.conf"

step "packages"
chroot "$root" apt-get -q update
mapfile -t packages < <(sed 's/#.*//; /^ *$/d' "$here/packages.txt" | tr -s ' ' '\n')
chroot "$root" apt-get -qy install --no-install-recommends "${packages[@]}"

step "OpenZFS kernel module"
chroot "$root" apt-get -qy install --no-install-recommends zfs-dkms zfsutils-linux
kernel=$(basename "$(echo "$root"/lib/modules/*)")
chroot "$root" modinfo -k "$kernel" zfs > /dev/null

step "Proxmox simulator's wheels"
install -d "$root/opt/wheels"
cp "$work"/wheels/*.whl "$root/opt/wheels/"
chroot "$root" python3 -m venv /opt/fakepve
chroot "$root" /opt/fakepve/bin/pip install -q --no-index --find-links /opt/wheels -r /dev/stdin < "$here/wheels.txt"
rm -r "$root/opt/wheels"

step "services and keys"
install -d -m 700 "$root/root/.ssh"
install -m 600 "$work/id.pub" "$root/root/.ssh/authorized_keys"
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/zfs/zpool.cache"
: > "$root/etc/machine-id"
echo '/dev/vda / ext4 noatime 0 1' > "$root/etc/fstab"
rm -f "$root/etc/resolv.conf"   # debootstrap copied this machine's, which the chroot needed until now
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
chroot "$root" systemctl -q enable systemd-networkd ssh lab-identity lab-pools
mapfile -t masked < <(sed 's/#.*//; /^ *$/d' "$here/masked.txt")
chroot "$root" systemctl -q mask "${masked[@]}"

step "kernel and initrd"
# Only the root disk is needed before the real root: a small initrd unpacks in no time under emulation.
printf '%s\n' virtio_pci virtio_blk ext4 > "$root/etc/initramfs-tools/modules"
printf '%s\n' MODULES=list COMPRESS=lz4 > "$root/etc/initramfs-tools/conf.d/lab"
echo 'update_initramfs=yes' > "$root/etc/initramfs-tools/update-initramfs.conf"
chroot "$root" mkinitramfs -o /boot/initrd.img "$kernel"
mv "$root/boot/initrd.img" "$work/initrd.img"
cp "$root/boot/vmlinuz-$kernel" "$work/vmlinuz"

rm "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/lab-build"
chroot "$root" apt-get -q clean
detach
trap - EXIT

step "root file system"
truncate -s 8G "$work/base.raw"
mke2fs -q -t ext4 -O ^metadata_csum -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" -F "$work/base.raw"
rm -rf --one-file-system "$root"
step "done"
