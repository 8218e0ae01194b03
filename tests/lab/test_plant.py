"""Canaries in guests that run: planted through a real qemu-ga and into a container, and found, or missed, by drills."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pve_zfsbackup.model.canary import PATH, SETTLED, parse_canary, stamp
from tests.lab.host import Host
from tests.lab.product import Product, quick
from tests.lab.pve.provision import guest_root

VM, CT = 100, 200
ROOTFS = "/rpool/data/subvol-200-disk-0"
# What every container has, and the lab's lacks: a system, and a place for what programs know.
SYSTEM = 'mkdir -p "$1/etc" "$1/var/lib"; cp /usr/lib/os-release "$1/etc/os-release"'


@pytest.fixture(scope="module")
def product(product: Product) -> Iterator[Product]:
    product = quick(product)
    product.pve1.script(SYSTEM, ROOTFS)
    try:
        yield product
    finally:
        product.run("verify", "plant", "--forget", str(VM), str(CT))
        remove(product.pve1)


@pytest.fixture(scope="module")
def planted(product: Product) -> dict[int, int]:
    """When each canary says that it was planted."""
    assert plant(product) == {VM: "ok", CT: "ok"}
    found = {}
    for vmid in (VM, CT):
        canary = parse_canary(product.pve1.read(place(product.pve1, vmid)))
        assert canary is not None
        assert canary.vmid == vmid
        found[vmid] = canary.planted
    return found


def place(host: Host, vmid: int) -> str:
    """The canary's path on the host."""
    return (guest_root(host, vmid) if vmid == VM else ROOTFS) + PATH


def remove(host: Host) -> None:
    for vmid in (VM, CT):
        host.run(("rm", "-f", place(host, vmid)))


def plant(product: Product) -> dict[int, str]:
    found = product.json("verify", "plant", str(VM), str(CT), check=False)
    return {guest["vmid"]: guest["outcome"] for guest in found["guests"]}


def drilled(product: Product) -> dict[int, dict[str, Any]]:
    """A new point of both, and what a drill on the node finds in it."""
    product.run("snapshot", str(VM), str(CT))
    found = product.json("verify", "drill", str(VM), str(CT), check=False)
    assert found["failed"] == []
    return {end["vmid"]: end for end in found["drills"]}


def test_a_canary_takes_the_place_of_the_last_one_and_nothing_else(product: Product, planted: dict[int, int]) -> None:
    path = place(product.pve1, VM)
    before = product.pve1.read(path)
    assert plant(product) == {VM: "ok", CT: "ok"}
    assert product.pve1.read(path) != before
    ours = product.pve1.read(path)
    product.pve1.write(path, "somebody else's\n")
    try:
        found = product.json("verify", "plant", str(VM), check=False)
        assert "not ours: it stays" in found["guests"][0]["message"]
        assert product.pve1.read(path) == "somebody else's\n"
    finally:
        product.pve1.write(path, ours)


def test_a_drill_finds_the_canaries(product: Product, planted: dict[int, int]) -> None:
    found = drilled(product)
    assert set(found) == {VM, CT}
    for vmid, end in found.items():
        canary = parse_canary(product.pve1.read(place(product.pve1, vmid)))
        assert canary is not None
        assert (end["level"], end["problems"]) == ("files", [])
        assert [note for note in end["notes"] if note.startswith("canary: ")] == [
            f"canary: planted {stamp(canary.planted)}, 0 h before"
        ]


@pytest.mark.long  # until a canary must be on the disk of a guest that nobody freezes
def test_a_drill_misses_the_canaries_that_are_gone(product: Product, planted: dict[int, int]) -> None:
    last = {vmid: parse_canary(product.pve1.read(place(product.pve1, vmid))) for vmid in (VM, CT)}
    remove(product.pve1)
    now = int(product.pve1.run(("date", "+%s")).stdout)
    due = max(canary.planted for canary in last.values() if canary) + SETTLED + 1
    time.sleep(max(0, due - now))
    found = drilled(product)
    for vmid, canary in last.items():
        assert canary is not None
        assert found[vmid]["level"] == "failed"
        (problem,) = found[vmid]["problems"]
        assert problem.startswith(f"the canary planted at {stamp(canary.planted)} is not there: ")
    assert plant(product) == {VM: "ok", CT: "ok"}
    assert all(end["problems"] == [] for end in drilled(product).values()), "the new ones are found"
