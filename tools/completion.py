"""Write the bash and zsh completion of pve-zfsbackup: `completion.py DIRECTORY`.

They are click's own, written to files when the package is built, so that no shell starts Python before somebody
presses TAB behind the command. What is offered comes from the program itself and cannot be out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.shell_completion import BashComplete, ShellComplete, ZshComplete

from pve_zfsbackup.cli import cli

PROGRAM = "pve-zfsbackup"
VARIABLE = "_PVE_ZFSBACKUP_COMPLETE"  # what click derives from the program's name


def source(complete: type[ShellComplete]) -> str:
    """The shell code. The base class's method: bash's own starts a bash to look at its version."""
    return ShellComplete.source(complete(cli, {}, PROGRAM, VARIABLE)).strip() + "\n"


def write(directory: Path) -> None:
    for path, complete in (
        (directory / "bash" / PROGRAM, BashComplete),
        (directory / "zsh" / f"_{PROGRAM}", ZshComplete),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source(complete), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    write(Path(sys.argv[1]))
