"""The cache of images: what it holds is whole, whoever was interrupted. With a toy definition that takes no time."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import image
from tests.lab.lab import TREE

BASE = """#!/bin/bash
echo made >> "$TOY/base.count"
echo base > "$1/base.tar.zst"
"""
TOP = """#!/bin/bash
set -e
echo made >> "$TOY/top.count"
echo "==> root"
mkdir "$1/root"
[ ! -e "$TOY/fail" ] || exit 3
if [ -e "$TOY/slow" ]; then rm "$TOY/slow"; sleep 3; echo late > "$TOY/late"; fi
cp "$2" "$1/base.raw"
cp "$TOY/vmlinuz" "$1/vmlinuz"
touch "$1/initrd.img"
"""
CHILD = """
import sys
from pathlib import Path
from tests.lab import image
image.DEFINITION = Path(sys.argv[1])
image._wheel_command = lambda target: ("mkdir", str(target))
image.ensure()
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A definition of two small scripts and a cache of its own; the directory holds what the scripts look at."""
    definition = tmp_path / "definition"
    (definition / "base").mkdir(parents=True)
    for path, text in ((definition / "build.sh", TOP), (definition / "base" / "build.sh", BASE)):
        path.write_text(text)
        path.chmod(0o755)
    packed = subprocess.run(("zstd", "-qc"), input=b"\x7fELF kernel", capture_output=True, check=True).stdout
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x248:0x250] = struct.pack("<II", 0, len(packed) + 4)
    (tmp_path / "vmlinuz").write_bytes(bytes(header) + packed + b"size")
    monkeypatch.setattr(image, "DEFINITION", definition)
    monkeypatch.setattr(image, "_wheel_command", lambda target: ("mkdir", str(target)))
    monkeypatch.setenv("TOY", str(tmp_path))
    monkeypatch.setenv(image.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path


def made(toy: Path, part: str) -> int:
    return len((toy / f"{part}.count").read_text().splitlines())


def test_an_image_is_built_once(toy: Path) -> None:
    first = image.ensure()
    assert image.ensure() == first
    assert (made(toy, "base"), made(toy, "top")) == (1, 1)
    assert first.kernel.read_bytes() == b"\x7fELF kernel"
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert first.root.exists()


def test_another_definition_is_another_image_on_the_same_base(toy: Path) -> None:
    first = image.ensure()
    (image.DEFINITION / "masked.txt").write_text("one.service\n")
    assert image.ensure().directory != first.directory
    assert (made(toy, "base"), made(toy, "top")) == (1, 2)
    (image.DEFINITION / "base" / "packages.txt").write_text("bash\n")
    image.ensure()
    assert (made(toy, "base"), made(toy, "top")) == (2, 3)


def test_a_failed_build_is_no_image(toy: Path) -> None:
    (toy / "fail").touch()
    with pytest.raises(image.ImageError, match=r"status 3; see .*\.log"):
        image.ensure()
    assert not (toy / "cache" / image.definition_hash()).exists()
    (toy / "fail").unlink()
    assert image.ensure().kernel.exists()
    assert list((toy / "cache").glob("building-*")) == []


def test_a_killed_build_is_waited_for_and_swept(toy: Path) -> None:
    (toy / "slow").touch()
    child = subprocess.Popen((sys.executable, "-c", CHILD, str(image.DEFINITION)), cwd=TREE)
    deadline = time.monotonic() + 20
    while (toy / "slow").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(timeout=10) == -signal.SIGKILL
    assert not (toy / "late").exists()
    built = image.ensure()
    # What the killed build had started was over before anything of it was removed.
    assert (toy / "late").exists()
    assert built.kernel.exists()
    assert made(toy, "top") == 2
    assert list((toy / "cache").glob("building-*")) == []


def test_an_interrupt_ends_the_build_at_once(toy: Path) -> None:
    (toy / "slow").touch()
    child = subprocess.Popen((sys.executable, "-c", CHILD, str(image.DEFINITION)), cwd=TREE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while (toy / "slow").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=2) != 0
    assert image.ensure().kernel.exists()
    assert not (toy / "late").exists()
