"""Debian roots to install the package in: made once by debootstrap, cached, and used through an overlay.

A cached root holds a minimal Debian and what the package depends on, so that installing needs no network; a second
layer adds what running the unit tests there needs. Every command gets mount, process and network namespaces of its
own, with nothing but loopback, and they end with it: nothing can stay mounted, running or connected.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("PZB_LAB_CACHE") or "/var/cache/pve-zfsbackup-lab") / "roots"
RECIPE = "2"  # counted up when a root made by an older version of this module will not do
COMPONENTS = "main,contrib"  # zfsutils-linux is in contrib there; Proxmox has it in its own repository
ALWAYS = ("bash-completion", "ca-certificates", "logrotate", "man-db")  # looked at by the tests
UNIT = (
    "age", "dash", "openssh-client", "openssh-server", "procps", "python3-cryptography", "python3-pytest",
    "python3-prometheus-client", "python3-pytest-xdist", "python3-responses", "rclone", "zstd",
)  # fmt: skip
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "TERM": "dumb",
}
# $0 is the lower directories, $1 the place of upper, work and root; the command follows.
_MOUNT = """
set -e
ip link set lo up
mount -t overlay overlay -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" "$1/root"
"""
_INSIDE = (
    _MOUNT
    + """
mount -t proc proc "$1/root/proc"
place=$1; shift
exec chroot "$place/root" "$@"
"""
)
_BESIDE = (
    _MOUNT
    + """
mount -t proc proc /proc
shift; exec "$@"
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The cached root of one release."""

    entry: Path

    @property
    def plain(self) -> tuple[Path, ...]:
        """A minimal Debian with what the package depends on; topmost layer first."""
        return (self.entry / "depends" / "upper", self.entry / "base")

    @property
    def with_tests(self) -> tuple[Path, ...]:
        """The same with pytest and what the unit tests import."""
        return (self.entry / "unit" / "upper", *self.plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A root to use and throw away: writes go to `place`, the layers below stay as they are."""

    release: str
    layers: tuple[Path, ...]
    place: Path

    @classmethod
    @contextmanager
    def on(cls, release: str, layers: tuple[Path, ...], place: Path) -> Iterator[Root]:
        for name in ("upper", "work", "root"):
            (place / name).mkdir(parents=True)
        try:
            yield cls(release=release, layers=layers, place=place)
        finally:
            shutil.rmtree(place)

    def run(self, *command: str, network: bool = False, stdin: str = "") -> str:
        """What a command in the root said. Raises AssertionError with that when it failed."""
        done = self.attempt(*command, network=network, stdin=stdin)
        assert done.returncode == 0, f"{self.release}: {' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def attempt(
        self, *command: str, network: bool = False, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail; stderr goes where stdout goes."""
        return self._started(_INSIDE, command, network=network, stdin=stdin)

    def beside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this host that looks at the mounted root, `place`/root, and may change it."""
        return self._started(_BESIDE, command)

    def _started(
        self, script: str, command: Sequence[str], *, network: bool = False, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--ipc"]
        namespaces += [] if network else ["--net"]
        lower = ":".join(str(layer) for layer in self.layers)
        argv = ["nice", "unshare", *namespaces, "--", "sh", "-c", script, lower, str(self.place), *command]
        return subprocess.run(
            argv,
            check=False,
            cwd="/",
            env=ENVIRONMENT,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )

    def shell(self, script: str) -> str:
        """What a shell script said. Raises AssertionError with that when a command of it failed."""
        return self.run("sh", "-ec", script)

    def put(self, path: str, content: str, mode: str = "0644") -> None:
        script = 'mkdir -p "$(dirname "$0")"; cat >"$0"; chmod "$1" "$0"'
        self.run("sh", "-ec", script, path, mode, stdin=content)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure(release: str, depends: Sequence[str]) -> Layers:
    """The cached root of a release with these packages; made when the cache has none (about two minutes)."""
    said = "\0".join((RECIPE, release, COMPONENTS, *depends, "", *ALWAYS, "", *UNIT))
    entry = CACHE / f"{release}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    if not entry.is_dir():
        with (CACHE / f"{release}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in CACHE.glob(f"building-{release}-*"):
                shutil.rmtree(leftover)
            if not entry.is_dir():
                _make(release, depends, entry)
    return Layers(entry=entry)


def _make(release: str, depends: Sequence[str], entry: Path) -> None:
    started = time.monotonic()
    _say(f"roots: making a root of {release}")
    making = Path(tempfile.mkdtemp(prefix=f"building-{release}-", dir=CACHE))
    making.chmod(0o755)
    base = making / "base"
    strap = ("nice", "debootstrap", "--variant=minbase", f"--components={COMPONENTS}", release, str(base))
    done = subprocess.run(strap, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(strap)}\n{done.stdout}"
    policy = base / "usr/sbin/policy-rc.d"  # no service is started here
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    (base / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
    install = ("apt-get", "-qy", "install", "--no-install-recommends")
    for layer, below, packages in (
        (making / "depends", (base,), (*depends, *ALWAYS)),
        (making / "unit", Layers(entry=making).plain, UNIT),
    ):
        for name in ("upper", "work", "root"):
            (layer / name).mkdir(parents=True)
        root = Root(release=release, layers=below, place=layer)
        root.run("apt-get", "-q", "update", network=True)
        root.run(*install, *packages, network=True)
        root.run("apt-get", "clean")
        shutil.rmtree(layer / "work")
    making.rename(entry)
    _say(f"roots: {release} ready after {time.monotonic() - started:.0f} s")
