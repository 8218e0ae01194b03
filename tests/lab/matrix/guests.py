"""Small guests of a row's own: stopped, one disk or two, with content the lab knows."""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.host import Host

_STORAGES = {"local-zfs": "rpool/data", "fast": "fast", "crypt": "rpool/crypt"}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest and its datasets on pve1."""

    vmid: int
    disks: tuple[str, ...]
    volids: tuple[str, ...]

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
    text = "\n".join(["boot: order=scsi0", "cores: 1", "memory: 64", "name: matrix", "ostype: l26", *lines])
    host.write(f"/etc/pve/qemu-server/{guest.vmid}.conf", text + "\n", mode=0o640)


def write(host: Host, dataset: str, mib: int, *, at: int = 0) -> None:
    """Incompressible bytes at a place (MiB) of the disk, on disk when this returns."""
    host.script(_WRITE, str(mib), str(at), dataset)


def contents(host: Host, datasets: tuple[str, ...]) -> dict[str, str]:
    """What the guests would read now."""
    lines = host.script(_SUM, *datasets).lines
    return {name: digest for digest, name in (line.split(" ", 1) for line in lines)}


def remove(host: Host, vmid: int) -> None:
    """What `qm destroy` does."""
    host.script(
        'rm -f "/etc/pve/qemu-server/$1.conf" "/etc/pve/lxc/$1.conf"\n'
        'zfs list -H -o name -t filesystem,volume | grep -E "/(vm|subvol)-$1-disk" | while read -r name; do\n'
        '  for i in $(seq 50); do zfs destroy -r "$name" && break; sleep 0.2; done\n'
        "done", str(vmid),
    )  # fmt: skip
