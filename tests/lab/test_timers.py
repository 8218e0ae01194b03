"""Timers instead of cron, on a systemd that runs: no run waits for another, and the package may come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import install
from tests.lab.host import Host
from tests.lab.product import CONFIG_TEXT, Product, forget

pytestmark = pytest.mark.long

TIMER = "pve-zfsbackup.timer"
HOOK = "/usr/local/sbin/lab-hang"
HELD = "/run/lab-held"  # the run that finds it hangs before it replicates
HANG = f"""\
#!/bin/sh
if rm {HELD} 2> /dev/null; then exec sleep 240; fi
"""


@pytest.fixture
def timed(product: Product) -> Iterator[Product]:
    """The timer is enabled."""
    forget(product)
    hooks = f"hooks: {{before-replicate: [{HOOK}], timeout: 300}}\n"
    product.configure(CONFIG_TEXT.replace("[all]", '["106"]') + hooks)
    pve1 = product.pve1
    pve1.write(HOOK, HANG, mode=0o755)
    pve1.script('touch "$1"; systemctl enable --now -q pve-zfsbackup.timer', HELD)
    yield product
    pve1.script("systemctl disable --now -q pve-zfsbackup.timer; systemctl stop 'pve-zfsbackup@*'")
    pve1.run(("rm", "-f", HOOK, HELD))
    forget(product)


def states(host: Host) -> list[str]:
    """What each run's unit is doing, those that ended well left out."""
    argv = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "pve-zfsbackup@*")
    return [line.split()[2] for line in host.run(argv).lines]


def test_a_run_that_hangs_keeps_no_later_one_from_its_point(timed: Product, debs: tuple[Path, ...]) -> None:
    pve1 = timed.pve1
    pve1.run(("systemctl", "start", "pve-zfsbackup.service"))
    assert states(pve1) == ["activating"]
    pve1.wait_for(("test", "!", "-e", HELD))
    time.sleep(60)  # units are named by the minute they begin in
    pve1.run(("systemctl", "start", "pve-zfsbackup.service"))
    deadline = time.monotonic() + 300
    while len(timed.points(106)) < 2:
        assert time.monotonic() < deadline, pve1.run(("journalctl", "-n", "40", "--no-pager")).stdout
        time.sleep(5)
    assert "activating" in states(pve1), "the first run still hangs"

    install(pve1, debs, "pve-zfsbackup")
    assert pve1.run(("systemctl", "is-active", TIMER)).stdout.strip() == "active", "an upgrade stops nothing"
    assert "activating" in states(pve1), "not even a run"

    pve1.run(("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-r", "pve-zfsbackup"), timeout=600)
    assert pve1.run(("systemctl", "is-active", TIMER), check=False).stdout.strip() == "inactive"
    pve1.wait_for(("sh", "-c", "! pgrep -f '[/]usr/bin/pve-zfsbackup run'"), timeout=150)
    install(pve1, debs, "pve-zfsbackup")
    assert pve1.run(("systemctl", "is-active", TIMER)).stdout.strip() == "active", "it was enabled, and goes on"
