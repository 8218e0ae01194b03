"""The way back: restore and rollback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence, Set
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.archive_read import Reader
from pve_zfsbackup.app.archive_restore import Restorer, choose, write_config
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.catalog import read_catalog
from pve_zfsbackup.app.files import Request as FileRequest
from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.proving import restore_on_record, rollback_on_record
from pve_zfsbackup.app.restore import Request, Restored, plan_of, prepare, restoring_alone, tell_elsewhere
from pve_zfsbackup.app.restore_box import Boxed, boxed, named_point
from pve_zfsbackup.app.rollback import RolledBack, prepare_rollback, rolling_alone
from pve_zfsbackup.app.session import Session, timezone
from pve_zfsbackup.cli.archive import IDENTITY, noting, vault_of
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.files import restore_files
from pve_zfsbackup.cli.options import common, session_of, tell_notes
from pve_zfsbackup.config import load_config
from pve_zfsbackup.errors import ConfigError, ExitCode
from pve_zfsbackup.host.lock import reading
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset, Vmid, printable
from pve_zfsbackup.report.archive import restored_json, restored_table
from pve_zfsbackup.report.restore import restore_json, restore_lines, rollback_json, rollback_lines

VMID = click.IntRange(100, 999_999_999)
NO_VMID = 0


@cli.command()
@click.argument("vmid", type=VMID)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--files", "as_files", is_flag=True, help="List or copy files of the point; make no guest.")
@click.option(
    "--at",
    default="",
    metavar="TIME|POINT",
    help="The newest point not after a time, or this one. Without: the newest.",
)
@click.option(
    "--from",
    "where",
    default="",
    metavar="HOST|BOX",
    help="source, a target, or a storage box. Without: the nearest that has the newest.",
)
@click.option("--disk", "disks", multiple=True, metavar="KEY", help="Only this disk, such as scsi1. Repeatable.")
@click.option("--as", "new", type=VMID, metavar="VMID", help="Make another guest of it, with addresses of its own.")
@click.option(
    "--replace",
    type=VMID,
    metavar="VMID",
    help="Take the place of this guest, which must be stopped; its disks are kept aside.",
)
@click.option("--storage", "storages", multiple=True, metavar="[OLD:]NEW", help="Where disks go to. Repeatable.")
@click.option(
    "--node",
    default="",
    metavar="NODE",
    help="The node of the cluster that gets the guest. Of another than this one, what to run there is told.",
)
@click.option("--start", is_flag=True, help="Start the guest when it is restored.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--to",
    "root",
    default="",
    metavar="DATASET|DIRECTORY",
    help="From a box, on any host: receive the disks below this, make no guest. With --files: copy to this directory.",
)
@click.option("--overwrite", is_flag=True, help="With --files: replace files that are there.")
@click.option(
    "--local",
    default="",
    metavar="ROOT",
    help="With --files, as root on a target: the replicas below this dataset.",
)
@click.option("--identity", type=IDENTITY, help="From a box: file with the age identity from the safe.")
@click.option(
    "--older", is_flag=True, help="From a box: take what there is, although newer points were seen, which are gone."
)
@click.option("--point", default="", hidden=True)
@click.option(
    "--config-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(),
    help="With --to: where the guest's configuration is written to. Without: here.",
)  # fmt: skip
@common
def restore(
    vmid: int, paths: Sequence[str], as_files: bool, at: str, where: str, disks: Sequence[str], new: int | None,
    replace: int | None, storages: Sequence[str], node: str, start: bool, dry_run: bool, yes: bool, root: str,
    overwrite: bool, local: str, identity: Path | None, older: bool, point: str, config_dir: Path, config_path: Path,
    as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Make a guest, or some of its disks, of a recovery point.

    The plan is shown first. Nothing that exists is overwritten; run again after an interruption, it goes on where it
    was. With --to, the disks of a point in a box are received on any host with OpenZFS, and nothing else is done.
    With --node and another node's name nothing is done: what to run there is told, and the exit status is 2.

    With --files, file systems of the point are opened for reading only: without PATH their tops are listed, with one it
    is, and with --to it is copied. PATH is as in the guest, or in one file system: scsi0-part2:/etc/fstab.
    """
    of_guests = (("--as", new), ("--replace", replace), ("--storage", storages), ("--node", node), ("--start", start))
    if as_files:
        _no_guest("--files", [*of_guests, ("--dry-run", dry_run), ("--identity", identity)])
        if local and where:
            raise ConfigError(["--from and --local name two places"])
        wish = FileRequest(
            vmid=Vmid(vmid), at=at or point, where=where, paths=tuple(paths), disks=frozenset(disks),
            into=Path(root).absolute() if root else None, overwrite=overwrite,
        )  # fmt: skip
        return restore_files(wish, root=local, config_path=config_path, as_json=as_json)
    if paths or overwrite or local:
        raise ConfigError(["paths, --overwrite and --local go with --files"])
    if root:
        _no_guest("--to", of_guests)
        with reading(load_config(config_path).runtime_dir):
            return _below(
                vmid, box=where, root=root, identity=identity, at=at or point, older=older, disks=frozenset(disks),
                dry_run=dry_run, config_dir=config_dir, config_path=config_path, as_json=as_json, verbose=verbose,
            )  # fmt: skip
    request = Request(
        vmid=Vmid(vmid),
        at=at or point,
        where=where,
        new=new or NO_VMID,
        replace=replace or NO_VMID,
        disks=frozenset(disks),
        storages=storage_map(storages),
    )
    with (
        terminal.Reporter(verbose=verbose, quiet=as_json) as reporter,
        session_of(config_path, reporter.emit) as session,
        restoring_alone(session),
        contextlib.ExitStack() as stack,
    ):
        box = None
        if where in session.config.boxes:
            if identity is None:
                raise ConfigError(["--from BOX needs --identity FILE, with the age identity from the safe"])
            box = stack.enter_context(
                boxed(session, request, identity, older=older, note=noting(verbose))
            )
            for problem in box.problems:
                terminal.note(problem)
        if node and node != session.node:
            given = (("--identity", identity), ("--older", older), ("--start", start))
            words = ((name,) if value is True else (name, str(value)) for name, value in given if value)
            more = [word for pair in words for word in pair]
            done = tell_elsewhere(session, request, node, more, origin=box.origin if box else None)
        else:
            done = _here(session, request, box, start=start, dry_run=dry_run, yes=yes, quiet=as_json)
    if as_json:
        terminal.print_json(restore_json(done))
    else:
        _say(restore_lines(done))
    good = done.done or (dry_run and not done.plan.conflicts)
    return ExitCode.FAILED if not good else ExitCode.PARTIAL if done.error else ExitCode.OK


def _here(
    session: Session, request: Request, box: Boxed | None, *, start: bool, dry_run: bool, yes: bool, quiet: bool
) -> Restored:
    """Plan the restore on this node and, confirmed, carry it out."""
    prepared = plan_of(session, inventory(session), request.wish, box.origin) if box else prepare(session, request)
    planned = Restored(plan=prepared.plan)
    if dry_run or planned.plan.conflicts:
        return planned
    _confirm(restore_lines(planned), yes=yes, quiet=quiet)
    done, untold = restore_on_record(session, prepared, box.supply if box else None, start=start)
    tell_notes(untold)
    return done


@cli.command()
@click.argument("vmid", type=VMID)
@click.option(
    "--at", required=True, metavar="TIME|POINT", help="This point of this node, or the newest not after a time."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def rollback(
    vmid: int, at: str, dry_run: bool, yes: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:  # fmt: skip
    """Give a stopped guest's disks the content of a point, in place.

    A point of how it is now is made first. What is newer is kept aside, never destroyed. Proxmox's newer snapshots of
    the guest stand in the way: remove them first.
    """
    with (
        terminal.Reporter(verbose=verbose, quiet=as_json) as reporter,
        session_of(config_path, reporter.emit) as session,
        rolling_alone(session),
    ):
        plan = prepare_rollback(session, Vmid(vmid), at)
        done = RolledBack(plan=plan)
        if not dry_run and not plan.conflicts:
            _confirm(rollback_lines(done), yes=yes, quiet=as_json)
            done, untold = rollback_on_record(session, plan)
            tell_notes(untold)
    if as_json:
        terminal.print_json(rollback_json(done))
    else:
        _say(rollback_lines(done))
    return ExitCode.FAILED if plan.conflicts else ExitCode.OK


def _no_guest(option: str, others: Sequence[tuple[str, object]]) -> None:
    """Raises `ConfigError` where something was given that this way, which makes no guest, has no use for."""
    if given := [name for name, value in others if value]:
        raise ConfigError([f"{option} makes no guest: {', '.join(given)} cannot go with it"])


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        terminal.say(printable(line))


def _confirm(plan: Sequence[str], *, yes: bool, quiet: bool) -> None:
    """Show the plan and ask. Raises `ConfigError` where nobody can be asked."""
    if not quiet:
        _say(plan)
    if yes:
        return
    if quiet or not sys.stdin.isatty():
        raise ConfigError(["not confirmed: nobody can be asked here"], hint="--yes says it beforehand")
    click.confirm("Do it?", abort=True)


def storage_map(storages: Sequence[str]) -> dict[str, str]:
    """`OLD:NEW`, or `NEW` for all of them."""
    pairs = (text.rpartition(":") for text in storages)
    return {old: new for old, _, new in pairs}


def _below(
    vmid: int, *, box: str, root: str, identity: Path | None, at: str, older: bool, disks: Set[str], dry_run: bool,
    config_dir: Path, config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Receive a guest's disks from a box: all it needs is the box, the age identity and the file with the signers."""
    if not box or identity is None:
        raise ConfigError(["--to needs --from BOX and --identity FILE"])
    vault = vault_of(config_path, box)
    catalog = read_catalog(vault, identity=identity)
    for problem in catalog.all_problems:
        terminal.note(problem)
    point = named_point(catalog, Vmid(vmid), at, timezone(load_config(config_path)))
    choice = choose(catalog, Vmid(vmid), point, older=older)
    with vault.store.kept(), vault.scratch() as spool:
        reader = Reader(vault=vault, spool=spool, stamina=Stamina(seconds=vault.box.retry_hours * 3600))
        restorer = Restorer(
            reader=reader,
            host=Host(name=SOURCE, runner=vault.seal.runner),
            root=Dataset(root),
            identity=identity,
            note=noting(verbose),
        )
        found = tuple(restorer.planned(choice, disks)) if dry_run else restorer.restore(choice, disks)
    files = [] if dry_run else [str(path) for path in write_config(choice, config_dir)]
    archived = choice.content.archived
    name = archived.point if archived else ""
    if as_json:
        terminal.print_json(restored_json(name, found, files, done=not dry_run))
    else:
        terminal.print_table(restored_table(found, done=not dry_run))
        told = "would be restored" if dry_run else f"is restored; its configuration: {', '.join(files) or 'none'}"
        terminal.say(f"{name} {told}")
    return ExitCode.PARTIAL if catalog.all_problems else ExitCode.OK
