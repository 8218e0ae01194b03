"""Where a point to be restored lies, and what it says of its guest: on this node or on a target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.app.gather import Inventory, visible_listing
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, ConfigError, VerificationError
from pve_zfsbackup.host.guests import unpack_config
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.restoring import own_properties
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Conflict, Dataset, GuestKind, Listing, Point, PointId, Vmid, decode_props
from pve_zfsbackup.model.restore import ASIDE, Origin
from pve_zfsbackup.plan.choice import choose_point, named
from pve_zfsbackup.plan.points import points_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """A point on a host, with the listing that has its datasets. `notes`: where it was sought in vain, and why."""

    host: str
    listing: Listing
    point: Point
    notes: tuple[str, ...] = ()


def find_origin(
    session: Session, found: Inventory, vmid: Vmid, *, at: str = "", where: str = "", abroad: bool = False
) -> Origin:
    """The point `find_point` finds, and what it says of its guest. Raises as that."""
    lying = find_point(session, found, vmid, at=at, where=where, abroad=abroad)
    return replace(origin_of(session.hosts[lying.host], lying.listing, lying.point), notes=lying.notes)


def find_point(
    session: Session, found: Inventory, vmid: Vmid, *, at: str = "", where: str = "", abroad: bool = False
) -> Lying:
    """The point `at` of a guest on the host `where`; without, the newest of all hosts that answer, from the nearest
    that has it: this node, then the targets in their order. A stale replica, or what was put aside here months ago,
    has complete points as well. `abroad` looks at the targets only, which another node reaches as well. Raises
    `ConfigError` where there is none, and what keeps a host that was named from answering."""
    if where and where not in (SOURCE, *session.config.targets):
        known = ", ".join((SOURCE, *session.config.targets, *session.config.boxes))
        raise ConfigError([f"no host or box named {where}"], hint=f"there are: {known}")
    misses = ["source: what lies on this node, no other node can read"] if abroad else []
    notes: list[str] = []
    lying: list[Lying] = []
    now = session.now().timestamp()
    for host in (where,) if where else (*(() if abroad else (SOURCE,)), *session.config.targets):
        try:
            listing = _listing(session, found, host)
        except BackupError as error:
            if where:
                raise
            misses.append(f"{host}: {error.message}")
            notes.append(f"{host} did not answer, and may have a newer point: {error.message}")
            continue
        chosen = choose_point(points_of(listing, vmid), at, session.timezone, now=now)
        if isinstance(chosen, Point):
            lying.append(Lying(host=host, listing=listing, point=chosen))
            if named(at):  # it is the same wherever it lies
                return lying[0]
        elif chosen.kind == "not-understood":
            raise ConfigError([chosen.message], hint=chosen.resolve)
        else:
            misses.append(f"{host}: {_told(chosen)}")
    best = choose_point([one.point for one in lying], at, session.timezone, now=now)
    if isinstance(best, Point):
        nearest = next(one for one in lying if one.point.id == best.id)
        return replace(nearest, notes=(*notes, *_aside(nearest.point)))
    raise ConfigError([f"guest {vmid}: no point to restore", *misses], hint=f"see `pve-zfsbackup list {vmid}`")


def _aside(point: Point) -> Iterator[str]:
    """That nothing newer is known than what lost its place here is worth a look before it is taken."""
    if held := sorted({one.dataset for one in point.snapshots.values() if f"/{ASIDE}/" in one.dataset}):
        yield f"the point lies in what was put aside here: {', '.join(held)}"


def _told(conflict: Conflict) -> str:
    return f"{conflict.message} ({conflict.object})"


def _listing(session: Session, found: Inventory, host: str) -> Listing:
    if host != SOURCE:
        return visible_listing(session, host)
    aside = list_aside(session, found)
    return replace(found.listing, volumes={**aside.volumes, **found.listing.volumes})


def list_aside(session: Session, found: Inventory) -> Listing:
    """What restores and rollbacks have put aside on this node, with its snapshots."""
    roots = [Dataset(f"{root}/{ASIDE}") for root in sorted(found.listing.roots)]
    return list_host(session.hosts[SOURCE], roots, columns=SOURCE_COLUMNS)


def origin_of(host: Host, listing: Listing, point: Point) -> Origin:
    """What the snapshots of a point say of its guest. `listing` has the datasets they lie in."""
    snapshots = {key: point.snapshots[key] for key in point.disks}
    by_name = own_properties(host, tuple(snapshots.values()))
    own = {key: dict(by_name[snapshot.full_name]) for key, snapshot in snapshots.items()}
    for key, snapshot in snapshots.items():  # whose snapshot it was: on a target it says so itself
        own[key]["volume"] = snapshot.volume or listing.volumes[snapshot.dataset].guid
    telling = [own[key] for key in point.own if key in own]  # a borrowed one tells of its own point
    told = telling[0]
    return Origin(
        host=host.name,
        point=point,
        kind=_kind(point, told),
        texts=_texts(point, telling),
        props=decode_props(told.get("props", "")),
        raw=frozenset(key for key, s in snapshots.items() if _sealed(host.name, listing, s.dataset)),
        own=own,
    )


def unreadable(host: Host, points: Iterable[Point]) -> dict[PointId, str]:
    """Those of a guest's complete points that a restore would refuse for what they say of the guest, and why: read as
    a restore reads it. Raises what keeps it from asking."""
    complete = [point for point in points if point.complete]
    snapshots = {s.full_name: s for point in complete for key, s in point.own.items() if key in point.disks}
    by_name = own_properties(host, tuple(snapshots.values())) if snapshots else {}
    found = {}
    for point in complete:
        telling = [by_name[snapshot.full_name] for key, snapshot in point.own.items() if key in point.disks]
        try:
            if fault := _fault(point, telling):
                found[point.id] = fault
        except VerificationError as error:
            found[point.id] = error.message.removeprefix(f"point {point.id} ")
    return found


def _fault(point: Point, telling: Sequence[Mapping[str, str]]) -> str:
    """Raises `VerificationError` as `origin_of`."""
    if not telling or not _texts(point, telling).get("conf"):
        return "does not carry the guest's configuration"
    _kind(point, telling[0])
    lost = any(own.get("props") and not decode_props(own["props"]) for own in telling)
    return "what a restore must set on its disks (props) cannot be read" if lost else ""


def _kind(point: Point, own: Mapping[str, str]) -> GuestKind:
    text = own.get("guest", "").partition("/")[0]
    try:
        return GuestKind(text)
    except ValueError:
        raise VerificationError(f"point {point.id} does not say what kind of guest it is of: {text!r}") from None


def _texts(point: Point, all_: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The guest's configuration: every disk carries it, and all say the same."""
    packed = {tuple(own[key] for key in ("conf", "conf2", "conf3", "conf4") if key in own) for own in all_}
    if len(packed) > 1:
        raise VerificationError(f"point {point.id}: its disks do not say the same of the guest's configuration")
    chunks = next(iter(packed))
    return unpack_config(chunks) if chunks else {}


def _sealed(host: str, listing: Listing, dataset: Dataset) -> bool:
    """Whether a disk travels raw: encrypted, but for one that a target encrypts with a key of its own."""
    volume = listing.volumes[dataset]
    parent = listing.volumes.get(Dataset(dataset.rpartition("/")[0]))
    own_key = host != SOURCE and parent is not None and parent.encrypted and volume.keystatus == "available"
    return volume.encrypted and not own_key
