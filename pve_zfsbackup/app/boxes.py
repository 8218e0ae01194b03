"""What lies in the boxes of this node's guests, for `list`, `status` and `check`. Nothing is changed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.app.archive_damage import with_damage
from pve_zfsbackup.app.archive_write import unfinished
from pve_zfsbackup.app.box import Proof, Vault, open_box, require_keys
from pve_zfsbackup.app.catalog import Catalog, read_catalog
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.model import PointId, Vmid
from pve_zfsbackup.model.archive import Archived


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPoint:
    """A point in a box. `sound` while nothing is known against it and what it builds on; `base` is the point it is an
    increment to; `proof` how deep it was read back."""

    archived: Archived
    sound: bool
    base: PointId | None = None
    proof: Proof | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxContent:
    """All that this node wrote into one box, oldest first, and what is wrong there."""

    points: Mapping[Vmid, tuple[BoxPoint, ...]]
    problems: tuple[str, ...] = ()

    def between(self, since: float, until: float) -> BoxContent:
        """The same with only the points created from `since` to `until`, in seconds since the epoch."""
        points = {
            vmid: tuple(point for point in own if since <= point.archived.creation <= until)
            for vmid, own in self.points.items()
        }
        return replace(self, points=points)


def own_catalog(vault: Vault) -> Catalog:
    """What this node wrote there, opened by its catalog key, and damage that is known of it: nothing is built upon
    that. Raises `ConfigError` where a key is missing."""
    require_keys(vault)
    found = read_catalog(vault, identity=vault.box.catalog_key_file, own=True, unfinished=unfinished(vault))
    return with_damage(found, vault.damaged())


def box_contents(session: Session, names: Sequence[str]) -> tuple[dict[str, BoxContent], dict[str, BackupError]]:
    """The content of those boxes that answered, and the errors of those that did not."""
    found: dict[str, BoxContent] = {}
    errors: dict[str, BackupError] = {}
    for name in names:
        try:
            vault = open_box(session.config, name, session.runner, session.programs)
            catalog = own_catalog(vault)
            if catalog.all_problems:
                catalog = own_catalog(vault)  # a run may have been removing points while we looked
            found[name] = _content(catalog, vault.proven())
        except BackupError as error:
            errors[name] = error
    return found, errors


def _content(catalog: Catalog, proofs: Mapping[str, Proof]) -> BoxContent:
    points: dict[Vmid, list[BoxPoint]] = {}
    for shelf in catalog.shelves:
        names = {archived.name: archived for archived in shelf.archived}
        sound: set[str] = set()
        for content in shelf.contents:  # oldest first: what a point builds on was judged before
            archived = content.archived
            if archived is None:
                continue
            if not shelf.series.stale and not content.problems and archived.parent in {"", *sound}:
                sound.add(archived.name)
            base = names.get(archived.parent)
            points.setdefault(archived.vmid, []).append(
                BoxPoint(
                    archived=archived,
                    sound=archived.name in sound,
                    base=base.point if base else None,
                    proof=proofs.get(archived.name),
                )
            )
    ordered = {vmid: tuple(sorted(own, key=lambda p: p.archived.creation)) for vmid, own in sorted(points.items())}
    return BoxContent(points=ordered, problems=catalog.all_problems)
