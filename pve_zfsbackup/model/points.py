"""Recovery points: what they are made of, how they were taken, what is kept."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pve_zfsbackup.model.names import Guid, PointId, Vmid
from pve_zfsbackup.model.proof import Proof, decode_proof
from pve_zfsbackup.model.zfs import RESTORE_PROPS, UNKNOWN, Snapshot

SKEW: Final = 3600  # seconds by which clocks may differ; what is newer is from the future: a clock was set back
PROPS_LIMIT: Final = 8000  # a user property's value ends at 8,192 bytes
_PROPS_UNPACKED: Final = 1 << 20
_DEFLATED: Final = "z:"


class Consistency(StrEnum):
    """How a point was taken. Only `QUIESCED` was frozen by the guest from before to after the snapshot; of a `FROZEN`
    container the processes stood still, but nobody asked them to put their files in order."""

    QUIESCED = "quiesced"
    FROZEN = "frozen"
    OFFLINE = "offline"  # the guest was not running
    CRASH = "crash-consistent"


class Quiesce(StrEnum):
    PREFER = "prefer"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A recovery point as found on one host: one guest at one instant.

    `disks` are those the point was made of; `snapshots` what there is of them here. Complete means all of them are.
    The keys in `borrowed` have the snapshot of an older point, which is the same to the byte (`skip-unchanged`): it
    is needed to restore this one, and it is the older one's to be destroyed. `own` leaves them out.
    `gone` are disks whose dataset no longer exists on the source: nothing failed, an administrator removed it.
    A snapshot that fits no disk (never seen but after tampering) stands under its dataset's name.
    """

    id: PointId
    vmid: Vmid
    creation: int
    consistency: str
    disks: Mapping[str, str]  # key -> volid
    snapshots: Mapping[str, Snapshot]  # key -> snapshot
    gone: frozenset[str] = frozenset()
    borrowed: frozenset[str] = frozenset()

    @property
    def own(self) -> Mapping[str, Snapshot]:
        """The snapshots that are this point's alone."""
        if not self.borrowed:
            return self.snapshots
        return {key: snapshot for key, snapshot in self.snapshots.items() if key not in self.borrowed}

    @property
    def window(self) -> int:
        """Milliseconds the guest stood still for it; 0 when it did not, or it is not known."""
        return max((snapshot.window for snapshot in self.snapshots.values()), default=0)

    @property
    def complete(self) -> bool:
        return bool(self.disks) and self.disks.keys() <= self.snapshots.keys()

    @property
    def proof(self) -> Proof | None:
        """How far it is proven on its host: as far as all its own snapshots say, and since the last of them. What it
        borrows tells of another point."""
        own = self.own.values()
        for snapshot in own:
            if snapshot.verified:
                break
        else:
            return None  # nearly all
        proofs = [decode_proof(snapshot.verified) for snapshot in own]
        known = [proof for proof in proofs if proof is not None]
        if not known or len(known) < len(proofs) or not self.complete:
            return None
        weakest = min(known, key=lambda proof: proof.level.rank)
        return Proof(level=weakest.level, at=max(proof.at for proof in known))

    @property
    def stamp(self) -> str:
        return self.id.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointDisk:
    """A disk of a point: the key in the guest's configuration, its volid and its source dataset's guid then.

    `same`: on a target, guid of an older snapshot of this disk with the same content, where that was not sent again.
    """

    key: str
    volid: str
    guid: Guid
    same: Guid = UNKNOWN


def encode_disks(disks: Iterable[PointDisk]) -> str:
    """The value of the `disks` property: `scsi0=local-zfs:vm-100-disk-0#17,scsi1=fast:vm-100-disk-0#23`.

    All disks of a point carry the same value (one `zfs snapshot -o`); the guid after `#` tells which is which,
    also after a rename, and one after `@` the snapshot that stands for it. None of `,=#@` occurs in keys or in volids
    of ZFS storages.
    """
    return ",".join(
        f"{disk.key}={disk.volid}#{disk.guid}" + (f"@{disk.same}" if disk.same else "")
        for disk in sorted(disks, key=lambda disk: disk.key)
    )


def decode_disks(text: str) -> tuple[PointDisk, ...]:
    """The disks of a point, in the order of the text; what cannot be read is left out."""
    found = []
    for item in text.split(","):
        key, _, rest = item.partition("=")
        volid, _, guids = rest.rpartition("#")
        guid, _, same = guids.partition("@")
        if key and volid:
            found.append(PointDisk(key=key, volid=volid, guid=Guid(guid), same=Guid(same)))
    return tuple(found)


def encode_props(disks: Mapping[str, Mapping[str, str]]) -> str:
    """The value of the property `props`: JSON in ASCII, deflated where it would not fit; empty if nothing helps.

    `disks` has for each key what a restore must set on that disk (RESTORE_PROPS, TUNING_PROPS); all disks of a point
    carry it all.
    """
    needed = {key: {name: own[name] for name in RESTORE_PROPS if name in own} for key, own in disks.items()}
    for wanted in (disks, needed):  # rather without what was tuned (TUNING_PROPS) than with nothing
        known = {key: dict(own) for key, own in wanted.items() if own}
        text = json.dumps(known, separators=(",", ":"), sort_keys=True) if known else ""
        if len(text) > PROPS_LIMIT:
            text = _DEFLATED + base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
        if len(text) <= PROPS_LIMIT:
            return text
    return ""


def decode_props(text: str) -> dict[str, dict[str, str]]:
    """What `encode_props` made; nothing where that cannot be read: a target is not trusted."""
    try:
        if text.startswith(_DEFLATED):
            packed = base64.b64decode(text.removeprefix(_DEFLATED), validate=True)
            text = zlib.decompressobj().decompress(packed, _PROPS_UNPACKED).decode("ascii")
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError, zlib.error):
        return {}
    if not isinstance(found, dict) or not all(isinstance(own, dict) for own in found.values()):
        return {}
    return {key: {name: str(value) for name, value in own.items()} for key, own in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Proxmox's `keep-*` (pve-facts; same meaning). All zero keeps everything.

    The help texts are here because the configuration's reference is made from them.
    """

    last: int = field(default=0, metadata={"help": "the newest N points"})
    hourly: int = field(default=0, metadata={"help": "the newest point of each of the last N hours that have one"})
    daily: int = field(default=0, metadata={"help": "the newest point of each of the last N days that have one"})
    weekly: int = field(default=0, metadata={"help": "the newest point of each of the last N weeks that have one"})
    monthly: int = field(default=0, metadata={"help": "the newest point of each of the last N months that have one"})
    yearly: int = field(default=0, metadata={"help": "the newest point of each of the last N years that have one"})

    @property
    def everything(self) -> bool:
        return not (self.last or self.hourly or self.daily or self.weekly or self.monthly or self.yearly)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What retention decided about one point on one host, and why. `reasons` is never empty."""

    host: str
    point: Point
    keep: bool
    reasons: tuple[str, ...]
