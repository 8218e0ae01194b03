"""What the package tests share: the package as `make deb` leaves it, and roots to install it in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.package import roots
from tests.package.roots import Root

PROJECT = Path(__file__).resolve().parents[2]
RELEASES = ("bookworm", "trixie")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist=loadgroup`, each release and its root stay with one process."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        item.add_marker(pytest.mark.xdist_group(str(params.get("prepared", RELEASES[0]))))


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """Debian's tools these tests call, installed when missing."""
    if os.geteuid() != 0:
        pytest.fail("the package tests install into Debian roots: they need root")
    packages = ("debootstrap", "dpkg-dev", "groff-base", "iproute2", "man-db")
    subprocess.run([PROJECT / "tools" / "need", *packages], check=True)


@pytest.fixture(scope="session")
def deb(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from the present files; beside it, what else its build gave. A copy: builds go on."""
    argv = [PROJECT / "tools" / "build-deb"]
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        pytest.exit(f"the package cannot be built:\n{done.stdout}", returncode=1)
    made = shutil.copytree(PROJECT / "build" / "deb", tmp_path_factory.mktemp("deb") / "made")
    (package,) = made.glob("pve-zfsbackup_*_all.deb")
    return package


@pytest.fixture(scope="session")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package, and its control files in DEBIAN/."""
    directory = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "-R", deb, directory], check=True)
    return directory


def depends(deb: Path) -> list[str]:
    """Names of the packages it depends on."""
    text = subprocess.run(["dpkg-deb", "-f", deb, "Depends"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return sorted({re.split(r"[\s:(]", entry.strip())[0] for entry in text.split(",")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A release's cached root, and the layer in which the package was installed on top of it."""

    release: str
    cached: roots.Layers
    installed: Root
    said: str  # while it was installed

    @property
    def layers(self) -> tuple[Path, ...]:
        return (self.installed.place / "upper", *self.installed.layers)


@pytest.fixture(scope="session", params=RELEASES)
def prepared(
    request: pytest.FixtureRequest, deb: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepared]:
    """The package installed once per release, as an administrator does it, but without a network."""
    cached = roots.ensure(request.param, depends(deb))
    with Root.on(request.param, cached.plain, tmp_path_factory.mktemp(request.param) / "root") as root:
        yield Prepared(release=request.param, cached=cached, installed=root, said=install(root, deb))


@pytest.fixture
def root(prepared: Prepared, tmp_path: Path) -> Iterator[Root]:
    """A root with the package installed; what the test does to it is gone afterwards."""
    with Root.on(prepared.release, prepared.layers, tmp_path / "root") as made:
        yield made


@pytest.fixture
def bare(prepared: Prepared, tmp_path: Path) -> Iterator[Root]:
    """The same root without the package."""
    with Root.on(prepared.release, prepared.cached.plain, tmp_path / "bare") as made:
        yield made


def install(root: Root, deb: Path, *options: str) -> str:
    """Install the package in a root in which nothing runs; what apt said. `options` are for apt-get."""
    target = root.place / "upper" / "tmp"
    if not target.exists():
        target.mkdir()
        target.chmod(0o1777)
    (target / deb.name).write_bytes(deb.read_bytes())
    return root.run("apt-get", "-qy", *options, "install", "--no-install-recommends", f"/tmp/{deb.name}")
