"""What every command shares: its options, and the session it works with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.session import Session, open_session
from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Emit, Event
from pve_zfsbackup.model import Selector, parse_selector

CONFIG = Path("/etc/pve-zfsbackup/config.yaml")
CLUSTER_CONFIG = Path("/etc/pve/pve-zfsbackup.yaml")
F = TypeVar("F", bound=Callable[..., Any])


class SelectorType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.2
    """A guest on the command line: any selector the configuration knows."""

    name = "guest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Selector:
        try:
            return parse_selector(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def config_option(text: str) -> Callable[[F], F]:
    """`--config`, which the command gets as the file that counts: see `chosen`."""
    return click.option(
        "--config", "config_path", type=click.Path(path_type=Path), default=CONFIG, show_default=True, help=text,
        callback=lambda context, parameter, path: chosen(path),
    )  # fmt: skip


def common(function: F) -> F:
    """Options every command takes."""
    config = config_option("Configuration file.")
    as_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
    verbose = click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
    return config(as_json(verbose(function)))


def scoped(function: F) -> F:
    """Guests and jobs a command is narrowed down to."""
    guests = click.argument("guests", nargs=-1, type=SelectorType())
    jobs = click.option("--job", "jobs", multiple=True, help="Only the guests of this job. Repeatable.")
    return guests(jobs(function))


def silent(_: Event) -> None:
    """For questions: nothing happens that would be told."""


def session_of(path: Path, emit: Emit = silent) -> AbstractContextManager[Session]:
    """The session of a configuration file. Raises `ConfigError` at once."""
    return session_for(load_config(path), emit)


def session_for(config: Config, emit: Emit = silent) -> AbstractContextManager[Session]:
    """The session of a configuration that is loaded."""
    return open_session(config, emit)


def session_without_config(path: Path) -> AbstractContextManager[Session]:
    """A session also before there is a configuration; one that is there counts."""
    return open_session(load_config(path) if path.exists() else Config(), silent)


def chosen(path: Path) -> Path:
    """A cluster's shared configuration where the node has none of its own."""
    shared = path == CONFIG and not path.exists() and os.path.exists(CLUSTER_CONFIG)  # no fault when pmxcfs is dead
    return CLUSTER_CONFIG if shared else path


def tell_notes(notes: Iterable[str]) -> None:
    for text in notes:
        terminal.note(text)


def tell_errors(errors: Iterable[BackupError]) -> None:
    for error in errors:
        terminal.print_error(error)
