"""A guest made of a point in a box, on a node that has lost it or beside the one it has."""

from __future__ import annotations

import syslog
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.restore import Request, Restored, carry_out, plan_of
from pve_zfsbackup.app.restore_box import boxed
from pve_zfsbackup.app.session import Session
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
