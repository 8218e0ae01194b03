"""Kill the archive stage (SIGKILL) before its first, fifth, ninth … step, and run it again to its end. A step is a
program that is started, or commands that a running sftp is given: its connection is kept for many of them.

Runs on the node: `archive_killer.py STRIDE CONFIG PENDING DEVICE…`. Before each kill the guest writes on its
devices and a point is made. Prints one JSON line per kill: how many segments the ledger had then, and how many the
run after it found there and sent. Ends at the first kill that was not reached.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pve_zfsbackup import cli
from pve_zfsbackup.app import archive, prune, replicate, snapshot  # noqa: F401 - once, and not in each fork
from pve_zfsbackup.cli import work  # noqa: F401 - the same
from pve_zfsbackup.host import programs, runner, sftp

SEGMENTS = re.compile(r"(\d+) segments(?:, (\d+) there)?")


def main() -> None:
    stride, config, pending, *devices = sys.argv[1:]
    for number in itertools.count(1, int(stride)):
        write(devices, number)
        made = attempt(("snapshot", "--config", config), kill_at=0)
        if made["code"]:
            sys.exit(f"no point: {made}")
        stage = ("archive", "--config", config, "--json")
        cut = attempt(stage, kill_at=number)
        if cut["code"] != -signal.SIGKILL:
            print(json.dumps({"kill": number, "unreached": True, "code": cut["code"]}), flush=True)
            return
        there = ledger(Path(pending))
        again = attempt(stage, kill_at=0)
        print(json.dumps({"kill": number, "at": cut["at"], "there": there, **told(again)}), flush=True)
        if again["code"]:
            sys.exit(again["out"])


def write(devices: list[str], seed: int) -> None:
    for device in devices:
        with open(device, "r+b", buffering=0) as disk:
            disk.seek((seed % 6 + 1) << 20)
            disk.write(os.urandom(2 << 20))
            os.fsync(disk.fileno())


def ledger(pending: Path) -> int:
    """Segments known to have arrived; the first line names the point."""
    lines = [path.read_text().count("\n") - 1 for path in pending.glob("*.jsonl")]
    return max(0, *lines) if lines else 0


def told(again: dict[str, Any]) -> dict[str, Any]:
    results = [result for result in json.loads(again["out"] or "{}").get("results", ()) if result["stage"] == "archive"]
    match = SEGMENTS.search(results[0]["message"]) if results else None
    segments, skipped = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    return {
        "again": again["code"],
        "published": match is None,
        "segments": segments,
        "skipped": skipped,
        "sent": segments - skipped,
        "puts": again["puts"],
    }


def attempt(arguments: tuple[str, ...], *, kill_at: int) -> dict[str, Any]:
    """One run in a child; how it ended, before what it was killed, and how many uploads of segments it began."""
    read, write_end = os.pipe()
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            os.close(read)
            os.dup2(out.fileno(), 1)
            arm(kill_at, write_end)
            sys.argv = ["pve-zfsbackup", *arguments]
            cli.main()
        os.close(write_end)
        with os.fdopen(read) as pipe:
            lines = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        # What it had started may still be at work; it ends by itself when its pipes are gone.
        subprocess.run(("sh", "-c", "while pgrep -x 'sftp|age|zstd' >/dev/null; do sleep 0.2; done"), check=True)
        out.seek(0)
        text = out.read()
    killed = next((line.removeprefix("kill ") for line in lines if line.startswith("kill ")), "")
    puts = sum(line == "put" for line in lines)
    return {"code": os.waitstatus_to_exitcode(status), "at": killed, "out": text, "puts": puts}


def arm(kill_at: int, pipe: int) -> None:
    count = 0

    def before(argv: Any) -> None:
        nonlocal count
        count += 1
        if argv[0] == "sftp" and argv[1].startswith("put "):
            os.write(pipe, b"put\n")
        if count == kill_at:
            os.write(pipe, f"kill {' '.join(argv)[-100:]}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(method: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            before(args[place])
            return method(self, *args, **kwargs)

        return call

    asked = sftp.Sftp.batch

    def batch(self: sftp.Sftp, lines: Sequence[str], *args: Any) -> sftp.Session:
        if lines:
            before(("sftp", next((line for line in lines if line.startswith("put ")), lines[0])))
        return asked(self, lines, *args)

    sftp.Sftp.batch = batch  # type: ignore[method-assign, assignment]
    runner.ProcessRunner.run = watched(runner.ProcessRunner.run, 0)  # type: ignore[method-assign]
    programs.ProcessPrograms._start = watched(programs.ProcessPrograms._start, 2)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
