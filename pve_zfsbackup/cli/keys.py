"""`key`: of encrypted datasets, and of the archives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.archive_drill import drill as drill_box
from pve_zfsbackup.app.keys import Keyring, failed
from pve_zfsbackup.app.setup_box import escrow as escrow_box
from pve_zfsbackup.cli.archive import IDENTITY, noting, show_verification, vault_of
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, session_of
from pve_zfsbackup.config import load_config
from pve_zfsbackup.errors import ConfigError, ExitCode
from pve_zfsbackup.host.lock import ARCHIVES, reading, run_lock
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset
from pve_zfsbackup.report.setup import actions_json, actions_table

KEY_FILE = click.Path(path_type=Path, dir_okay=False, resolve_path=True)


@cli.group()
def key() -> None:
    """Keys of encrypted datasets and of the archives: make, test, change them, and bring them into the safe."""


@key.command("create")
@click.argument("dataset")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase instead of making a key file.")
@click.option(
    "--key-file", type=KEY_FILE,
    help="Raw key of 32 bytes to use, or to make if there is none. Without: a new one in /etc/pve-zfsbackup/keys.",
)  # fmt: skip
@common
def key_create(
    dataset: str, passphrase: bool, key_file: Path | None, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Make an encrypted DATASET (aes-256-gcm) and the key that opens it, a file of 32 random bytes. Safe to repeat."""
    given = _given(dataset, passphrase, key_file)
    actions = list(_keyring().create(Dataset(dataset), given))
    if as_json:
        terminal.print_json(actions_json(actions))
    else:
        terminal.print_table(actions_table(actions, commands=False))
        terminal.note(f"put its key into the safe: pve-zfsbackup key escrow {dataset}")
        terminal.note("after a boot it opens by itself only if a unit loads its key: man pve-zfsbackup-key-create")
    return ExitCode.OK


@key.command("test")
@click.argument("datasets", nargs=-1)
@click.option("--key-file", type=KEY_FILE, help="Whether this key opens them, such as the one from the safe.")
@common
def key_test(
    datasets: Sequence[str], key_file: Path | None, config_path: Path, as_json: bool, verbose: bool
) -> int:  # fmt: skip
    """Prove that encrypted datasets open with their keys (zfs load-key -n): all of this host, or DATASETS.

    Nothing is loaded or mounted. Replicas can be tested as well: on the other host, with a copy of the key.
    """
    names = tuple(Dataset(name) for name in datasets)
    if key_file and not names:
        raise click.UsageError("name the datasets that --key-file should open")
    actions = list(_keyring().test(names, key_file, _asked))
    if as_json:
        terminal.print_json(actions_json(actions))
    else:
        terminal.print_table(actions_table(actions, commands=False))
        if not actions:
            terminal.note("no dataset here is encrypted")
    some, all_of_them = failed(actions, names)
    return ExitCode.FAILED if all_of_them else ExitCode.PARTIAL if some else ExitCode.OK


@key.command("change")
@click.argument("dataset")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase instead of making a key file.")
@click.option("--key-file", type=KEY_FILE, help="Raw key of 32 bytes to use, or to make if there is none.")
@common
def key_change(
    dataset: str, passphrase: bool, key_file: Path | None, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Give the encrypted DATASET another key. The old one is tested and kept: archives and replicas need it.

    The replicas take the new key with the next increment of each disk. No data is encrypted anew.
    """
    with session_of(config_path) as session:
        config = session.config
        # Not between the streams of one point: all its disks shall open with one key.
        with run_lock(config.runtime_dir, "replicate"), run_lock(config.runtime_dir, "archive"):
            keyring = Keyring(host=session.hosts[SOURCE])
            given = _given(dataset, passphrase, key_file)
            actions, notes = keyring.change(Dataset(dataset), given, _asked, tuple(config.targets), tuple(config.boxes))
    if as_json:
        terminal.print_json({**actions_json(actions), "notes": list(notes)})
    else:
        terminal.print_table(actions_table(actions, commands=False))
        for text in notes:
            terminal.note(text)
    return ExitCode.OK


@key.command("escrow")
@click.argument("what", metavar="BOX|DATASET")
@common
def key_escrow(what: str, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Print what to put in the safe: of a box what belongs beside the age identity, which is no secret; of an
    encrypted dataset its keys, which are the secret."""
    config = load_config(config_path) if config_path.exists() else None
    if config and what in config.boxes:
        lines = list(escrow_box(vault_of(config_path, what)))
    else:
        try:
            lines = list(_keyring().escrow(Dataset(what)))
        except ConfigError as error:
            boxes = ", ".join(config.boxes) if config else ""
            raise ConfigError(error.problems, hint=error.hint or f"boxes: {boxes or 'none'}") from None
    if as_json:
        terminal.print_json({"format": 1, "lines": lines})
    else:
        for line in lines:
            terminal.say(line)
    return ExitCode.OK


@key.command("drill")
@click.argument("box")
@click.option("--identity", type=IDENTITY, required=True, help="File with the age identity from the safe.")
@common
def key_drill(box: str, identity: Path, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Prove that the identity from the safe opens the newest archive of each guest."""
    vault = vault_of(config_path, box)
    with reading(load_config(config_path).runtime_dir, ARCHIVES):
        found = drill_box(vault, identity, note=noting(verbose))
    return show_verification(found, as_json=as_json)


def _keyring() -> Keyring:
    return Keyring(host=Host(name=SOURCE, runner=ProcessRunner()))


def _given(dataset: str, passphrase: bool, key_file: Path | None) -> Path | str | None:
    if not passphrase:
        return key_file
    if key_file:
        raise click.UsageError("either --passphrase or --key-file")
    if sys.stdin.isatty():
        return str(click.prompt(f"New passphrase for {dataset}", hide_input=True, confirmation_prompt=True, err=True))
    return _line()


def _asked(dataset: Dataset) -> str:
    """The passphrase a dataset has, from the terminal or a line of standard input."""
    if sys.stdin.isatty():
        return str(click.prompt(f"Passphrase of {dataset}", hide_input=True, err=True))
    return _line()


def _line() -> str:
    return sys.stdin.readline().rstrip("\n")
