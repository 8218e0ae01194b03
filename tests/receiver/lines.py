"""Command lines of the wire contract, as a source writes them."""

from __future__ import annotations

import struct

from tests.receiver.conftest import ROOT

STAMP = "20261123T180000Z-ab12"
DISK = f"{ROOT}/local-zfs/vm-100-disk-0"
OTHER = f"{ROOT}/local-zfs/vm-100-disk-1"
SNAPSHOT = f"{DISK}@pzb:{STAMP}"
COLUMNS = "type,name,guid,createtxg,creation,used,referenced,userrefs,clones,receive_resume_token,pve-zfsbackup:point"
CREATE = "zfs create -o readonly=on -o mountpoint=none -o canmount=off -o volmode=none -o snapdir=hidden --"
SET = (
    f"zfs set pve-zfsbackup:point=100/{STAMP} 'pve-zfsbackup:disks=scsi0=local-zfs:vm-100-disk-0#17' "
    "pve-zfsbackup:guest=qemu/pve1 'pve-zfsbackup:consistency=crash-consistent: the guest'\"'\"'s agent said (\\n)' "
    f"pve-zfsbackup:conf=eJy_-= pve-zfsbackup:conf2=abc= pve-zfsbackup:volume=17 {SNAPSHOT}"
)
LIST = f"zfs list -Hp -r -t all -o {COLUMNS} -- {ROOT}"
GREP = "grep -vx SUSPENDED /proc/spl/kstat/zfs/tank/state"
RECEIVE = f"zfs receive -s -u -- {DISK}"
GUIDS = f"zfs list -Hp -d 1 -t snapshot -o name,guid -- {DISK} {OTHER}"
ABORT = f"zfs receive -A -- {DISK}"
STATUS = "zpool status -p -- tank"
ZPOOL = "zpool get -Hp -o property,value all -- tank"
SEND = f"zfs send -L -c -- {SNAPSHOT}"
RAW = f"zfs send -w -- {SNAPSHOT}"
OLDER = f"{DISK}@pzb:20261122T180000Z-ab11"
TOKEN = "1-e604ea4bf-e0-789c636064000310a501c49c50360710a715e5e7a69766a63040417b735e"
RESUME = f"zfs send -t {TOKEN}"
ALLOWED = (
    "hello",
    "zfs version",
    ZPOOL,
    STATUS,
    GREP,
    LIST,
    f"{GREP} && {LIST}",
    GUIDS,
    f"{CREATE} {ROOT}/local-zfs",
    f"{CREATE} {ROOT}",
    RECEIVE,
    f"{RECEIVE} && zfs receive -s -u -- {OTHER}",
    f"zstd -dqc | {RECEIVE}",
    f"mbuffer -q -s 128k -m 64M | {RECEIVE}",
    f"zstd -dqc | mbuffer -q -s 128k -m 64M | {{ {RECEIVE}; }}",
    f"zstd -dqc | mbuffer -q -s 128k -m 64M | {{ {RECEIVE} && zfs receive -s -u -- {OTHER}; }}",
    SET,
    f"{SET} {OTHER}@pzb:{STAMP}",
    ABORT,
    SEND,
    RAW,
    f"zfs send -w -i {OLDER} -- {SNAPSHOT}",
    f"zfs send -L -c -i {OLDER} -- {SNAPSHOT}",
    RESUME,
)
# How `zfs send` begins: of one snapshot, and of a package (`-R`, `-p`, `-I`).
STREAM = struct.pack("=IIQQ", 0, 0, 0x2F5BACBAC, 0x4 << 2 | 1) + b" the rest of a stream"
PACKAGE = struct.pack("=IIQQ", 0, 4096, 0x2F5BACBAC, 0x4 << 2 | 2) + b" the rest of a package"
