"""`restore --files`: single files of a point."""

from __future__ import annotations

from pathlib import Path

from pve_zfsbackup import terminal
from pve_zfsbackup.app.files import Browsed, Request, at_root, browse, on_node
from pve_zfsbackup.app.session import timezone
from pve_zfsbackup.cli.options import session_of
from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.host.lock import reading
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.model import Dataset, printable
from pve_zfsbackup.report.files import copied_lines, entries_table, files_json, problem_lines, systems_table


def restore_files(request: Request, *, root: str, config_path: Path, as_json: bool) -> int:
    """List or copy, on the node or, with a `root`, on a host that has replicas below it."""
    if root:
        config = load_config(config_path) if config_path.exists() else Config()
        with reading(config.runtime_dir):
            opening = at_root(config, ProcessRunner(), Dataset(root), request, timezone(config))
            browsed = browse(opening, request, config)
    else:
        with session_of(config_path) as session, reading(session.config.runtime_dir):
            config = session.config
            browsed = browse(on_node(session, request), request, config)
    if as_json:
        terminal.print_json(files_json(browsed))
    else:
        _show(browsed, request, config)
    return _exit_code(browsed)


def _show(browsed: Browsed, request: Request, config: Config) -> None:
    for note in browsed.notes:
        terminal.note(note)
    if request.into:
        for line in copied_lines(browsed, str(request.into)):
            terminal.say(printable(line))
    else:
        if not request.paths:
            terminal.print_table(systems_table(browsed))
        for shown in browsed.found.shown:
            terminal.print_table(entries_table(shown, timezone(config)))
    for line in problem_lines(browsed):
        terminal.note(line)


def _exit_code(browsed: Browsed) -> ExitCode:
    found = browsed.found
    some = found.copied.files if found.copied else len(found.shown)
    if not list(problem_lines(browsed)):
        return ExitCode.OK
    return ExitCode.PARTIAL if some else ExitCode.FAILED
