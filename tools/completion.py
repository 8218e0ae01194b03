"""Write the bash, zsh and fish completion of pve-zfsbackup: `completion.py DIRECTORY`.

They are click's own, written to files when the package is built, so that no shell starts Python before somebody
presses TAB behind the command. What is offered comes from the program itself and cannot be out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from pve_zfsbackup.cli import cli

PROGRAM = "pve-zfsbackup"
VARIABLE = "_PVE_ZFSBACKUP_COMPLETE"  # what click derives from the program's name


# How the file for zsh ends. The first TAB loads it as a function: older clicks (8.1.3) only register another one then,
# and nothing is offered until the second TAB.
ENDING = """\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    {function} "$@"
else
    compdef {function} {program}
fi
"""


def source(complete: type[ShellComplete]) -> str:
    """The shell code. The base class's method: bash's own starts a bash to look at its version."""
    made = complete(cli, {}, PROGRAM, VARIABLE)
    text = ShellComplete.source(made).strip() + "\n"
    if complete is not ZshComplete or "loadautofunc" in text:
        return text
    head, found, _ = text.rpartition("\ncompdef ")
    if not found:
        raise ValueError("click's completion for zsh does not register itself any more")
    return head + "\n" + ENDING.format(function=made.func_name, program=PROGRAM)


def write(directory: Path) -> None:
    for path, complete in (
        (directory / "bash" / PROGRAM, BashComplete),
        (directory / "zsh" / f"_{PROGRAM}", ZshComplete),
        (directory / "fish" / f"{PROGRAM}.fish", FishComplete),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source(complete), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    write(Path(sys.argv[1]))
