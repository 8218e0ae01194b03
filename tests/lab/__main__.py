"""`python3 -m tests.lab up`: the lab for a person. `python3 -m tests.lab image`: only build its image."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from types import FrameType

from tests.lab import image, setup
from tests.lab.lab import Lab
from tests.lab.machine import LabError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    parser.add_argument("command", choices=("up", "image"))
    chosen = parser.parse_args(arguments).command
    # A plain termination must take the tidy way out, too.
    signal.signal(signal.SIGTERM, _leave)
    try:
        if chosen == "image":
            print(image.ensure().directory)
        else:
            _up()
    except (LabError, image.ImageError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted, everything ended", file=sys.stderr)
        return 130
    return 0


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _up() -> None:
    with Lab() as lab:
        lab.provision()
        setup.trust(lab.pve1, lab.backup1)
        print("\nThe lab is up. Each host as root, from another terminal:", file=sys.stderr)
        for host in lab.hosts.values():
            print(f"  {host.name:8} {shlex.join(host.shell_command)}", file=sys.stderr)
        print(f"Serial logs: {lab.logs}; to run tests against it: PZB_LAB_ATTACH={lab.run}", file=sys.stderr)
        if sys.stdin.isatty():
            print("This is a shell on pve1; leaving it ends the lab.\n", file=sys.stderr, flush=True)
            subprocess.run(lab.pve1.shell_command, check=False)
        else:
            print("Standard input is no terminal: running until terminated.", file=sys.stderr, flush=True)
            while True:
                signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
