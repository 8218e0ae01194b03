"""The command line: parse, call the application, render, exit. No decisions.

Each module here registers its commands with the group `cli`, which imports it when one of them is called.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.errors import BackupError, ExitCode

__all__ = ["cli", "main"]


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM and SIGHUP end the run the orderly way: guests are thawed, children ended, tokens kept."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> NoReturn:
    """Entry point. Every way out has a documented exit code."""
    terminal.open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    code: int | None = ExitCode.FAILED
    try:
        code = cli.main(prog_name="pve-zfsbackup", standalone_mode=False)
    except Exception as error:
        code = _exit_code(error)
        with contextlib.suppress(OSError):  # the terminal may be gone
            _tell(error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
    terminal.settle_streams()
    sys.exit(int(code or 0))


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, BackupError):
        return error.exit_code
    return ExitCode.CONFIG if isinstance(error, click.ClickException) else ExitCode.FAILED


def _tell(error: Exception) -> None:
    if isinstance(error, BackupError):
        terminal.print_error(error)
    elif isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, click.exceptions.Abort):  # what click makes of `KeyboardInterrupt`
        print("interrupted", file=sys.stderr)
        for text in getattr(error.__context__, "__notes__", ()):  # bookworm's click raises it "from None"
            terminal.note(text)
    else:  # a bug of ours: Python's own exit status 1 would say "partly done"
        traceback.print_exception(error)
