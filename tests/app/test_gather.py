"""What is there now: the API tells of the guests while ZFS lists their disks, and neither misses the other."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from pve_zfsbackup.app import gather
from pve_zfsbackup.app.gather import Inventory, inventory
from tests.fakes.runner import HERE, Ran
from tests.fakes.world import CT, DB, WEB, World

PATIENCE = 60.0  # seconds that a test waits for threads of a slow machine
NEW = 300
DISK = f"rpool/data/vm-{NEW}-disk-0"


def looked(world: World) -> Inventory:
    with world.session() as session:
        return inventory(session)


def test_zfs_lists_while_the_api_tells(world: World) -> None:
    listing = threading.Event()
    waited: list[bool] = []

    def coming(argv: tuple[str, ...]) -> None:
        if argv[:2] == ("zfs", "list"):
            listing.set()
        elif argv[:3] == ("pvesh", "get", "/nodes/pve1/qemu"):
            waited.append(listing.wait(PATIENCE))

    world.runner.coming = coming
    assert [guest.vmid for guest in looked(world).guests] == [WEB, DB, CT]
    assert waited == [True]
    assert len(world.runner.zfs(HERE, "list")) == 1


def test_a_guest_made_after_its_storage_was_listed_has_its_disk(world: World) -> None:
    listed = threading.Event()

    def watch(ran: Ran) -> None:
        if ran.argv[:2] == ("zfs", "list"):
            listed.set()

    def coming(argv: tuple[str, ...]) -> None:
        if argv[:3] == ("pvesh", "get", "/nodes/pve1/qemu"):
            assert listed.wait(PATIENCE)
            with world.runner._lock:  # the listing is done then
                world.source.add(DISK, zvol=True)
                world.node.define(NEW, f"cores: 1\nname: new\nscsi0: local-zfs:vm-{NEW}-disk-0,size=1G\n")

    world.runner.watchers.append(watch)
    world.runner.coming = coming
    found = looked(world)
    (new,) = (guest for guest in found.guests if guest.vmid == NEW)
    assert [(disk.dataset, disk.lost) for disk in new.disks] == [(DISK, False)]
    assert DISK in found.listing.volumes
    assert len(world.runner.zfs(HERE, "list")) == 2


def test_whoever_interrupts_does_not_wait_for_the_listing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(gather.pve_guests, "read_guests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        looked(world)
    assert world.runner.cancelled
