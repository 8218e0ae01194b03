"""The root image of the lab's hosts: built once, cached outside the tree under the hash of what defines it.

A build happens in a temporary directory beside the cache entry and is renamed into place at its very end, so an
interrupted build is never taken for a good one; a lock keeps two builds apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

DEFINITION = Path(__file__).with_name("image")
CACHE_VARIABLE = "PZB_LAB_CACHE"
DEFAULT_CACHE = Path("/var/cache/pve-zfsbackup-lab")

GUEST_PYTHON = "3.13"
"""Python of Debian trixie, for which the simulator's wheels are fetched."""

TOOLS = {
    "debootstrap": "debootstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sftp": "openssh-client",
    "zstd": "zstd",
}
"""Programs the lab needs on this machine, and the Debian packages that bring them."""


SOUND_QEMU = (8, 1)
"""Older ones let a processor run code that another is patching: once in some hours the kernel dies of an int3 that it
has just taken away (Launchpad 2051965, multipath-tcp/mptcp_net-next#471)."""


class ImageError(Exception):
    """The image cannot be built; the message names the log to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One finished image: everything a host boots from, and the key that opens its root account."""

    directory: Path

    @property
    def root(self) -> Path:
        """Raw ext4 root file system without a partition table; hosts write to overlays of it only."""
        return self.directory / "base.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def key(self) -> Path:
        """Private ssh key accepted by root on every host."""
        return self.directory / "id"


def say(text: str) -> None:
    """One line of progress, where a person sees it and no test parses it."""
    print(text, file=sys.stderr, flush=True)


def cache_root() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)


def definition_hash(part: str = ".") -> str:
    """Hash over every file of `tests/lab/image/`, or of a part of it: names and contents."""
    directory = DEFINITION / part
    digest = hashlib.sha256(GUEST_PYTHON.encode())
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(directory)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def install_tools() -> None:
    """Install the Debian packages that are missing on this machine; needs root then.

    Raises ImageError where apt cannot help.
    """
    missing = {package for tool, package in TOOLS.items() if _which(tool) is None}
    emulator = {package for package in TOOLS.values() if package.startswith("qemu-")}
    if emulator & missing:
        missing |= emulator
    if missing:
        _apt(*sorted(missing))
    if (version := _qemu_version()) < SOUND_QEMU:
        release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        say(f"lab: QEMU {version[0]}.{version[1]} loses hosts under emulation")
        with tempfile.NamedTemporaryFile("w", prefix="pzb-", suffix=".list") as sources:
            listed = Path("/etc/apt/sources.list")
            sources.write(f"{listed.read_text() if listed.exists() else ''}\n")
            sources.write(f"deb {_mirror(release)} {release}-backports main\n")
            sources.flush()
            options = ("-o", f"Dir::Etc::SourceList={sources.name}", "-t", f"{release}-backports")
            _apt(*sorted(emulator), options=options)


def _apt(*packages: str, options: tuple[str, ...] = ()) -> None:
    say(f"lab: installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ("-qy", "-o", "DPkg::Lock::Timeout=600", *options)
    install = ("apt-get", *options, "install", "--no-install-recommends", *packages)
    for command in (("apt-get", *options, "update"), install):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            raise ImageError(f"{' '.join(command)} failed:\n{done.stdout}")


def _qemu_version() -> tuple[int, int]:
    told = subprocess.run(("qemu-system-x86_64", "--version"), capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", told)
    if found is None:
        raise ImageError(f"qemu-system-x86_64 --version does not tell its version: {told!r}")
    return int(found[1]), int(found[2])


def _mirror(release: str) -> str:
    """Where this machine gets its release from, which has the backports, too."""
    query = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {release}")
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    if not release or not found:
        raise ImageError(f"install QEMU {SOUND_QEMU[0]}.{SOUND_QEMU[1]} or newer: apt knows no mirror of {release!r}")
    return found[0]


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def ensure() -> Image:
    """The image for the present definition; built when the cache has none.

    Six minutes on two idle cores, one minute when only the base is there: a changed file compiles no OpenZFS.

    Raises ImageError when it cannot be built.
    """
    install_tools()
    entry = cache_root() / definition_hash()
    if not entry.is_dir():
        cache_root().mkdir(parents=True, exist_ok=True)
        with _locked(cache_root() / "build.lock") as lock:
            if not entry.is_dir():
                _build(entry, lock)
    return Image(directory=entry)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock. Programs that inherit its descriptor hold it, too: a build outlives a killed caller a while."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("lab: another build of the image is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(path.parent)
        yield lock.fileno()


def _sweep(cache: Path) -> None:
    """Remove what interrupted builds left; only the holder of the lock may call this."""
    for leftover in cache.glob("building-*"):
        for mounted in ("dev", "sys", "proc"):
            if (leftover / "root" / mounted).is_mount():
                subprocess.run(("umount", str(leftover / "root" / mounted)), check=True)
        shutil.rmtree(leftover)


def _build(entry: Path, lock: int) -> None:
    """Make one cache entry; the caller holds the lock."""
    if os.geteuid() != 0:
        raise ImageError("building the lab's image needs root (debootstrap)")
    started = time.monotonic()
    base = entry.parent / f"base-{definition_hash('base')}.tar.zst"
    work = Path(tempfile.mkdtemp(prefix="building-", dir=entry.parent))
    log = entry.parent / f"{entry.name}.log"
    duration = "a minute" if base.exists() else "six minutes"
    say(f"lab: building the image, about {duration}; log in {log}")
    with log.open("w") as output:
        run = partial(_logged, log=output, started=started, lock=lock)
        if not base.exists():
            run((str(DEFINITION / "base" / "build.sh"), str(work)))
            (work / "base.tar.zst").rename(base)
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", work / "id"), check=True)
        run(_wheel_command(work / "wheels"))
        run((str(DEFINITION / "build.sh"), str(work), str(base)))
    _unpack_kernel(work / "vmlinuz", work / "vmlinux")
    shutil.rmtree(work / "wheels")
    work.chmod(0o700)
    work.rename(entry)
    say(f"lab: image ready in {time.monotonic() - started:.0f} s: {entry}")


def _unpack_kernel(packed: Path, plain: Path) -> None:
    """Take the kernel proper out of a bzImage, so that no host spends seconds unpacking it under emulation.

    Offsets: Documentation/arch/x86/boot.rst (setup_sects 0x1f1, payload_offset 0x248, payload_length 0x24c).
    """
    raw = packed.read_bytes()
    sectors = raw[0x1F1] or 4
    offset, length = struct.unpack_from("<II", raw, 0x248)
    start = (sectors + 1) * 512 + offset
    # The last four bytes of the payload are the unpacked size, not part of the zstd frame.
    done = subprocess.run(("zstd", "-dc"), input=raw[start : start + length - 4], capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout.startswith(b"\x7fELF"):
        raise ImageError(f"the kernel is not packed by zstd: {done.stderr.decode(errors='replace').strip()}")
    plain.write_bytes(done.stdout)
    packed.unlink()


def _wheel_command(target: Path) -> tuple[str, ...]:
    """pip's own configuration decides where the wheels come from; only built ones are taken."""
    version = GUEST_PYTHON.replace(".", "")
    choice = ("--python-version", GUEST_PYTHON, "--implementation", "cp")
    abis = ("--abi", f"cp{version}", "--abi", "abi3", "--abi", "none")
    platforms = ("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64")
    wanted = ("-r", str(DEFINITION / "wheels.txt"), "-d", str(target))
    return (sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", *choice, *abis, *platforms, *wanted)


def _logged(command: tuple[str, ...], *, log: IO[str], started: float, lock: int) -> None:
    """Run one part of the build; its output goes to the log, its "==> " lines also to the terminal."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        command, stdout=pipe, stderr=both, text=True, errors="replace", pass_fds=(lock,), start_new_session=True
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                print(line, end="", file=log, flush=True)
                if line.startswith("==> "):
                    _progress(started, line[4:].strip())
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode != 0:
        raise ImageError(f"{command[0]} failed with status {child.returncode}; see {log.name}")


def _progress(started: float, text: str) -> None:
    say(f"lab: {time.monotonic() - started:5.0f} s  {text}")
