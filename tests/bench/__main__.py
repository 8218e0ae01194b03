"""`make bench`: replication, pruning and snapshots against the least possible and against the peers, in the lab.

Results go to build/bench.json and build/bench.svg after every single run, a table to standard output at the end.
Exit status 1 when a number of ours is void.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import archive, plot, results, setting
from tests.bench.contenders import ALL, OURS
from tests.bench.results import Run
from tests.bench.workloads import WORKLOADS, Bench
from tests.lab.host import Host
from tests.lab.lab import TREE, LabError, borrowed

BUILD = TREE / "build"
ARCHIVE = "archive"  # on this machine, before the lab is up
KNOWN = {ARCHIVE: archive.main, **WORKLOADS}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    chosen = _parse(arguments)
    started = time.monotonic()
    code = 0
    if ARCHIVE in chosen.what:
        code = archive.main(["1024", str(chosen.repeat)])
        chosen.what.remove(ARCHIVE)
        if not chosen.what:
            return code
    try:
        with borrowed() as lab:
            product = setting.prepare(lab)
            about = _about(lab.pve1, chosen)
            bench = Bench(
                product=product,
                contenders=[ALL[name] for name in chosen.who],
                repeat=chosen.repeat,
                note=lambda runs: _write(chosen.out, about, runs),
            )
            for name in chosen.what:
                WORKLOADS[name](bench, name)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(results.table(bench.runs))
    print(f"\n{time.monotonic() - started:.0f} s; all runs: {chosen.out}.json, plot: {chosen.out}.svg")
    return 1 if any(run.void for run in bench.runs if run.contender == OURS.name) else code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--what", type=_names(KNOWN), default=list(KNOWN), help=", ".join(KNOWN))
    parser.add_argument("--who", type=_names(ALL), default=list(ALL), help=", ".join(ALL))
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--out", type=Path, default=BUILD / "bench", help="results, without the suffix")
    parser.add_argument("--note", default="", help="written into the results, such as what else ran on the machine")
    return parser.parse_args(arguments)


def _names(known: dict[str, Any]) -> Any:
    def split(text: str) -> list[str]:
        wanted = [name for name in text.split(",") if name]
        if not wanted:
            return list(known)
        if unknown := set(wanted) - known.keys():
            raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return wanted

    return split


def _about(host: Host, chosen: argparse.Namespace) -> dict[str, Any]:
    """Where and with what; versions as the host's own programs tell them."""
    script = (
        "echo $(zfs version | head -n1); ssh -V 2>&1; dpkg-query -W -f '${Package} ${Version}\\n' sanoid pve-zfsbackup"
    )
    git = ("git", "-C", str(TREE), "describe", "--always", "--dirty")
    return {
        "format": 1,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "versions": [*host.script(script).lines, *(setting.HERE / "peers.txt").read_text().split()],
        "machine": f"{platform.machine()}, lab hosts under QEMU",
        "note": chosen.note,
        "repeat": chosen.repeat,
    }


def _write(out: Path, about: dict[str, Any], runs: Sequence[Run]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(results.as_json(about, runs), indent=1) + "\n")
    compared = [line for line in results.lines(runs) if line.contender in ALL]
    title = f"Seconds as multiples of the floor, medians ({about['when']}, {about['commit']})"
    out.with_suffix(".svg").write_text(plot.svg(compared, title))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
