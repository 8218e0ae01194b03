"""A target for the receiver's tests: programs that only write down how they were started, and say what they are told.

They stand in a directory of their own that the receiver is given by name (`Site.bin`); PATH is never asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.receiver import Site

ROOT = "tank/backups/pve1"
RECEIVER = Path(receiver.__file__)
# Written once per program: reads its script, notes its start, eats or copies stdin, answers.
PROGRAM = """#!/usr/bin/python3 -IS
import json, os, signal, sys
place, name = os.path.split(os.path.abspath(sys.argv[0]))
argv = [name, *sys.argv[1:]]
rules = json.load(open(place + "/rules.json"))
rule = next((r for r in rules if argv[: len(r["argv"])] == r["argv"]), {})
seen = b""
if name in ("zstd", "mbuffer"):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    while data := os.read(0, 65536):
        while data:
            data = data[os.write(1, data):]
elif argv[:2] == ["zfs", "receive"]:
    while len(seen) < (take := rule.get("take", 1 << 30)) and (data := os.read(0, min(take - len(seen), 65536))):
        seen += data
with open(place + "/started.jsonl", "a") as log:
    log.write(json.dumps({"argv": argv, "stdin": seen.decode("latin-1"), "environ": dict(os.environ)}) + "\\n")
sys.stdout.write(rule.get("out", ""))
sys.stderr.write(rule.get("err", ""))
sys.exit(rule.get("status", 0))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The stand-in target. `site` is how the receiver is told about it."""

    place: Path

    @property
    def site(self) -> Site:
        return Site(
            root=ROOT, bin=(str(self.place / "bin"),), state=str(self.place / "state"), kstat=str(self.place / "kstat")
        )

    def says(self, *argv: str, **answer: Any) -> None:
        """From now on commands that begin with these words answer so; the newest rule that fits counts."""
        path = self.place / "bin" / "rules.json"
        rules = json.loads(path.read_text())
        path.write_text(json.dumps([{"argv": argv, **answer}, *rules]))

    @property
    def started(self) -> list[dict[str, Any]]:
        path = self.place / "bin" / "started.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def argvs(self) -> list[list[str]]:
        return [started["argv"] for started in self.started]

    def pool(self, state: str, name: str = "tank") -> None:
        path = self.place / "kstat" / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "state").write_text(f"{state}\n")

    def run(self, *arguments: str, input: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
        """The receiver as the file it is, by an interpreter that knows nothing of this project."""
        argv = ["/usr/bin/python3", "-I", str(RECEIVER), *arguments]
        return subprocess.run(argv, input=input, capture_output=True, check=False, env=environ, timeout=60)

    def asked(self, line: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """What a client whose key has the forced command gets for a command line."""
        options = ("--root", ROOT, "--state", str(self.place / "state"), "--bin", str(self.place / "bin"))
        return self.run(*options, input=input, SSH_ORIGINAL_COMMAND=line)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("zfs", "zpool", "zstd", "mbuffer"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    (programs / "rules.json").write_text("[]")
    spool = tmp_path / "state" / "spool"
    spool.mkdir(parents=True)
    spool.chmod(0o1733)
    assert Path(sys.executable).exists()
    return Target(tmp_path)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver goes to `/`; the tests after these do not."""
    monkeypatch.chdir(".")
