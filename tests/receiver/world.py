"""A target in memory for `maintain` and `check`: the project's fake ZFS behind `ask`."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pve_zfsbackup import receiver
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.receiver import Keeper, Report, Root, Site, Told
from tests.fakes.pools import Clock, Ds, Package, Partial, Pools, Snap
from tests.fakes.streams import Receiver
from tests.fakes.zfs import FakeZfs
from tests.receiver.conftest import ROOT

HOUR, DAY = 3600, 86400
TAG = "pve-zfsbackup"
NOTHING: Mapping[int, int] = {}
ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name  # requests come from whoever runs the tests


@dataclass(slots=True)
class World:
    """One pool `tank` with ROOT, its clock, and what was asked of it."""

    place: Path
    pools: Pools = field(default_factory=lambda: Pools("target", Clock()))
    asked: list[tuple[str, ...]] = field(default_factory=list)
    before: Callable[[tuple[str, ...]], None] = lambda words: None  # something else happens right before a command
    refuse: dict[str, str] = field(default_factory=dict)  # verb -> what it says instead of doing it

    def __post_init__(self) -> None:
        self.pools.pool("tank")
        for name in ("tank/backups", ROOT, f"{ROOT}/local-zfs"):
            self.pools.add(name)
        (self.place / "state" / "spool").mkdir(parents=True)

    @property
    def site(self) -> Site:
        return Site(
            state=str(self.place / "state"),
            kstat=str(self.place / "kstat"),
            bin=("/nowhere",),
            locks=str(self.place / "run"),
        )

    @property
    def now(self) -> int:
        return self.pools.clock.now

    def ask(
        self, site: Site, *words: str, timeout: float | None = None, hear: bool = False, program: str = "zfs"
    ) -> Told:
        """Stands in for `receiver.ask`."""
        self.asked.append(words if program == "zfs" else (program, *words))
        self.before(self.asked[-1])
        verb = words[0] if program == "zfs" else f"{program} {words[0]}"
        if verb in self.refuse:
            return Told(1, "", self.refuse[verb])
        done = self._run(words) if program == "zfs" else self.pools.zpool((program, *words))
        return Told(done.returncode, done.stdout, done.stderr)

    def _run(self, words: tuple[str, ...]) -> Completed:
        argv = ("zfs", *words)
        match words:
            case ["receive", "-A", "--", _]:
                return Receiver(self.pools).abort(argv)
            case ["holds", "-H", *names]:
                found = [(name, tag) for name in names for tag in sorted(self.pools.get(name).holds)]
                text = "".join(f"{name}\t{tag}\tWed Nov 18 11:06 2026\n" for name, tag in found)
                return Completed(argv=argv, returncode=0, stdout=text, stderr="")
            case ["get", "-Hp", "-o", columns, properties, "--", *names]:
                found_all = [
                    FakeZfs(self.pools).run(("zfs", "get", "-Hp", "-o", columns, one, "--", *names))
                    for one in properties.split(",")
                ]
                out, err = ("".join(getattr(one, stream) for one in found_all) for stream in ("stdout", "stderr"))
                status = max(one.returncode for one in found_all)
                return Completed(argv=argv, returncode=status, stdout=out, stderr=err)
        return FakeZfs(self.pools).run(argv)

    def did(self, *verbs: str) -> list[tuple[str, ...]]:
        return [words for words in self.asked if words[0] in verbs]

    # -- what is there

    def disk(self, vmid: int, number: int = 0, suffix: str = "") -> Ds:
        name = f"{ROOT}/local-zfs/vm-{vmid}-disk-{number}{suffix}"
        return self.pools.datasets.get(name) or self.pools.add(name, zvol=True)

    def point(
        self, vmid: int, age: float, *, disks: int = 1, present: int | None = None, same: Mapping[int, int] = NOTHING
    ) -> str:
        """A marked point of that age in seconds; of its disks only the first `present` have arrived. `same`: number
        of a disk and guid of the older snapshot that stands for it."""
        creation = int(self.now - age)
        stamp = f"{datetime.fromtimestamp(creation, UTC):%Y%m%dT%H%M%SZ}-{vmid % 0xFFFF:04x}"
        listed = ",".join(
            f"scsi{n}=local-zfs:vm-{vmid}-disk-{n}#{vmid}{n}" + (f"@{same[n]}" if n in same else "")
            for n in range(disks)
        )
        for number in range(disks if present is None else present):
            dataset = self.disk(vmid, number)
            made = self.pools.freeze(dataset, f"pzb:{stamp}", self.pools.txg(dataset.name), {})
            made.creation = creation
            made.props = {
                "pve-zfsbackup:point": f"{vmid}/{stamp}",
                "pve-zfsbackup:disks": listed,
                "pve-zfsbackup:volume": f"{vmid}{number}",
            }
        return f"{vmid}/{stamp}"

    def days(self, vmid: int, *ages: float, **more: int) -> list[str]:
        """Points of these ages in days, oldest first."""
        return [self.point(vmid, age * DAY, **more) for age in sorted(ages, reverse=True)]

    def interrupted(self, vmid: int, number: int = 0) -> Ds:
        """A receive that stopped on top of the newest snapshot there."""
        dataset = self.disk(vmid, number)
        base = dataset.newest.guid if dataset.newest else 0
        package = Package(
            origin="rpool/x@pzb:20261118T110640Z-aaaa", guid=1, creation=1, content=(), refer=1, base=base
        )
        dataset.partial = Partial(package=package, done=100)
        return dataset

    def snaps(self, vmid: int, number: int = 0) -> list[Snap]:
        return sorted(self.disk(vmid, number).snaps.values(), key=lambda snap: snap.createtxg)

    def points(self) -> list[str]:
        """Ids of the points of which anything is left."""
        found = {
            snap.props["pve-zfsbackup:point"]
            for dataset in self.pools.datasets.values()
            for snap in dataset.snaps.values()
            if "pve-zfsbackup:point" in snap.props
        }
        return sorted(found, key=lambda point: point.partition("/")[2])

    # -- the program

    def keeper(self, **more: object) -> Keeper:
        known = receiver.remembered(self.site)
        return Keeper(site=self.site, now=float(self.now), dry=bool(more.get("dry")), partials=dict(known.partials))

    def maintain(self, **policy: object) -> Report:
        """One run over ROOT; a policy that keeps the newest point, of everything else the tests' own."""
        return self.keeper().root(root(**policy))


def root(**policy: object) -> Root:
    given: dict[str, object] = {
        "account": ACCOUNT, "keep_last": 1, "minimum_age": 0.0, "minimum_count": 1, "max_share": 100, **policy,
    }  # fmt: skip
    return Root(name=ROOT, **given)  # type: ignore[arg-type]
