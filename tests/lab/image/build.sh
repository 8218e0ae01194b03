#!/bin/bash
# Make the root image of a lab host from the base (base/build.sh): the lab's own files, services, wheels, initrd.
# usage: build.sh WORK BASE      needs root; WORK holds wheels/ and id.pub; leaves WORK/{base.raw,vmlinuz,initrd.img}
# Lines that begin with "==> " on stdout are progress; all else belongs in a log.
set -euo pipefail
work=${1:?usage: build.sh WORK BASE}
base=${2:?usage: build.sh WORK BASE}
here=$(cd "$(dirname "$0")" && pwd)
root=$work/root
export LC_ALL=C.UTF-8

step() { echo "==> $*"; }

step "base"
mkdir "$root"
zstd -dc "$base" | tar -C "$root" --numeric-owner --xattrs -xf -
kernel=$(basename "$(echo "$root"/lib/modules/*)")

step "file systems of guests"
# Not in the base, which is compiled anew when its list changes. No host boots from them: they stay out of the initrd.
DEBIAN_FRONTEND=noninteractive chroot "$root" sh -euc '
  apt-get -q update
  apt-get -qy -o DPkg::Options::=--force-unsafe-io install --no-install-recommends btrfs-progs ntfs-3g
  apt-get -q clean
  for name in btrfs ntfs_3g; do
    rm -f "/usr/share/initramfs-tools/hooks/$name" "/usr/share/initramfs-tools/scripts/local-premount/$name"
  done'

step "Proxmox simulator's wheels"
install -d "$root/opt/wheels"
cp "$work"/wheels/*.whl "$here/wheels.txt" "$root/opt/wheels/"
chroot "$root" python3 -m venv /opt/fakepve
chroot "$root" /opt/fakepve/bin/pip install -q --no-index --find-links /opt/wheels -r /opt/wheels/wheels.txt
rm -r "$root/opt/wheels"

step "services and keys"
tar -C "$here/files" --owner=0 --group=0 --mode=u=rwX,go=rX -cf - . | tar -C "$root" -xf -
install -d -m 700 "$root/root/.ssh"
install -m 600 "$work/id.pub" "$root/root/.ssh/authorized_keys"
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/zfs/zpool.cache"
: > "$root/etc/machine-id"
echo '/dev/vda / ext4 noatime 0 0' > "$root/etc/fstab"
rm -f "$root/etc/resolv.conf" # debootstrap copied that of the machine it ran on
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
chroot "$root" systemctl -q enable ssh lab-identity lab-pools
chroot "$root" systemctl -q set-default multi-user.target
install -d "$root/etc/systemd/system-generators"
for generator in bless-boot cryptsetup debug getty gpt-auto hibernate-resume integritysetup rc-local run ssh \
    system-update tpm2 veritysetup; do
  ln -s /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done
mapfile -t masked < <(sed 's/#.*//; /^ *$/d' "$here/masked.txt")
chroot "$root" systemctl -q mask "${masked[@]}"

step "kernel and initrd"
# Only the root disk is needed before the real root: a small initrd unpacks in no time under emulation.
printf '%s\n' virtio_pci virtio_blk ext4 > "$root/etc/initramfs-tools/modules"
printf '%s\n' MODULES=list COMPRESS=lz4 > "$root/etc/initramfs-tools/conf.d/lab"
echo 'update_initramfs=yes' > "$root/etc/initramfs-tools/update-initramfs.conf"
mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT
chroot "$root" mkinitramfs -o /boot/initrd.img "$kernel"
umount "$root/proc"
trap - EXIT
mv "$root/boot/initrd.img" "$work/initrd.img"
cp "$root/boot/vmlinuz-$kernel" "$work/vmlinuz"

step "root file system"
# Nothing left to update: spares the first boot its caches of libraries, users and messages.
touch "$root/etc/.updated" "$root/var/.updated"
truncate -s 8G "$work/base.raw"
mke2fs -q -t ext4 -O ^metadata_csum -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" -F "$work/base.raw"
rm -rf --one-file-system "$root"
