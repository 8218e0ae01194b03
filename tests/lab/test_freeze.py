"""SIGKILL at every point of the freeze window, with agents well and ill: the guest is thawed within 30 s, always.

Its file systems are really frozen meanwhile: writers in the guest wait. One agent alone: `-k slow`. Of a container all
processes are stopped, by the kernel's freezer: `-k container`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.product import CONFIG_TEXT, Product
from tests.lab.pve.provision import (
    FreezeState,
    freeze_state,
    set_slow_freeze,
    start_container,
    stop_container,
    thaw,
)

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
VMID, CT = 100, 200
PLACES = {"rootfs": "/rpool/data/subvol-200-disk-0", "mp0": "/rpool/data/subvol-200-disk-1"}
FREEZING = "/etc/pve-zfsbackup/freezing.yaml"
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


@pytest.fixture
def container(killer: Product) -> Iterator[Product]:
    """Container 200 with a writer in each of its protected file systems, and a job that freezes containers."""
    start_container(killer.pve1, CT, PLACES)
    killer.configure(CONFIG_TEXT + "    container-freeze: yes\n", FREEZING)
    yield killer
    stop_container(killer.pve1, CT, PLACES)


def attempts(product: Product, agent: str, *arguments: str) -> list[dict[str, Any]]:
    command = ("python3", "/root/freeze_killer.py", agent, arguments[1], *arguments)
    done = product.pve1.run(command, check=False, timeout=3000)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.lines]


def thawed(product: Product, rows: list[dict[str, Any]]) -> None:
    """After each attempt in time, and nothing of them is left. The last one ran to its end."""
    assert rows[-1]["code"] == 0, "an attempt that nothing killed is whole, whatever its agent does"
    assert all(row["thawed"] is not None for row in rows)
    assert all(stalled <= MOST for row in rows for stalled in row["stalled"].values())
    assert product.pve1.run(("find", "/var/lib/pve-zfsbackup/frozen", "-type", "f")).lines == [], "no marker"
    units = product.pve1.run(("systemctl", "list-units", "--all", "--no-legend", "pve-zfsbackup-thaw-*")).stdout
    assert units.strip() == "", "no watchdog"


@pytest.mark.parametrize("agent", list(HELD))
def test_killed_anywhere_in_the_freeze_the_guest_thaws(killer: Product, agent: str) -> None:
    host = killer.pve1
    set_slow_freeze(host, VMID, SLOW if agent == "slow" else 0)
    *killed, last = attempts(killer, agent, "snapshot", str(VMID))
    thawed(killer, [*killed, last])
    before = [place(row) for row in killed]
    assert [spot for spot in before if spot in ("arm", "freeze")] == ["arm", "freeze"]
    assert {"snapshot", "thaw"} <= set(before)
    if agent == "normal":  # with the others the number of tries to thaw varies, and a kill may hit none of these
        assert {"disarm", "after"} <= set(before)
    assert ("amid" in before) == (agent == "slow")
    if agent == "slow":
        frozen = [row for row in killed if place(row) == "amid"]
    else:  # killed when the guest was frozen, and before it was thawed
        frozen = [row for row in killed if place(row) in ("snapshot", "status", "thaw")]
        assert {"snapshot", "thaw"} <= {place(row) for row in frozen}
    assert all(min(row["stalled"].values()) >= HELD[agent] for row in frozen), "both writers waited"

    set_slow_freeze(host, VMID, 0)
    assert freeze_state(host, VMID) == FreezeState(agent="thawed", blocked=False)
    assert killer.run("snapshot", str(VMID)).returncode == 0
    assert killer.points(VMID)[-1]["consistency"] == "quiesced"


def test_killed_anywhere_while_a_container_stands_still_it_goes_on(container: Product) -> None:
    """`lxc-freeze` is the lab's here, and the freezer behind it the kernel's: both writers stop, and go on."""
    *killed, last = attempts(container, "normal", "snapshot", str(CT), "--config", FREEZING)
    thawed(container, [*killed, last])
    before = [place(row) for row in killed]
    assert [spot for spot in before if spot in ("arm", "freeze")] == ["arm", "freeze"]
    frozen = [row for row in killed[before.index("freeze") + 1 :] if place(row) in ("snapshot", "status", "thaw")]
    assert {"snapshot", "thaw"} <= {place(row) for row in frozen}
    held = [row for row in frozen if min(row["stalled"].values()) >= 8.0]
    assert len(held) >= 2, "both writers waited for the watchdog"
    assert container.points(CT)[-1]["consistency"] == "frozen"


def place(row: dict[str, Any]) -> str:
    """Where in the window a run was killed."""
    starts = {"amid ": "amid", "systemd-run": "arm", "zfs snapshot": "snapshot", "systemctl stop": "disarm"}
    starts |= {"lxc-freeze": "freeze", "lxc-info": "status", "lxc-unfreeze": "thaw"}
    ends = {"fsfreeze-freeze": "freeze", "fsfreeze-status": "status", "fsfreeze-thaw": "thaw"}
    found = [word for start, word in starts.items() if row["at"].startswith(start)]
    found += [word for end, word in ends.items() if row["at"].endswith(end)]
    return (*found, "after")[0]
