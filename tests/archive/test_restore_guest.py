"""A guest made of a point in a box, on a node that has lost it or beside the one it has."""

from __future__ import annotations

import json
import syslog
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.restore import Request, Restored, carry_out, plan_of
from pve_zfsbackup.app.restore_box import boxed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.cli import cli
from pve_zfsbackup.cli import restore as cli_restore
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import Vmid
from tests.archive.worldly import Boxed
from tests.fakes.runner import HERE
from tests.fakes.world import WEB, World

pytestmark = pytest.mark.processes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    return made


@pytest.fixture
def box(world: World) -> Boxed:
    made = Boxed(world)
    for _ in range(3):
        made.run()
        world.write()
    return made


def restore(box: Boxed, vmid: int, **options: Any) -> Restored:
    request = Request(vmid=Vmid(vmid), where="box1", **options)
    with (
        box.session() as session,
        boxed(session, request, box.identity, older=False, note=print) as found,
    ):
        assert found.problems == ()
        prepared = plan_of(session, inventory(session), request.wish, found.origin)
        assert prepared.plan.conflicts == ()
        return carry_out(session, prepared, found.supply)


def test_a_lost_guest_comes_back_with_the_history_of_its_chain(box: Boxed) -> None:
    world = box.world
    names = [name for name in world.source.datasets if "-100-disk" in name]
    newest = {name: max(world.source.datasets[name].snaps.values(), key=lambda s: s.createtxg) for name in names}
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    for name in names:
        world.source.drop(name)
    world.node.remove(WEB)
    done = restore(box, WEB)
    assert done.moved > 0
    assert (world.node.etc / "qemu-server/100.conf").read_text() == text
    assert {name: world.source.datasets[name].content for name in names} == {n: s.content for n, s in newest.items()}
    assert world.complete(HERE, WEB)[-1] == done.plan.origin.point.id
    assert not [name for name in world.source.datasets if "pzb-restore" in name]


def test_a_copy_keeps_none_of_the_originals_points(box: Boxed) -> None:
    world = box.world
    restore(box, WEB, new=300)
    copies = [ds for name, ds in world.source.datasets.items() if "-300-disk" in name]
    assert len(copies) == 2
    assert all(ds.snaps == {} for ds in copies)
    assert (world.node.etc / "qemu-server/300.conf").exists()


# -- Below a dataset, with no guest made


@pytest.fixture
def below(box: Boxed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`restore --to rpool/back`, as it is typed; what it says in JSON."""
    box.world.source.add("rpool/back")
    monkeypatch.setattr(cli_restore, "vault_of", lambda *_: box.vault)
    place = box.world.place
    given = ["--from", "box1", "--to", "rpool/back", "--identity", str(box.identity), "--config-dir", str(place)]

    def run(*words: str) -> Any:
        words = ("restore", "100", *given, "--config", str(box.world.config), "--json", *words)
        assert cli.main([*words], standalone_mode=False) == 0
        return json.loads(capsys.readouterr().out)

    return run


def received(box: Boxed) -> list[str]:
    return [name for name in box.world.source.datasets if name.startswith("rpool/back/") and "disk" in name]


def test_below_a_dataset_a_dry_run_receives_nothing(box: Boxed, below: Callable[..., Any]) -> None:
    found = below("--dry-run")
    assert found["done"] is False
    told = {(disk["disk"], disk["received"]) for disk in found["disks"]}
    assert told == {("scsi0", 0), ("scsi1", 0)}
    assert found["files"] == []
    assert received(box) == []
    assert not list(box.world.place.glob("100.*"))
    assert below("--disk", "scsi1")["done"] is True
    assert received(box) == ["rpool/back/fast/vm-100-disk-0"], "the disk that was named, and no other"
    with pytest.raises(ConfigError, match="the point has no disk scsi7"):
        below("--disk", "scsi7", "--dry-run")


def test_below_a_dataset_a_time_names_the_newest_point_not_after_it(box: Boxed, below: Callable[..., Any]) -> None:
    points = box.points(WEB)
    times = {one.point: one.creation for shelf in box.catalog.shelves for one in shelf.archived}
    berlin = datetime.fromtimestamp(times[points[1]] + 60, ZoneInfo("Europe/Berlin")).strftime("%Y-%m-%dT%H:%M:%S")
    assert below("--dry-run", "--at", berlin)["point"] == points[1]
    assert below("--dry-run", "--at", points[0])["point"] == points[0]
    assert below("--dry-run")["point"] == points[-1]


@pytest.mark.parametrize(
    "words", [("--as", "300"), ("--replace", "100"), ("--storage", "fast"), ("--start",), ("--node", "pve2")]
)
def test_below_a_dataset_no_guest_is_made_and_what_is_for_guests_is_refused(
    box: Boxed, below: Callable[..., Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=f"--to makes no guest: {words[0]} cannot go with it"):
        below(*words)
    assert received(box) == []
