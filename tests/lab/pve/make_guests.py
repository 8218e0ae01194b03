#!/usr/bin/python3 -I
"""Make the lab's storages and guests on pve1, each disk a real dataset with known content. Repeatable.

usage: make_guests.py      Existing datasets and configuration files stay as they are.
"""

import hashlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
MARKER = "PVE-ZFSBACKUP-PLAINTEXT-MARKER-9f2c41d7"
"""Stands in vm 101's encrypted disk thousands of times and must never reach a target in the clear."""
ETC = Path("/etc/pve")
KEY = ETC / "priv" / "crypt.key"

STORAGE = """dir: local
\tpath /var/lib/vz
\tcontent backup,images,vztmpl,rootdir,snippets,iso
\tprune-backups keep-all=1

zfspool: local-zfs
\tpool rpool/data
\tcontent images,rootdir
\tmountpoint /rpool/data
\tsparse 1

zfspool: fast
\tpool fast
\tcontent images,rootdir
\tmountpoint /fast
\tsparse 1

zfspool: crypt
\tpool rpool/crypt
\tcontent images,rootdir
\tmountpoint /rpool/crypt
\tsparse 1

"""


@dataclass(frozen=True)
class Disk:
    """A volume to make. `fill`: ext4 (with known.bin), raw (known bytes), marker (ext4 full of MARKER), empty."""

    dataset: str
    mib: int
    fill: str = "ext4"


ZVOLS = (
    Disk("rpool/data/vm-100-disk-0", 256), Disk("fast/vm-100-disk-0", 128),
    Disk("rpool/crypt/vm-101-disk-0", 128, "marker"),
    Disk("rpool/data/base-102-disk-0", 64),
    Disk("rpool/data/vm-104-cloudinit", 4, "raw"), Disk("rpool/data/vm-104-disk-0", 128),
    Disk("rpool/data/vm-104-disk-1", 64), Disk("rpool/data/vm-104-disk-2", 64, "raw"),
    Disk("rpool/data/vm-104-disk-3", 64, "raw"), Disk("rpool/data/vm-104-state-foo", 64, "raw"),
    Disk("rpool/data/vm-105-disk-0", 1, "raw"), Disk("rpool/data/vm-105-disk-1", 4, "raw"),
    Disk("rpool/data/vm-105-disk-2", 128),
    Disk("rpool/data/vm-106-disk-0", 64),
)
SUBVOLS = {"rpool/data/subvol-200-disk-0": 128, "rpool/data/subvol-200-disk-1": 64, "rpool/data/subvol-200-disk-2": 64}


def zfs(*argv: str) -> str:
    """Run `zfs`."""
    return subprocess.run(("zfs", *argv), check=True, capture_output=True, text=True).stdout


def existing() -> set[str]:
    """All dataset and snapshot names."""
    return set(zfs("list", "-H", "-o", "name", "-t", "all").split())


def known(name: str, size: int) -> bytes:
    """The known content of a disk: the same bytes for the same name and size, without zeros to compress."""
    seed = hashlib.sha256(name.encode()).digest()
    return b"".join(hashlib.sha256(seed + n.to_bytes(4, "big")).digest() for n in range(size // 32))


def link(dataset: str) -> str:
    """The zvol's device link, which comes late."""
    path = f"/dev/zvol/{dataset}"
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise FileNotFoundError(path)
        time.sleep(0.05)
    return path


def fill(disk: Disk) -> None:
    """Give a fresh zvol its content."""
    device = link(disk.dataset)
    if disk.fill == "raw":
        with open(device, "r+b") as out:
            out.write(known(disk.dataset, min(disk.mib, 4) * MIB))
        return
    subprocess.run(("mkfs.ext4", "-q", "-E", "nodiscard", "-L", f"d{disk.mib}", device), check=True)
    point = Path("/run/pvesim/fill")
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(("mount", device, str(point)), check=True)
    try:
        (point / "known.bin").write_bytes(known(disk.dataset, 2 * MIB))
        (point / "name.txt").write_text(disk.dataset + "\n")
        if disk.fill == "marker":
            (point / "marker.txt").write_text(f"{MARKER}\n" * 50_000)
    finally:
        subprocess.run(("umount", str(point)), check=True)


def make_volumes(present: set[str]) -> None:
    """Encrypted parent, zvols, subvols, template snapshot and linked clone."""
    if "rpool/crypt" not in present:
        KEY.parent.mkdir(parents=True, exist_ok=True)
        KEY.write_bytes(hashlib.sha256(b"the lab's key").digest())
        KEY.chmod(0o600)
        zfs("create", "-o", "encryption=aes-256-gcm", "-o", "keyformat=raw", "-o", f"keylocation=file://{KEY}",
            "rpool/crypt")
    fresh = [disk for disk in ZVOLS if disk.dataset not in present]
    for disk in fresh:
        zfs("create", "-s", "-V", f"{disk.mib * 1024}k", disk.dataset)
    for disk in fresh:
        fill(disk)
    for dataset, mib in SUBVOLS.items():
        if dataset not in present:
            zfs("create", "-o", "acltype=posixacl", "-o", "xattr=sa", "-o", f"refquota={mib * 1024}k", dataset)
            (Path("/") / dataset / "known.bin").write_bytes(known(dataset, 2 * MIB))
    if "rpool/data/base-102-disk-0@__base__" not in present:
        zfs("snapshot", "rpool/data/base-102-disk-0@__base__")
    if "rpool/data/vm-103-disk-0" not in present:
        zfs("clone", "rpool/data/base-102-disk-0@__base__", "rpool/data/vm-103-disk-0")
    for dataset in ("rpool/data/vm-104-disk-0@foo", "rpool/data/vm-104-disk-1@foo"):
        if dataset not in present:
            zfs("snapshot", dataset)


def make_files() -> None:
    """The directory storage, the bind mount, firewall, pools."""
    image = Path("/var/lib/vz/images/106/vm-106-disk-0.qcow2")
    iso = Path("/var/lib/vz/template/iso/debian.iso")
    for path, data in ((image, qcow2(32 * MIB)), (iso, known("iso", MIB)),
                       (Path("/srv/share/known.bin"), known("share", MIB)),
                       (ETC / "firewall" / "100.fw", FIREWALL.encode()),
                       (ETC / "storage.cfg", STORAGE.encode()),
                       (ETC / "user.cfg", b"user:root@pam:1:0::::::\n\n\npool:production:lab:100:local-zfs:\n")):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def qcow2(size: int) -> bytes:
    """An empty qcow2 image (version 2): header, one refcount table and block, an empty L1 table."""
    cluster = 65536
    fields = (0x514649FB, 2), (0, 8), (0, 4), (16, 4), (size, 8), (0, 4), (1, 4), (3 * cluster, 8), (cluster, 8), (
        1, 4), (0, 4), (0, 8)
    head = b"QFI\xfb" + (2).to_bytes(4, "big") + b"".join(n.to_bytes(width, "big") for n, width in fields[1:])
    table = (2 * cluster).to_bytes(8, "big").ljust(cluster, b"\0")
    block = ((1).to_bytes(2, "big") * 4).ljust(cluster, b"\0")
    return head.ljust(cluster, b"\0") + table + block + bytes(cluster)


FIREWALL = """[OPTIONS]
enable: 1

[RULES]
IN SSH(ACCEPT) -i net0
"""


def make_configs() -> None:
    """The guests' configuration files, taken from confs/ beside this script."""
    node = os.uname().nodename
    for name, place in (("local", ""), ("qemu-server", "/qemu-server"), ("lxc", "/lxc")):
        (ETC / "nodes" / node / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if not (ETC / name).is_symlink():
            (ETC / name).symlink_to(f"nodes/{node}{place}")
    for source in sorted(Path(__file__).with_name("confs").glob("*.conf")):
        folder = "lxc" if int(source.stem) >= 200 else "qemu-server"
        target = ETC / folder / source.name
        if not target.exists():
            target.write_text(source.read_text())
    marker = Path("/run/lxc/200.running")
    marker.parent.mkdir(exist_ok=True)
    marker.touch()


if __name__ == "__main__":
    make_files()
    make_volumes(existing())
    make_configs()
