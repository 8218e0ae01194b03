"""The datasets on pve1: made, changed, snapshotted, looked at, and everything taken away again between two runs."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.contenders import OUR_TARGET, SOURCE, TARGET, Contender
from tests.lab.host import Host

FIRST = 1000  # vmid of the first guest
FILES = 10  # of each dataset; one of them is rewritten for "10 % changed"
FILE_KIB = 100
ZVOL_MIB = 1024

_MAKE = r"""
source=$1; shift
for name; do
  case $name in
    vm-*) zfs create -s -V "$SIZE" "$source/$name" ;;
    *) zfs create -o acltype=posixacl -o xattr=sa -o refquota=64M "$source/$name" ;;
  esac
done
"""
_FILL = r"""
import os, sys
kind, files, size, *paths = sys.argv[1:]
for path in paths:
    for number in range(int(files)):
        with open(f"{path}/{number}", "wb") as out:
            out.write(os.urandom(int(size) << 10))
"""
_GUESTS = r"""
import pathlib, sys
etc = pathlib.Path("/etc/pve")
for old in etc.glob("nodes/pve1/*/*.conf"):
    old.unlink()
for name in sys.argv[1:]:
    vmid = int(name.split("-")[1])
    if name.startswith("vm-"):
        text = f"boot: order=scsi0\ncores: 1\nmemory: 64\nname: g{vmid}\nscsi0: bench:{name},size=1G\n"
        (etc / "qemu-server" / f"{vmid}.conf").write_text(text)
    else:
        text = f"arch: amd64\ncores: 1\nhostname: g{vmid}\nmemory: 64\nostype: debian\n"
        (etc / "lxc" / f"{vmid}.conf").write_text(text + f"rootfs: bench:{name},size=64M\nswap: 0\nunprivileged: 1\n")
"""
_ZVOL = r"""
for i in $(seq 600); do [ -b "/dev/zvol/$1" ] && break; sleep 0.1; done
dd if=/dev/urandom of="/dev/zvol/$1" bs=1M count="$2" conv=fsync status=none
"""
# Snapshots all at once; bookmarks have to go one by one.
_FORGET = r"""
cat > /run/forget.lua <<'LUA'
args = ...
found = {}
for child in zfs.list.children(args["argv"][1]) do
  for snapshot in zfs.list.snapshots(child) do found[#found + 1] = snapshot end
end
for _, snapshot in ipairs(found) do
  failed = zfs.sync.destroy(snapshot)
  if failed ~= 0 then error(snapshot .. ": error " .. failed) end
end
LUA
zfs program -m 67108864 -t 100000000 "${1%%/*}" /run/forget.lua "$1" > /dev/null
zfs list -H -r -t snapshot -o name "$1" | xargs -r -n 1 zfs destroy
zfs list -H -r -t bookmark -o name "$1" | xargs -r -n 1 -P 2 zfs destroy
rm -rf /root/bzfs-logs /root/.bzfs /var/cache/sanoid
"""
_EMPTY = r"""
for root; do
  zfs list "$root" > /dev/null 2>&1 || zfs create -o mountpoint=none -o canmount=off "$root"
  zfs list -Hp -r -t snapshot -o userrefs,name "$root" | sed -n 's/^[1-9][0-9]*\t//p' |
    xargs -r zfs release pve-zfsbackup
  zfs list -H -r -d 1 -o name "$root" | tail -n +2 | xargs -r -n 1 zfs destroy -r
done
zpool wait -t free tank
zpool sync
"""
_SETTLE = r"""
pkill -x ssh || :
rm -f /run/bench-shared /run/bench-floor
zpool sync
sync
"""


def names(count: int, *, volume: bool = False) -> tuple[str, ...]:
    pattern = "vm-{}-disk-0" if volume else "subvol-{}-disk-0"
    return tuple(pattern.format(FIRST + number) for number in range(count))


def make(host: Host, wanted: tuple[str, ...]) -> None:
    """These datasets below SOURCE, filled with bytes that do not compress, and a guest for each; no others."""
    host.script(_FORGET, SOURCE)
    host.script('zfs list -H -r -d 1 -o name "$1" | tail -n +2 | xargs -r -n 1 zfs destroy -r', SOURCE, timeout=900)
    host.script(f"SIZE={ZVOL_MIB}M\n{_MAKE}", SOURCE, *wanted, timeout=900)
    if wanted[0].startswith("vm-"):
        host.script(_ZVOL, f"{SOURCE}/{wanted[0]}", str(ZVOL_MIB), timeout=900)
    else:
        _fill(host, FILES, wanted)
    host.run(("python3", "-I", "-", *wanted), input=_GUESTS)


def change(host: Host, wanted: tuple[str, ...]) -> None:
    """A tenth of every dataset's content."""
    _fill(host, 1, wanted)


def _fill(host: Host, files: int, wanted: tuple[str, ...]) -> None:
    paths = (f"/{SOURCE}/{name}" for name in wanted)
    host.run(("python3", "-I", "-", "fill", str(files), str(FILE_KIB), *paths), input=_FILL, timeout=900)
    host.run(("zpool", "sync"))


def snapshot(host: Host, wanted: tuple[str, ...], name: str) -> None:
    host.run(("zfs", "snapshot", *(f"{SOURCE}/{dataset}@{name}" for dataset in wanted)))


def forget(pve1: Host, backup1: Host) -> None:
    """Undo what a contender did on either side: snapshots, bookmarks, replicas, holds, caches, connections."""
    pve1.script(_FORGET, SOURCE, timeout=900)
    backup1.script(_EMPTY, TARGET, OUR_TARGET, timeout=900)


def settle(pve1: Host) -> None:
    """Before the clock starts: no connection left to profit from, nothing left to write."""
    pve1.script(_SETTLE)


def snapshots(host: Host, root: str) -> dict[str, list[tuple[str, str]]]:
    """Name and guid of every snapshot below, by dataset, in the order they were made; the parent's are no matter."""
    found: dict[str, list[tuple[str, str]]] = {}
    listed = ("zfs", "list", "-Hp", "-r", "-t", "snapshot", "-s", "createtxg", "-o", "name,guid", root)
    for line in host.run(listed).lines:
        full, guid = line.split("\t")
        dataset, _, name = full.partition("@")
        if dataset != root:
            found.setdefault(dataset, []).append((name, guid))
    return found


def replicated(pve1: Host, backup1: Host, contender: Contender, expected: int) -> Iterator[str]:
    """What is wrong: every dataset must have the same `expected` snapshots, by guid, on both sides."""
    here = {name: frozenset(guid for _, guid in own) for name, own in snapshots(pve1, SOURCE).items()}
    there = {name: frozenset(guid for _, guid in own) for name, own in snapshots(backup1, contender.target).items()}
    if wrong := [name for name, guids in here.items() if len(guids) != expected]:
        yield f"{len(wrong)} datasets of the source have not {expected} snapshots: {wrong[0]}"
    for name, guids in here.items():
        if guids not in there.values():
            yield f"{name}: no replica with the same guids"
    if len(there) != len(here):
        yield f"{len(there)} replicas of {len(here)} datasets"
