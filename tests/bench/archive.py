"""Archive and restore against the least possible, on this machine: `python -m tests.bench.archive [MIB [TIMES]]`.

The stream comes from a file (`cat` for `zfs send`), zstd, age, sshd and sftp are real, the server is on loopback.
Floors: `cat | zstd -T0 | age | ssh 'cat >'` (everything at once: no SFTP client takes a pipe) and the same into a file
that `sftp` then puts. All of them run in turn, several times, so that what else the machine does meets each of them.
Results, with CPU seconds of all processes and the peak of our own memory, go to build/archive-bench.json.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.host.seal import LEVEL
from tests.archive.bench import Bench, FakeZfsPrograms
from tests.archive.sshd import Sshd, serving
from tests.lab.lab import TREE

RESULT = TREE / "build/archive-bench.json"
MIB = 1 << 20
REACH = 0.9  # of the floor's throughput (issue 5)
SEGMENT_MIB = 256


class FilePrograms(FakeZfsPrograms):
    """`zfs send` is `cat` of the file, `zfs receive` forgets what it gets."""

    file: Path

    def _argv(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        if argv[:2] == ("zfs", "send"):
            return ("cat", str(self.file))
        return ("dd", "of=/dev/null", "bs=1M", "status=none") if argv[:2] == ("zfs", "receive") else argv


@dataclass
class Contest:
    """One kind of data. `place` has the file and all that is made of it."""

    place: Path
    mib: int
    compressible: bool
    sshd: Sshd
    open_sshd: Sshd
    segment_mib: int = SEGMENT_MIB

    def prepare(self) -> None:
        self.file = self.place / "stream"
        block = os.urandom(MIB)
        with open(self.file, "wb") as out:
            for number in range(self.mib):
                piece = os.urandom(2048) * (MIB // 2048) if self.compressible else os.urandom(MIB)
                out.write(piece if number % 4 or not self.compressible else block)
        self.bench = Bench(self.place / "ours", segment_mib=self.segment_mib)
        programs = FilePrograms(self.place / "zfs")
        programs.file = self.file
        self.bench.programs = programs
        store = self.sshd.store("ours")
        vault = self.bench.vault
        seal = replace(vault.seal, programs=programs)
        self.bench.vault = replace(vault, store=store, seal=seal, box=replace(vault.box, connections=4))

    def archive(self) -> None:
        """A point in full; the streams of the test's bench are a few bytes, ours come from the file."""
        self.number = getattr(self, "number", 0) + 1
        with self.bench.vault.store.kept():  # as in `archive`: reading the catalog and all points share connections
            self.bench.write(self.number, {"scsi0": b""}, parent=False)

    def restore(self) -> None:
        with self.bench.vault.store.kept(), self.bench.vault.scratch() as spool:  # as in `restore`
            content = self.bench.catalog().shelves[-1].contents[-1]
            (stream,) = require_inner(content).streams
            reader = Reader(vault=self.bench.vault, spool=spool, stamina=Stamina(seconds=0))
            done = reader.receive(content, stream, self.bench.identity, ("zfs", "receive", "x"))
        assert done.returncode == 0, done.stderr

    def floor(self, tail: str) -> None:
        recipients = shlex.quote(str(self.bench.vault.box.recipients_file))
        head = f"cat {shlex.quote(str(self.file))} | zstd -q -c -T0 {LEVEL} | age -R {recipients}"
        self._shell(f"set -o pipefail; {head} {tail}")

    def streamed(self) -> None:
        self.floor(f"| {self._client('ssh', self.open_sshd)} {shlex.quote(f'cat > {self.place}/floor')}")

    def put(self) -> None:
        put = f"echo put {self.place}/spooled floor | {self._client('sftp', self.sshd)}"
        self.floor(f"> {self.place}/spooled && {put.replace('sftp ', 'sftp -q -b - ', 1)} > /dev/null")

    def back(self) -> None:
        """What `streamed` left, the other way."""
        fetch = f"{self._client('ssh', self.open_sshd)} {shlex.quote(f'cat {self.place}/floor')}"
        identity = shlex.quote(str(self.bench.identity))
        self._shell(
            f"set -o pipefail; {fetch} | age -d -i {identity} | zstd -q -d -c | cat > /dev/null"
        )

    def _client(self, program: str, sshd: Sshd) -> str:
        port = "-p" if program == "ssh" else "-P"
        options = f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={sshd.place}/known_hosts -i {sshd.place}/id"
        return f"{program} {options} {port} {sshd.port} root@127.0.0.1"

    def _shell(self, text: str) -> None:
        subprocess.run(("bash", "-c", text), check=True)


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and the children that ended (not of the server)."""
    before = _cpu()
    begun = time.monotonic()
    work()
    return time.monotonic() - begun, _cpu() - before


def _cpu() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(arguments: list[str]) -> int:
    mib, times = (int(text) for text in [*arguments, *("1024", "3")[len(arguments) :]][:2])
    results: list[dict[str, Any]] = []
    for compressible in (True, False):
        with tempfile.TemporaryDirectory(prefix="pzb-bench-", dir="/var/tmp") as scratch:
            place = Path(scratch)
            with serving(place / "sshd") as sshd, serving(place / "open", command="") as other:
                contest = Contest(place, mib, compressible, sshd, other)
                contest.prepare()
                ways = {
                    "archive": contest.archive, "floor ssh cat": contest.streamed, "floor file, then sftp": contest.put,
                    "restore": contest.restore, "floor of restoring": contest.back,
                }  # fmt: skip
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
                for _ in range(times):
                    for name, work in ways.items():
                        found[name].append(measured(work))
                        print(f"{'text' if compressible else 'noise'} {name}: {found[name][-1]}", flush=True)
        for name, pairs in found.items():
            walls = [wall for wall, _ in pairs]
            results.append(
                {
                    "compressible": compressible,
                    "what": name,
                    "mib": mib,
                    "seconds": walls,
                    "mib_per_second": round(mib / statistics.median(walls), 1),
                    "cpu_seconds": round(statistics.median(cpu for _, cpu in pairs), 2),
                }
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    about = {"load": os.getloadavg(), "cores": os.cpu_count(), "own_peak_mib": peak, "results": results}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(about, indent=1) + "\n")
    for row in results:
        kind = "text" if row["compressible"] else "noise"
        print(f"{kind:6} {row['what']:24} {row['mib_per_second']:8.1f} MiB/s  {row['cpu_seconds']:6.1f} s CPU")
    print(f"peak of our process: {peak} MiB; load {about['load']}, {about['cores']} cores")
    both = [_reached(results, kind) for kind in (True, False)]  # each says it
    return 0 if all((*both, small(peak, SEGMENT_MIB))) else 1


def small(peak: int, segment: int) -> bool:
    """Whether our process never had more than four slices and 80 MiB; all in MiB. zstd, age and sftp hold less each."""
    most = 4 * segment + 80
    print(f"{'reached' if peak <= most else 'MISSED'}: memory {peak} MiB; wanted {most} MiB")
    return peak <= most


def _reached(results: list[dict[str, Any]], compressible: bool) -> bool:
    """Ours as parts of the floors' throughput; the streaming floor counts, though no SFTP server offers it."""
    speed = {row["what"]: row["mib_per_second"] for row in results if row["compressible"] is compressible}
    parts = {
        "archive of ssh cat": speed["archive"] / speed["floor ssh cat"],
        "archive of file, then sftp": speed["archive"] / speed["floor file, then sftp"],
        "restore": speed["restore"] / speed["floor of restoring"],
    }
    told = ", ".join(f"{name} {part:.2f}" for name, part in parts.items())
    good = parts["archive of ssh cat"] >= REACH and parts["restore"] >= REACH
    print(f"{'reached' if good else 'MISSED'} ({'text' if compressible else 'noise'}): {told}; wanted {REACH}")
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
