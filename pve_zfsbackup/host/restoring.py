"""What a restore does to datasets besides receiving: makes places, renames, clones. Nothing is ever overwritten.

Datasets are known by guid; the only ones destroyed here are places of ours that have become empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pve_zfsbackup.errors import DatasetNotFoundError, VerificationError, ZfsError
from pve_zfsbackup.host.listing import LIST_TIMEOUT
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs import current_guids, set_properties, zfs
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PROPERTY, Dataset, Guid, Snapshot
from pve_zfsbackup.model.aside import ASIDE_MARK, PutAside, aside_mark, read_aside

# No `readonly` and no `volmode`: a disk received below inherits them, and its device is renamed with it.
_PLACE = {"mountpoint": "none", "canmount": "off"}
OWN = ("point", "disks", "guest", "consistency", "window", "volume", "props", "conf", "conf2", "conf3", "conf4")


def make_place(host: Host, dataset: Dataset, properties: Mapping[str, str] | None = None) -> None:
    """A dataset that others lie in, never mounted; one that exists is left as it is."""
    options = [part for key, value in (_PLACE | dict(properties or {})).items() for part in ("-o", f"{key}={value}")]
    done = host.run(("zfs", "create", *options, "--", dataset), check=False)
    if done.returncode and "dataset already exists" not in done.stderr:
        raise classified(done)


def remove_place(host: Host, dataset: Dataset, work: str) -> None:
    """Destroy a place of this work; what is not empty, or not of this work, stays. Gone is what was wanted."""
    done = host.run(("zfs", "get", "-Hp", "-o", "value", f"{PROPERTY}restore", "--", dataset), check=False)
    if done.returncode and "dataset does not exist" in done.stderr:
        return
    if done.stdout.strip() != work:
        raise VerificationError(f"{dataset} is not of the restore {work}, and stays")
    zfs(host, "destroy", dataset)


def rename(host: Host, dataset: Dataset, guid: Guid, to: Dataset) -> None:
    """Give a dataset another name after checking its guid. Raises when there is one of that name already."""
    _require(host, dataset, guid)
    zfs(host, "rename", dataset, to)


def put_aside(host: Host, dataset: Dataset, guid: Guid, to: Dataset, *, by: str, at: int) -> None:
    """Rename what loses its place, with all its snapshots, after checking its guid; its mark tells of it from then on.
    `to` is `<storage>/pzb-aside/<vmid>/<name>`, of which the places are made."""
    _require(host, dataset, guid)
    folder = Dataset(to.rpartition("/")[0])
    for name in (Dataset(folder.rpartition("/")[0]), folder):
        make_place(host, name)
    set_properties(host, [dataset], {ASIDE_MARK: aside_mark(guid, at, by)})
    rename(host, dataset, guid, to)


def list_put_aside(host: Host, roots: Sequence[Dataset]) -> tuple[PutAside, ...]:
    """What was put aside below these datasets, which exist, and is ours by its mark."""
    if not roots:
        return ()
    columns = f"name,guid,used,{ASIDE_MARK}"
    done = zfs(host, "list", "-Hp", "-r", "-t", "filesystem,volume", "-o", columns, "--", *roots)
    rows = (line.split("\t") for line in done.stdout.splitlines())  # a value may be anything
    found = (read_aside(Dataset(row[0]), Guid(row[1]), int(row[2]), row[3]) for row in rows if _is_row(row))
    return tuple(one for one in found if one)


def _is_row(cells: Sequence[str]) -> bool:
    return len(cells) == 4 and cells[2].isdecimal()


def _require(host: Host, dataset: Dataset, guid: Guid) -> None:
    found = current_guids(host, [dataset]).get(dataset)
    if found != guid:
        raise VerificationError(f"{dataset}: guid is {found or 'gone'}, planned was {guid}: it is left alone")


def clone(host: Host, snapshot: Snapshot, to: Dataset, properties: Mapping[str, str] | None = None) -> None:
    """A writable dataset that begins as the snapshot, after checking its guid."""
    found = current_guids(host, [snapshot.full_name]).get(snapshot.full_name)
    if found != snapshot.guid:
        raise VerificationError(f"{snapshot.full_name}: guid is {found or 'gone'}, planned was {snapshot.guid}")
    options = [part for key, value in (properties or {}).items() for part in ("-o", f"{key}={value}")]
    zfs(host, "clone", *options, snapshot.full_name, to)


def promote(host: Host, dataset: Dataset) -> None:
    """The clone takes over the history up to the snapshot it was made of; its origin becomes the clone."""
    zfs(host, "promote", dataset)


def own_properties(host: Host, snapshots: Sequence[Snapshot]) -> dict[str, dict[str, str]]:
    """All our properties of each snapshot by its full name, by `zfs list`: that is what an append-only target answers.

    Raises `DatasetNotFoundError` when one of them is gone.
    """
    columns = ",".join(("name", "guid", *(PROPERTY + name for name in OWN)))
    datasets = sorted({snapshot.dataset for snapshot in snapshots})
    argv = ("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", columns, "--", *datasets)
    done = host.run(argv, check=False, timeout=LIST_TIMEOUT)
    if done.returncode:
        raise classified(done)
    wanted = {(snapshot.full_name, snapshot.guid) for snapshot in snapshots}
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        name, guid, *values = line.split("\t")
        if len(values) != len(OWN):
            raise ZfsError(f"{host.name}: the answer of zfs is not understood: {line[:200]}")
        if (name, guid) in wanted:
            found[name] = {key: value for key, value in zip(OWN, values, strict=True) if value not in ("", "-")}
    for snapshot in snapshots:
        if snapshot.full_name not in found:
            raise DatasetNotFoundError(f"{snapshot.full_name}: is gone from {host.name}")
    return found


def inherit_key(host: Host, dataset: Dataset, storage: Dataset) -> str:
    """Make a disk that was received raw use the key of the storage it lies in, where that is the same key.

    Received raw, it is an encryption root of its own with the key it was sent with. Returns what is left for a person
    to do; empty when nothing is.
    """
    own, above = (_key_facts(host, name) for name in (dataset, storage))
    if own["encryptionroot"] != dataset:
        return ""
    root, location = above["encryptionroot"], ""
    if root != "-":
        location = _key_facts(host, Dataset(root))["keylocation"]
    if own["keystatus"] != "available" and location.startswith("file://"):
        loaded = host.run(("zfs", "load-key", "-L", location, dataset), check=False)
        own["keystatus"] = "available" if loaded.returncode == 0 else own["keystatus"]
    if own["keystatus"] != "available":
        return f"is encrypted ({own['keyformat']}) and its key is not loaded: zfs load-key NAME" + (
            ", then zfs change-key -i NAME, so that it uses the key of its storage" if root != "-" else ""
        )
    if root == "-":
        return (
            "is encrypted with a key of its own, in a storage that is not: load it after each boot (zfs load-key NAME)"
        )
    zfs(host, "change-key", "-i", dataset)
    return ""


def _key_facts(host: Host, dataset: Dataset) -> dict[str, str]:
    names = "encryptionroot,keylocation,keystatus,keyformat"
    done = zfs(host, "get", "-Hp", "-o", "property,value", names, "--", dataset)
    pairs = (line.partition("\t") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}
