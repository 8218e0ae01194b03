"""Small guests of a row's own: one disk or two, with content the lab knows; stopped, or running with an agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Host
from tests.lab.pve.provision import guest_root, start_guest

STALLS = Path(__file__).with_name("stalls.py")

_STORAGES = {"local-zfs": "rpool/data", "fast": "fast", "crypt": "rpool/crypt", "keys": "rpool/keys-lab"}
_ZVOL = r"""
size=$1; dataset=$2; shift 2
zfs create -s -V "${size}M" "$@" "$dataset"
for i in $(seq 300); do [ -b "/dev/zvol/$dataset" ] && exit 0; sleep 0.1; done
echo "no device for $dataset" >&2; exit 1
"""
_WRITE = r"""
mib=$1; at=$2; dataset=$3
if [ "$(zfs get -H -o value type "$dataset")" = volume ]; then
  head -c "${mib}M" /dev/urandom | dd of="/dev/zvol/$dataset" bs=1M seek="$at" conv=notrunc,fsync status=none
else
  head -c "${mib}M" /dev/urandom > "/$dataset/data-$at"
fi
zpool sync "${dataset%%/*}"
"""
_SUM = r"""
for dataset; do
  if [ "$(zfs get -H -o value type "$dataset")" = volume ]; then
    for i in $(seq 300); do [ -b "/dev/zvol/$dataset" ] && break; sleep 0.1; done
    sum=$(b2sum < "/dev/zvol/$dataset")
  else
    sum=$(tar --sort=name --numeric-owner --xattrs --acls -C "/$dataset" -cf - . | b2sum)
  fi
  echo "${sum%% *} $dataset"
done
"""
# What the writers of a running guest (pve/guestd.py) need, and something beside them that nobody changes.
_EXT4 = r"""
mkfs.ext4 -q -E nodiscard "/dev/zvol/$1"
mkdir -p /run/matrix/fill; mount "/dev/zvol/$1" /run/matrix/fill
head -c 2M /dev/urandom > /run/matrix/fill/data-0
umount /run/matrix/fill
zpool sync "${1%%/*}"
"""
_WRITE_INSIDE = r"""
head -c "${2}M" /dev/urandom > "$1/data-$3"
sync "$1/data-$3"
"""
_WATCH = r"""
systemctl stop "matrix-stalls-$1" 2> /dev/null || :
rm -f "/run/matrix/$1.stalls"
systemd-run -q --collect --unit "matrix-stalls-$1" python3 -IS "$2" "$1" "/run/matrix/$1.stalls"
for i in $(seq 100); do [ -s "/run/matrix/$1.stalls" ] && exit 0; sleep 0.1; done
exit 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest and its datasets on pve1. One that is `running` has an ext4 and a writer on each of its first disks."""

    vmid: int
    disks: tuple[str, ...]
    volids: tuple[str, ...]
    running: bool = False

    @property
    def disk(self) -> str:
        return self.disks[0]

    def replica(self, root: str, number: int = 0) -> str:
        """Where the product puts the replica of a disk."""
        return f"{root}/{self.volids[number].replace(':', '/')}"


def make(
    host: Host, vmid: int, *, storages: tuple[str, ...] = ("local-zfs",), mib: int = 24, options: tuple[str, ...] = ()
) -> Guest:
    """A stopped VM with a zvol on each storage, 2 MiB of each written."""
    disks = tuple(f"{_STORAGES.get(storage, storage)}/vm-{vmid}-disk-{n}" for n, storage in enumerate(storages))
    volids = tuple(f"{storage}:vm-{vmid}-disk-{n}" for n, storage in enumerate(storages))
    guest = Guest(vmid=vmid, disks=disks, volids=volids)
    for dataset in disks:
        host.script(_ZVOL, str(mib), dataset, *options)
        write(host, dataset, 2)
    configure(host, guest, mib)
    return guest


def make_running(
    host: Host, vmid: int, *, storages: tuple[str, ...] = ("local-zfs",), mib: int = 32, thick: bool = False
) -> Guest:
    """A running VM with an agent. `thick`: its disks have their room reserved, so that it lives on a full pool.

    From its start on it is watched how long its writers stand still (`stalled`).
    """
    disks = tuple(f"{_STORAGES.get(storage, storage)}/vm-{vmid}-disk-{n}" for n, storage in enumerate(storages))
    volids = tuple(f"{storage}:vm-{vmid}-disk-{n}" for n, storage in enumerate(storages))
    guest = Guest(vmid=vmid, disks=disks, volids=volids, running=True)
    for dataset in disks:
        host.script(_ZVOL, str(mib), dataset)
        host.run(("zfs", "set", f"refreservation={'auto' if thick else 'none'}", dataset))
        host.script(_EXT4, dataset)
    configure(host, guest, mib)
    start_guest(host, vmid)
    host.wait_for(("sh", "-c", 'test -s "$1" && test -S "$2"', "sh",
                   f"/run/pvesim/{vmid}-scsi0.progress", f"/run/qemu-server/{vmid}.qga"))  # fmt: skip
    watch(host, vmid)
    return guest


def make_container(host: Host, vmid: int, *, mib: int = 64) -> Guest:
    """A stopped container with one file system."""
    name = f"subvol-{vmid}-disk-0"
    dataset = f"rpool/data/{name}"
    guest = Guest(vmid=vmid, disks=(dataset,), volids=(f"local-zfs:{name}",))
    host.run(("zfs", "create", "-o", "acltype=posixacl", "-o", "xattr=sa", "-o", f"refquota={mib}M", dataset))
    write(host, dataset, 2)
    text = f"arch: amd64\nhostname: matrix\nmemory: 64\nostype: debian\nrootfs: local-zfs:{name},size={mib}M\n"
    host.write(f"/etc/pve/lxc/{vmid}.conf", text, mode=0o640)
    return guest


def configure(host: Host, guest: Guest, mib: int = 24) -> None:
    """Write the guest's configuration file."""
    lines = [f"scsi{n}: {volid},size={mib}M" for n, volid in enumerate(guest.volids)]
    lines += ["agent: 1"] if guest.running else []
    text = "\n".join(["boot: order=scsi0", "cores: 1", "memory: 64", "name: matrix", "ostype: l26", *lines])
    host.write(f"/etc/pve/qemu-server/{guest.vmid}.conf", text + "\n", mode=0o640)


def write(host: Host, dataset: str, mib: int, *, at: int = 0) -> None:
    """Incompressible bytes at a place (MiB) of the disk, on disk when this returns."""
    host.script(_WRITE, str(mib), str(at), dataset)


def write_inside(host: Host, guest: Guest, mib: int, *, at: int = 0) -> None:
    """The same as a running guest does it: a file in each of its file systems, on disk when this returns."""
    for number in range(len(guest.disks)):
        host.script(_WRITE_INSIDE, guest_root(host, guest.vmid, f"scsi{number}"), str(mib), str(at))


def inside(host: Host, guest: Guest) -> dict[str, str]:
    """The files of a running guest that its own writers leave alone, by disk; disks without a file system are out."""
    text = 'for d; do [ ! -d "$d" ] || { cat "$d"/data-* | b2sum | cut -d" " -f1; }; done'
    places = [guest_root(host, guest.vmid, f"scsi{number}") for number in range(len(guest.disks))]
    return dict(zip(guest.disks, host.script(text, *places).lines, strict=False))


def watch(host: Host, vmid: int) -> None:
    """Look after a running guest's writers from now on; what was before is forgotten."""
    host.put(STALLS, "/run/matrix/stalls.py")
    host.script(_WATCH, str(vmid), "/run/matrix/stalls.py")


def stalled(host: Host, vmid: int) -> float:
    """The longest time (seconds) that one of the guest's writers stood still since it is watched."""
    lines = host.script('systemctl -q is-active "matrix-stalls-$1"; cat "/run/matrix/$1.stalls"', str(vmid)).lines
    return max(float(line.split()[1]) for line in lines)


def contents(host: Host, datasets: tuple[str, ...]) -> dict[str, str]:
    """What the guests would read now."""
    lines = host.script(_SUM, *datasets).lines
    return {name: digest for digest, name in (line.split(" ", 1) for line in lines)}


def remove(host: Host, vmid: int) -> None:
    """What `qm destroy` does."""
    host.script(
        'systemctl stop "pve-guest@$1" "matrix-stalls-$1" 2> /dev/null || :\n'
        'rm -f "/run/pvesim/$1.agent" "/run/pvesim/$1.slow" "/run/pvesim/$1"-*.progress "/run/matrix/$1.stalls"\n'
        'rm -f "/etc/pve/qemu-server/$1.conf" "/etc/pve/lxc/$1.conf"\n'
        'zfs list -H -o name -t filesystem,volume | grep -E "/(vm|subvol)-$1-disk" | while read -r name; do\n'
        '  for i in $(seq 50); do zfs destroy -r "$name" && break; sleep 0.2; done\n'
        "done", str(vmid),
    )  # fmt: skip
