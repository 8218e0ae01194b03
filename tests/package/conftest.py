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
    packages = (
        "apt-utils", "debootstrap", "dpkg-dev", "fish", "gnupg", "groff-base", "iproute2", "man-db", "piuparts", "zsh",
    )  # fmt: skip
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


@pytest.fixture(scope="session")
def receiver(deb: Path) -> Path:
    """The target's package."""
    (found,) = deb.parent.glob("pve-zfsbackup-receiver_*_all.deb")
    return found


OLD = "0.0.9"
CRON, LOGROTATE = "/etc/cron.d/pve-zfsbackup", "/etc/logrotate.d/pve-zfsbackup"
POLICY = "/etc/pve-zfsbackup-receiver.toml"


@pytest.fixture(scope="session")
def older(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of before: the present one as 0.0.9, whose two conffiles were others and whose program said so."""
    tree = shutil.copytree(unpacked, tmp_path_factory.mktemp("older") / "tree", symlinks=True)
    module = "usr/lib/python3/dist-packages/pve_zfsbackup/__init__.py"
    _alter(tree, module, r"(?m)^__version__ = .*$", f'__version__ = "{OLD}"')
    _alter(tree, CRON[1:], r"(?m)^37 3 ", "41 3 ")
    _alter(tree, LOGROTATE[1:], r"(?m)^(\s*)rotate \d+$", r"\1rotate 3")
    return _packed(tree, "pve-zfsbackup")


@pytest.fixture(scope="session")
def older_receiver(receiver: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's package as 0.0.9, which shipped its policy as a conffile."""
    tree = tmp_path_factory.mktemp("older-receiver") / "tree"
    subprocess.run(["dpkg-deb", "-R", receiver, tree], check=True)
    (example,) = tree.glob("usr/share/doc/*/examples/*.toml")
    example.rename(tree / POLICY[1:])
    with (tree / "DEBIAN/conffiles").open("a") as file:
        file.write(f"{POLICY}\n")
    return _packed(tree, "pve-zfsbackup-receiver")


def _alter(tree: Path, path: str, old: str, new: str) -> None:
    text = (tree / path).read_text()
    changed, count = re.subn(old, new, text)
    assert (count, changed == text) == (1, False), path
    (tree / path).write_text(changed)


def _packed(tree: Path, name: str) -> Path:
    _alter(tree, "DEBIAN/control", r"(?m)^Version: .*$", f"Version: {OLD}")
    deb = tree.parent / f"{name}_{OLD}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL)
    return deb


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
