"""A point of a storage box as something a guest is made of: what its manifest tells, and how its disks are brought."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_restore import Choice, Restorer, choose, streams_of
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.box import open_box
from pve_zfsbackup.app.catalog import Catalog, read_catalog
from pve_zfsbackup.app.restore import Request
from pve_zfsbackup.app.restore_receive import Supply
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import ConfigError, VerificationError
from pve_zfsbackup.model import PROPERTY, SOURCE, Dataset, GuestKind, Point, Snapshot, Vmid, decode_disks, decode_props
from pve_zfsbackup.model.restore import DiskRestore, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxed:
    """The point, how to bring it, and what was found wrong with the box meanwhile."""

    origin: Origin
    supply: Supply
    problems: tuple[str, ...]


@contextlib.contextmanager
def boxed(
    session: Session, request: Request, identity: Path, *, older: bool, note: Callable[[str], None]
) -> Iterator[Boxed]:
    """Open the box and choose a point in it. Raises as `choose`, and what keeps the box from being read."""
    vault = open_box(session.config, request.where, session.runner, session.programs)
    catalog = read_catalog(vault, identity=identity)
    point = named_point(catalog, request.vmid, request.at, session.timezone)
    choice = choose(catalog, request.vmid, point, older=older)
    with vault.store.kept(), vault.scratch() as spool:
        reader = Reader(vault=vault, spool=spool, stamina=Stamina(seconds=vault.box.retry_hours * 3600))

        def supply(disk: DiskRestore) -> int:
            place = Dataset(disk.staging.rpartition("/")[0])
            restorer = Restorer(reader=reader, host=session.hosts[SOURCE], root=place, identity=identity, note=note)
            return restorer.into(choice, disk.key, disk.staging).bytes

        yield Boxed(origin=origin_of(request.where, choice), supply=supply, problems=tuple(catalog.all_problems))


def named_point(catalog: Catalog, vmid: Vmid, at: str, zone: tzinfo) -> str:
    """The point meant by `at`: its name, or the newest not after a time."""
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return at
    limit = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    archived = [one for shelf in catalog.shelves for one in shelf.archived if one.vmid == vmid]
    fitting = [(one.creation, one.point) for one in archived if one.creation <= limit]
    if not fitting:
        raise ConfigError([f"no point of {vmid} in the box is as old as {at}"])
    return max(fitting)[1]


def origin_of(box: str, choice: Choice) -> Origin:
    """The point as the planner of restores knows it. Raises `VerificationError` where the manifest does not say what
    kind of guest it is of."""
    inner = require_inner(choice.content)
    streams = {stream.key: stream for stream in inner.streams}
    own = {
        key: {name.removeprefix(PROPERTY): text for name, text in stream.point_properties.items()
              if name.startswith(PROPERTY)} | {"volume": stream.volume}
        for key, stream in streams.items()
    }  # fmt: skip
    told = next(iter(own.values()))
    try:
        kind = GuestKind(told.get("guest", "").partition("/")[0])
    except ValueError:
        raise VerificationError(f"{inner.guest_point} in {box} does not say what kind of guest it is of") from None
    snapshots = {
        key: Snapshot(
            dataset=Dataset(stream.dataset),
            name=stream.snapshot.rpartition("@")[2],
            guid=stream.to_guid,
            createtxg=0,
            creation=inner.creation,
            refer=sum(one.bytes for _, one in streams_of(choice, key)),
            point=inner.guest_point,
            volume=stream.volume,
        )
        for key, stream in streams.items()
    }
    disks = {disk.key: disk.volid for disk in decode_disks(told.get("disks", ""))}
    return Origin(
        host=box,
        point=Point(
            id=inner.guest_point,
            vmid=inner.vmid,
            creation=inner.creation,
            consistency=inner.consistency,
            disks={key: disks.get(key, stream.volid) for key, stream in streams.items()},
            snapshots=snapshots,
        ),
        kind=kind,
        texts=inner.config,
        props=decode_props(told.get("props", "")),
        raw=frozenset(key for key, stream in streams.items() if stream.raw),
        own=own,
    )
