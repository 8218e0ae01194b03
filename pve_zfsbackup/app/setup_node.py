"""`setup` as the command line calls it: on this node, with the configuration that is there, if any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pve_zfsbackup.app.gather import inventory_of
from pve_zfsbackup.app.setup import Settings, setup, unsetup
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.config import Api as ApiConfig
from pve_zfsbackup.config import load_config
from pve_zfsbackup.host.guests import node_name
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE


def setup_node(config_file: Path, *, dry_run: bool, remove: bool) -> tuple[Action, ...]:
    """Set this node up, or with `remove` take the account back. Raises what `setup` raises."""
    runner = ProcessRunner()
    api = load_config(config_file).api if config_file.exists() else ApiConfig()
    node = node_name(api.node or "")
    local = Host(name=SOURCE, runner=runner)
    settings = Settings(
        node=node, guests=lambda transport: inventory_of(transport, node, local).guests, config_file=config_file
    )
    settings = replace(settings, api=api, dry_run=dry_run)
    return unsetup(runner, settings) if remove else setup(runner, settings)
