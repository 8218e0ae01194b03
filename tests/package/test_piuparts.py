"""Debian's own judge of what a package leaves behind, on both releases, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.package.conftest import Prepared
from tests.package.roots import Root

REPOSITORY = "srv/older"  # in the root: what apt knows of the packages, from which piuparts upgrades
DANGLING = ("/etc/default/locale", "/etc/vconsole.conf")  # systemd's, in trixie's minimal root
PASSED = ("Installation and purging test", "Installation, upgrade and purging tests", "All tests")


def piuparts(root: Root, packages: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Install, purge, install, remove and install these again, and purge; upgrade from what apt knows, and purge.

    It works on copies of the root, all of them gone afterwards. The root's cached packages are all there is to fetch.
    """
    (root.place / "copies").mkdir()
    return root.beside(
        "piuparts", f"--distribution={root.release}", f"--existing-chroot={root.place / 'root'}",
        f"--tmpdir={root.place / 'copies'}", "--keep-sources-list", "--no-eatmydata", "--no-adequate",
        "--install-purge-install", "--install-remove-install", "--pedantic-purge-test", "--fail-on-broken-symlinks",
        *(f"--ignore={link}" for link in DANGLING),
        "--ignore=/var/lib/logrotate/status",  # piuparts' own try of what is rotated: logrotate was here before
        *map(str, packages),
    )  # fmt: skip


def know(root: Root, packages: Sequence[Path]) -> None:
    """Let apt in the root know these packages, and no mirror."""
    place = root.place / "upper" / REPOSITORY
    place.mkdir(parents=True)
    for package in packages:
        shutil.copy(package, place)
    scanned = subprocess.run(["dpkg-scanpackages", "."], cwd=place, check=True, capture_output=True)
    (place / "Packages").write_bytes(scanned.stdout)
    root.put("/etc/apt/sources.list", f"deb [trusted=yes] file:/{REPOSITORY} ./\n")


def test_both_packages_come_go_and_are_upgraded_cleanly(
    prepared: Prepared, deb: Path, receiver: Path, older: Path, older_receiver: Path, tmp_path: Path
) -> None:
    with Root.on(prepared.release, prepared.cached.plain, tmp_path / "root") as root:
        know(root, (older, older_receiver))
        done = piuparts(root, (deb, receiver))
    told = re.findall(r"(?m)^.* (?:ERROR|INFO|WARN\w*): (.*)$", done.stdout)
    assert done.returncode == 0, "\n".join([*told, done.stdout[-6000:]])
    assert [line for line in told if line.startswith("PASS: ")] == [f"PASS: {what}." for what in PASSED]


@pytest.mark.long
@pytest.mark.parametrize("prepared", ["bookworm"], indirect=True)
def test_it_fails_where_a_package_leaves_something_behind(prepared: Prepared, receiver: Path, tmp_path: Path) -> None:
    """That the test above can fail: a package whose purge is forgotten."""
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-R", receiver, tree], check=True)
    script = tree / "DEBIAN/postinst"
    text = script.read_text() if script.exists() else "#!/bin/sh\nset -e\n"
    script.write_text(text.replace("set -e\n", "set -e\n: >/etc/pve-zfsbackup-receiver.left\n", 1))
    script.chmod(0o755)
    spoiled = tmp_path / receiver.name
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, spoiled], check=True, stdout=subprocess.DEVNULL)
    with Root.on(prepared.release, prepared.cached.plain, tmp_path / "root") as root:
        know(root, ())
        done = piuparts(root, (spoiled,))
    assert done.returncode != 0
    assert re.search(r"FAIL: .*left.*\n.*/etc/pve-zfsbackup-receiver.left", done.stdout), done.stdout[-3000:]
