"""`report`: the page for people, into a file, to standard output or by mail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, session_of, tell_errors
from pve_zfsbackup.config.kinds import MAIL
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.host.notify import Attachment, mail
from pve_zfsbackup.host.private import write_output
from pve_zfsbackup.model import Selector


class MailType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.2
    """An address as `alerts: mail` takes it."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(MAIL.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@cli.command()
@scoped
@click.option("--output", type=click.Path(path_type=Path), help="Replace this file instead of printing.")
@click.option("--mail", "to", type=MailType(), multiple=True, help="Send it there through sendmail. Repeatable.")
@common
def report(
    guests: Sequence[Selector], jobs: Sequence[str], output: Path | None, to: Sequence[str], config_path: Path,
    as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Write a report as one HTML file: protection, timeline, space, freeze windows, runs.

    It needs no network and no script, reads well on a phone and prints. A new file is readable by root only.
    """
    from pve_zfsbackup.report.page import overview_json, report_page, report_summary  # noqa: PLC0415 - others need it not

    with session_of(config_path) as session:
        found = overview(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        page = report_page(found)
        if to:
            level = found.health.level.name
            attached = Attachment(name=f"pve-zfsbackup-{found.node}.html", type="text/html", text=page)
            mail(session.runner, to, f"[{found.node}] backup report: {level}", report_summary(found), attached)
    if as_json:
        terminal.print_json(overview_json(found))
    elif output:
        write_output(output, page, mode=output.stat().st_mode & 0o777 if output.exists() else 0o600)
    elif not to:
        terminal.say(page.rstrip("\n"))
    tell_errors(found.history.errors.values())
    return ExitCode.PARTIAL if found.history.errors else ExitCode.OK
