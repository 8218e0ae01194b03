"""The scripts Proxmox calls, run as it does: argv and emptied environment of every phase (pve-facts §e)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pve_zfsbackup.app.proxmox_hooks import FAIL_BACKUP, VZDUMP_PHASES

HOOKS = Path(__file__).parent.parent / "hooks"
pytestmark = pytest.mark.processes

JOB = {"STOREID": "backups", "DUMPDIR": "/mnt/dump"}


def of_guest(vmid: int, kind: str, mode: str, *, fails: bool = False) -> list[tuple[list[str], dict[str, str]]]:
    """The phases of one guest; STOREID as of a job, TARGET from the start on, LOGFILE too."""
    name = f"/mnt/dump/vzdump-{kind}-{vmid}-2026_11_23-18_00_00"
    own = {**JOB, "VMTYPE": kind, "HOSTNAME": f"guest{vmid}", "TARGET": f"{name}.vma.zst", "LOGFILE": f"{name}.log"}
    phases = ["backup-start", "pre-stop", "pre-restart", "post-restart"]
    phases += ["backup-abort", "log-end"] if fails else ["backup-end", "log-end"]
    return [([phase, mode, str(vmid)], own) for phase in phases]


# A job of two guests, of which the second fails in its own backup.
CALLS = [
    (["job-init"], {"STOREID": "backups"}),
    (["job-start"], JOB),
    *of_guest(100, "qemu", "snapshot"),
    *of_guest(200, "lxc", "suspend", fails=True),
    (["job-end"], JOB),
]


@dataclass
class Stub:
    """Our program and a script of the administrator, replaced by ones that write down how they were called."""

    place: Path

    def program(self, name: str, *, status: int = 0, only: str = "") -> Path:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        condition = f'[ "$1" != {only} ] || ' if only else ""
        path.write_text(
            f"#!/bin/sh\necho {name} \"$@\" >>{self.place}/calls\n/usr/bin/env >{self.place}/environment\n"
            f"{condition}exit {status}\n"
        )
        path.chmod(0o755)
        return path

    def script(self, name: str) -> Path:
        """A script of ours as it is, but for the place of the program it calls."""
        path = self.place / f"our-{name}"
        text = (HOOKS / name).read_text()
        text = text.replace("/usr/bin/pve-zfsbackup", str(self.place / "pve-zfsbackup"))
        text = text.replace("/usr/share/pve-zfsbackup/vzdump-hook", str(self.place / "our-vzdump-hook"))
        path.write_text(text.replace("/etc/pve-zfsbackup/vzdump-hooks.d", str(self.place / "hooks.d")))
        path.chmod(0o755)
        return path

    def calls(self) -> list[str]:
        path = self.place / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment(self) -> dict[str, str]:
        lines = (self.place / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


def call(script: Path, argv: Sequence[str], environment: dict[str, str]) -> int:
    """As vzdump does: nothing of the environment is left but LC_ALL and what it gives; no PATH."""
    return subprocess.run([script, *argv], env={"LC_ALL": "C", **environment}, check=False).returncode


def test_every_phase_is_one_we_know() -> None:
    assert {argv[0] for argv, _ in CALLS} | {"job-abort"} == set(VZDUMP_PHASES)


def test_a_whole_job_arrives_with_its_argv(stub: Stub) -> None:
    stub.program("pve-zfsbackup")
    script = stub.script("vzdump-hook")
    for argv, environment in CALLS:
        assert call(script, argv, environment) == 0
        told = stub.environment()
        assert {key: told[key] for key in environment} == environment
    assert stub.calls() == [" ".join(["pve-zfsbackup", "hook", "vzdump", *argv]) for argv, _ in CALLS]


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 127, FAIL_BACKUP])
def test_only_what_the_configuration_wants_fails_a_backup(stub: Stub, status: int) -> None:
    stub.program("pve-zfsbackup", status=status)
    assert (call(stub.script("vzdump-hook"), ["backup-end", "snapshot", "100"], JOB) != 0) is (status == FAIL_BACKUP)


@pytest.mark.parametrize("name", ["vzdump-hook", "vzdump-dispatch"])
def test_a_removed_package_does_not_break_vzdump(stub: Stub, name: str) -> None:
    """Of it the copy in /usr/local is left, and nothing that it calls."""
    script = stub.script(name)
    assert [call(script, argv, environment) for argv, environment in CALLS] == [0] * len(CALLS)


def test_vzdump_is_told_of_no_script_that_goes_with_the_package() -> None:
    """It fails every backup of a node whose script is not there (PVE/VZDump.pm)."""
    pages = [HOOKS.parent / "docs/hooks.md", *(HOOKS / name for name in ("vzdump-hook", "vzdump-dispatch"))]
    text = "".join(page.read_text() for page in pages)
    named = re.findall(r"script: (\S+)|(\S+) \"\$@\" \|\| exit", text)
    assert len(named) == 6
    copies = dict(re.findall(r"install -m 755 (\S+) (/usr/local/\S+)", text))
    assert copies.keys() == {f"/usr/share/pve-zfsbackup/{name}" for name in ("vzdump-hook", "vzdump-dispatch")}
    assert {a or b for a, b in named} == set(copies.values())


def test_the_dispatcher_runs_the_administrators_scripts_and_ours(stub: Stub) -> None:
    stub.program("pve-zfsbackup")
    stub.script("vzdump-hook")
    first, second = stub.program("hooks.d/10-first"), stub.program("hooks.d/20-second", status=3, only="backup-end")
    stub.program("hooks.d/30-off").chmod(0o644)
    before = {path: path.read_bytes() for path in (first, second)}
    script = stub.script("vzdump-dispatch")
    ended = [call(script, argv, environment) for argv, environment in CALLS]
    assert ended == [3 if argv[0] == "backup-end" else 0 for argv, _ in CALLS], "its failure is told to vzdump"
    expected = []
    for argv, _ in CALLS:
        words = " ".join(argv)
        expected += [f"hooks.d/10-first {words}", f"hooks.d/20-second {words}", f"pve-zfsbackup hook vzdump {words}"]
    assert stub.calls() == expected, "after one that failed the others have their turn"
    assert {path: path.read_bytes() for path in before} == before


def test_the_dispatcher_without_any_script_is_our_hook(stub: Stub) -> None:
    stub.program("pve-zfsbackup", status=FAIL_BACKUP)
    stub.script("vzdump-hook")
    assert call(stub.script("vzdump-dispatch"), ["backup-end", "stop", "100"], JOB) == 1


@pytest.mark.parametrize("status", [0, 1, 75])
@pytest.mark.parametrize("phase", ["pre-start", "post-start", "pre-stop", "post-stop"])
def test_a_guests_hook_never_stops_it(stub: Stub, phase: str, status: int) -> None:
    stub.program("pve-zfsbackup", status=status)
    script = stub.script("guest-hookscript")
    assert subprocess.run([script, "100", phase], env=dict(os.environ), check=False).returncode == 0
    assert stub.calls() == [f"pve-zfsbackup hook guest 100 {phase}"]


@pytest.mark.parametrize("name", ["vzdump-hook", "vzdump-dispatch", "guest-hookscript"])
def test_scripts_are_executable(name: str) -> None:
    assert (HOOKS / name).stat().st_mode & 0o777 == 0o755
