"""A guest's configuration as a point carries it, made to fit the guest that is made of it (pve-facts §b, §i).

Pure text to text: what Proxmox's own restore strips goes, disks get the volumes they were restored to, and a copy gets
addresses and identities of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import GuestKind, Vmid
from pve_zfsbackup.plan.discovery import disk_keys
from pve_zfsbackup.plan.properties import parse_properties
from pve_zfsbackup.plan.volumes import owner_of_volume

# Proxmox writes them itself, or they tell of snapshots and tasks that the restored guest does not have.
_STRIPPED: Final = re.compile(
    r"(?:lock|parent|vmstate|snaptime|snapstate|runningmachine|runningcpu|running-nets-host-mtu|digest|unused[0-9]+)\Z"
)
_WAITING: Final = re.compile(r"(?:PENDING|pve:pending|special:.*)\Z")  # sections that are no snapshot
_LINE: Final = re.compile(r"([a-z][a-z0-9_.-]*):\s*(.*?)\s*\Z", re.IGNORECASE)
_MAC: Final = re.compile(r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
PREFIX: Final = "BC:24:11"  # of network cards Proxmox makes since version 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What a new guest is told apart by. `seed` are random bytes, `copy`: its original may still be there.

    A new generation of the machine (`vmgenid`) tells its system that time was turned back: always new, but for `0`.
    """

    seed: bytes
    copy: bool

    def mac(self, key: str) -> str:
        digest = hashlib.sha256(self.seed + b"mac" + key.encode()).hexdigest().upper()
        return f"{PREFIX}:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"

    def uuid(self, key: str) -> str:
        """A random UUID, version 4 of RFC 4122."""
        d = hashlib.sha256(self.seed + b"uuid" + key.encode()).hexdigest()
        return f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{'89ab'[int(d[16], 16) % 4]}{d[17:20]}-{d[20:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """The new configuration, and what a person should know of the changes."""

    text: str
    notes: tuple[str, ...] = ()


def lines_of(text: str) -> Iterator[tuple[str, str, str]]:
    """Each line as it is, with key and value; both empty for the description and for what is no setting."""
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.match(line)
        yield (line, match[1], match[2]) if match else (line, "", "")


def settings(text: str) -> dict[str, str]:
    """The settings of a configuration's current section."""
    return {key: value for _, key, value in lines_of(_parts(text)[0]) if key}


def _parts(text: str) -> list[str]:
    """The current section, and each behind it with its heading: no line of a description starts with a bracket."""
    return re.split(r"^(?=\[)", text, flags=re.MULTILINE)


def _heading(part: str) -> str:
    return part[1:].partition("]")[0]


def guest_snapshots(text: str) -> list[str]:
    """Proxmox's own snapshots of the guest, by name."""
    return [name for part in _parts(text)[1:] if not _WAITING.match(name := _heading(part))]


def volume_in(kind: GuestKind, value: str) -> str:
    """The volume a drive or mount point names; empty when that is not understood."""
    try:
        values = parse_properties(value, default="file" if kind is GuestKind.VM else "volume", alias="volume")
    except ValueError:
        return ""
    return values.get("file", "") or values.get("volume", "")


def rewrite(
    kind: GuestKind, text: str, *, vmid: Vmid, volids: Mapping[str, str], kept: Set[str], fresh: Fresh
) -> Rewritten:
    """The configuration `text` for the guest `vmid` with the restored disks `volids` (key to volid).

    `kept` are volumes the guest has now and may keep where the point has no disk of its own under that key (a drive
    with `backup=0`, cloud-init); a volume that neither was restored nor is kept would be another guest's, or nobody's.
    """
    done: list[str] = []
    notes: list[str] = []
    own = set(disk_keys(kind, settings(text)))
    for line, key, value in lines_of(text):
        if not key:
            done.append(line)
        elif _STRIPPED.match(key):
            continue
        elif key in volids:
            done.append(f"{key}: {with_volume(value, volids[key])}")
        elif key in own and (volume := volume_in(kind, value)) not in kept and owner_of_volume(volume) is not None:
            notes.append(f"{key}: {volume} is not part of the point, and left out of the configuration")
        else:
            done += _fitted(kind, key, value, fresh, notes)
    named = settings("\n".join(done))
    done += [f"{key}: {volid}" for key, volid in sorted(volids.items()) if key not in named]
    return Rewritten(text="\n".join(done).rstrip("\n") + "\n", notes=tuple(notes))


def exchange(kind: GuestKind, text: str, volids: Mapping[str, str], origin: str) -> Rewritten:
    """The configuration file `text` as it is, with other volumes for some disks; a disk that it does not have any more
    gets its line of the configuration `origin`. Proxmox's snapshots stay, unless one is of a disk that is exchanged:
    it could be neither rolled back to nor removed, and the others stand on it. A pending change of such a disk would
    undo what is asked for."""
    current, *behind = _parts(text)
    was, have, notes = settings(origin), settings(current), []
    lost = {volume_in(kind, have.get(key, "")) for key in volids} - {"", *volids.values()}
    snapshots = guest_snapshots(text)
    left_out = {name for part in behind if _names(kind, part, lost) and (name := _heading(part)) in snapshots}
    if left_out:
        notes.append(snapshots_lost(snapshots))
        left_out = set(snapshots)
    for part in behind:
        name = _heading(part)
        if name not in snapshots and (_names(kind, part, lost) or _changes(part) & volids.keys()):
            notes.append(f"pending changes of the configuration ([{name}]) are of a disk that is exchanged: left out")
            left_out.add(name)
    done = []
    for line, key, value in lines_of(current):
        if key != "parent" or not left_out.intersection(snapshots):
            done.append(f"{key}: {with_volume(value, volids[key])}" if key in volids else line)
    done += [f"{key}: {with_volume(was.get(key, ''), volids[key])}" for key in sorted(volids.keys() - have.keys())]
    kept = "".join(part for part in behind if _heading(part) not in left_out)
    made = "\n".join(done).rstrip("\n") + "\n" + (f"\n{kept.rstrip()}\n" if kept else "")
    return Rewritten(text=made, notes=tuple(notes))


def snapshots_lost(names: Sequence[str]) -> str:
    """What is said before Proxmox's snapshots of a guest lose their place in its configuration."""
    told = ", ".join(names)
    return f"Proxmox's snapshots of the guest ({told}) are left out of its configuration: their disks are put aside"


def _names(kind: GuestKind, part: str, volumes: Set[str]) -> bool:
    return any(volume_in(kind, value) in volumes for _, key, value in lines_of(part) if key)


def _changes(part: str) -> set[str]:
    """The settings that pending changes are of, those they delete included."""
    found = {key: value for _, key, value in lines_of(part) if key}
    return {*found, *re.findall(r"[a-z]+[0-9]*", found.get("delete", ""))}


def with_volume(value: str, volid: str) -> str:
    """A drive's settings with another volume, everything else as it was."""
    parts = [part for part in value.split(",") if part]
    for at, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if not equals:
            parts[at] = volid
            return ",".join(parts)
        if key in ("file", "volume"):
            parts[at] = f"{key}={volid}"
            return ",".join(parts)
    return ",".join([volid, *parts])


def _fitted(kind: GuestKind, key: str, value: str, fresh: Fresh, notes: list[str]) -> list[str]:
    """One setting of another kind, as the new guest has it."""
    if key == "vmgenid" and value != "0":
        return [f"{key}: {fresh.uuid(key)}"]
    if not fresh.copy:
        return [f"{key}: {value}"]
    if re.fullmatch(r"net[0-9]+", key):
        return [f"{key}: {_MAC.sub(fresh.mac(key), value)}"]
    if key == "smbios1":
        return [f"{key}: {_UUID.sub(fresh.uuid(key), value)}"]
    if key == "onboot":
        notes.append("onboot is left out: a copy does not start by itself beside its original")
        return []
    return [f"{key}: {value}"]


def with_lock(text: str, lock: str) -> str:
    """The whole file with a lock in its current section."""
    head, bracket, rest = without_lock(text).partition("\n[")
    return head.rstrip("\n") + f"\nlock: {lock}\n" + (bracket + rest if bracket else "")


def without_lock(text: str) -> str:
    """The whole file without a lock in its current section; the sections of snapshots stay as they are."""
    head, bracket, rest = text.partition("\n[")
    lines = [line for line in head.split("\n") if not re.match(r"lock:", line)]
    return "\n".join(lines) + bracket + rest
