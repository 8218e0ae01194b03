"""SIGKILL at every point of the freeze window, with agents well and ill: the guest is thawed within 30 s, always.

Its file systems are really frozen meanwhile: writers in the guest wait. One agent alone: `-k slow`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.product import Product
from tests.lab.pve.provision import FreezeState, freeze_state, set_slow_freeze, thaw

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
VMID = 100
SLOW = 14  # seconds: more than the job's limit of 10
MOST = 30.0  # seconds that a guest may stand still (reliability N1)
HELD = {"normal": 8.0, "slow": 3.0, "hung": 8.0, "dead": 8.0}
"""Seconds that a guest that was killed frozen stands still at least: 20 s after it was armed the watchdog thaws."""


@pytest.fixture
def killer(product: Product) -> Iterator[Product]:
    for name in ("killer.py", "freeze_killer.py"):
        product.pve1.put(HERE / name, f"/root/{name}")
    yield product
    set_slow_freeze(product.pve1, VMID, 0)
    thaw(product.pve1, VMID)


def attempts(product: Product, agent: str) -> list[dict[str, Any]]:
    command = ("python3", "/root/freeze_killer.py", agent, str(VMID), "snapshot", str(VMID))
    done = product.pve1.run(command, check=False, timeout=3000)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.lines]


@pytest.mark.parametrize("agent", list(HELD))
def test_killed_anywhere_in_the_freeze_the_guest_thaws(killer: Product, agent: str) -> None:
    host = killer.pve1
    set_slow_freeze(host, VMID, SLOW if agent == "slow" else 0)
    *killed, last = attempts(killer, agent)
    assert last["code"] == 0, "an attempt that nothing killed is whole, whatever its agent does"
    assert all(row["thawed"] is not None for row in (*killed, last))
    assert all(stalled <= MOST for row in (*killed, last) for stalled in row["stalled"].values())

    before = [place(row) for row in killed]
    assert [spot for spot in before if spot in ("arm", "freeze")] == ["arm", "freeze"]
    assert {"snapshot", "thaw", "disarm", "after"} <= set(before)
    assert ("amid" in before) == (agent == "slow")
    if agent == "slow":
        (caught,) = (row for row in killed if place(row) == "amid")
        frozen = [caught]
    else:  # killed when the guest was frozen, and before it was thawed
        frozen = [row for row in killed if place(row) in ("snapshot", "status", "thaw")]
        assert len(frozen) >= 4
    assert all(min(row["stalled"].values()) >= HELD[agent] for row in frozen), "both writers waited"

    set_slow_freeze(host, VMID, 0)
    assert freeze_state(host, VMID) == FreezeState(agent="thawed", blocked=False)
    assert killer.run("snapshot", str(VMID)).returncode == 0
    assert killer.points(VMID)[-1]["consistency"] == "quiesced"
    assert host.run(("find", "/var/lib/pve-zfsbackup/frozen", "-type", "f")).lines == [], "no marker"
    units = host.run(("systemctl", "list-units", "--all", "--no-legend", "pve-zfsbackup-thaw-*")).stdout
    assert units.strip() == "", "no watchdog"


def place(row: dict[str, Any]) -> str:
    """Where in the window a run was killed."""
    starts = {"amid ": "amid", "systemd-run": "arm", "zfs snapshot": "snapshot", "systemctl stop": "disarm"}
    ends = {"fsfreeze-freeze": "freeze", "fsfreeze-status": "status", "fsfreeze-thaw": "thaw"}
    found = [word for start, word in starts.items() if row["at"].startswith(start)]
    found += [word for end, word in ends.items() if row["at"].endswith(end)]
    return (*found, "after")[0]
