"""Fixtures of the lab tests: one lab for the whole session, booted when the first test asks for it.

Run them with `python3 -m pytest tests/lab`. A lab that cannot start fails the tests that need it; nothing is skipped.
Tests that need other hosts than the shared ones make a Lab of their own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import image
from tests.lab import product as installed_product
from tests.lab.host import Host
from tests.lab.lab import TREE, Lab
from tests.lab.product import Product
from tests.lab.pve import provision

DEBS = TREE / "build" / "deb"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Both hosts, booted and provisioned (Lab.provision). PZB_LAB_ATTACH: the run of a lab that is up already."""
    if attached := os.environ.get("PZB_LAB_ATTACH"):
        existing = Lab()
        existing.attach(Path(attached))
        yield existing
        existing.stop()
        return
    with Lab() as running:
        running.provision()
        yield running


@pytest.fixture(autouse=True)
def powered(request: pytest.FixtureRequest) -> None:
    """A host that died by itself fails the test it died in; the others find it switched on again."""
    if "lab" not in request.fixturenames:
        return
    lab: Lab = request.getfixturevalue("lab")
    for host in lab.hosts.values():
        if host.machine.died:
            image.say(host.machine.fate)
            host.power_off()
            host.boot()
            if host is lab.pve1:
                provision.wait_ready(host)


@pytest.fixture(scope="session")
def pve1(lab: Lab) -> Host:
    """The Proxmox VE node."""
    return lab.pve1


@pytest.fixture(scope="session")
def backup1(lab: Lab) -> Host:
    """The secondary host."""
    return lab.backup1


@pytest.fixture(scope="session")
def debs() -> tuple[Path, ...]:
    """The packages, built once per session by `make deb`."""
    done = subprocess.run(
        ("make", "-C", str(TREE), "deb"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"make deb failed:\n{done.stdout[-4000:]}"
    built = tuple(sorted(DEBS.glob("*.deb")))
    assert built, f"make deb left no package in {DEBS}"
    return built


@pytest.fixture(scope="session")
def installed(pve1: Host, debs: tuple[Path, ...]) -> Host:
    """pve1 with the product installed; its dependencies are in the image, so dpkg alone must do."""
    install(pve1, debs, "pve-zfsbackup")
    return pve1


@pytest.fixture(scope="session")
def product(lab: Lab, installed: Host) -> Product:
    """The installed product, set up with its target; no run has been made yet."""
    assert installed is lab.pve1
    return installed_product.connect(lab)


def install(host: Host, debs: tuple[Path, ...], package: str) -> None:
    """Install one of the built packages on a host by dpkg."""
    deb = next((d for d in debs if d.name.startswith(f"{package}_")), None)
    assert deb is not None, f"no {package} among {[d.name for d in debs]}"
    host.put(deb, f"/root/{deb.name}")
    host.run(("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", f"/root/{deb.name}"), timeout=600)
