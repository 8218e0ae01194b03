"""What one looks for after a loss is shown, and a mistyped host is no empty history."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import history
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import parse_selector
from pve_zfsbackup.report.points import points_json
from tests.fakes.world import DB, TARGET, WEB, World


def listed(world: World, *words: str) -> set[tuple[int, str]]:
    with world.session() as session:
        found = history(session, Scope(guests=tuple(map(parse_selector, words))))
    return {(point["vmid"], point["host"]) for point in points_json(found)["points"]}


def test_the_points_of_a_guest_that_was_destroyed_are_listed(world: World) -> None:
    world.run()
    world.node.remove(DB)
    world.source.drop("rpool/crypt/vm-101-disk-0")
    assert (DB, TARGET) in listed(world)
    assert listed(world, "101") == {(DB, TARGET)}
    assert listed(world, "101", "100") == {(DB, TARGET), (WEB, TARGET), (WEB, "source")}
    assert (DB, TARGET) not in listed(world, "100")
    with world.session() as session:
        found = history(session, Scope(guests=(parse_selector("101"),)))
    assert found.notes == ("101 is no guest of this node any more: its points stay",)
    with pytest.raises(ConfigError, match="999: no such guest"):
        listed(world, "101", "999")


def test_a_mistyped_host_is_no_empty_history(world: World) -> None:
    world.run()
    with world.session() as session, pytest.raises(ConfigError, match="no host or box named bakcup1"):
        history(session, Scope(), only="bakcup1")
