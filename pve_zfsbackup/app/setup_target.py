"""`setup target`: a host that takes replicas, and what this node knows of it. Repeatable: what is right stays so.

On the target everything is one script (target.sh), run once over an administrator's own ssh, or printed for one who
runs it by hand. From then on the node has its own key there, and the host's key here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Final

from pve_zfsbackup.app.session import destination_of
from pve_zfsbackup.app.setup import ssh_key
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.target_check import Checked, check_target
from pve_zfsbackup.app.target_choice import Asked, added, choose, place, section
from pve_zfsbackup.app.target_hostkey import FINGERPRINT, HostKey, KnownHosts, host_keys
from pve_zfsbackup.app.target_script import PublicKey, Told, Wanted, read_answer, script
from pve_zfsbackup.config import Config, Target, load_config
from pve_zfsbackup.errors import CommandError, ConfigError, HostUnreachableError
from pve_zfsbackup.host.guests import node_name
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.host.runner import ProcessRunner, Runner
from pve_zfsbackup.host.ssh import SSH_FAILED, Host, connected
from pve_zfsbackup.model import SOURCE

_AS_ROOT: Final = 'if [ "$(id -u)" = 0 ]; then exec sh -s -- "$@"; else exec sudo -n sh -s -- "$@"; fi'
_PATIENCE: Final = 900.0  # somebody may have to type a passphrase

Confirm = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is asked, and where from. `confirm` asks a person; it says no where there is none.

    `accepted` is the fingerprint of a host key that a person vouches for.
    """

    asked: Asked
    config_file: Path
    runner: Runner = field(default_factory=ProcessRunner)
    accepted: str = ""
    dry_run: bool = False
    confirm: Confirm = lambda _: False
    pve_root: Path = Path("/etc/pve")
    agent: str = field(default_factory=lambda: os.environ.get("SSH_AUTH_SOCK", ""))
    now: Callable[[], float] = time

    def config(self) -> Config:
        return load_config(self.config_file) if self.config_file.exists() else Config()


def target_script(preparation: Preparation) -> str:
    """The script that makes the target what is asked, to be run there as root. Raises `ConfigError`."""
    config = preparation.config()
    target = choose(config, preparation.asked)
    return script(_wanted(preparation, target))


def setup_target(preparation: Preparation) -> tuple[Action, ...]:
    """Make what is missing, there and here, and see that it works. Ends at the first thing that stands in the way.

    Raises `ConfigError` for what is asked wrong, `CommandError` and `OSError` when something breaks; what was done
    before stays, and repeating it goes on from there.
    """
    config = preparation.config()
    if preparation.accepted and not FINGERPRINT.match(preparation.accepted):
        raise ConfigError(["--accept-hostkey: expected a fingerprint as ssh-keygen -l shows it: SHA256:…"])
    target = choose(config, preparation.asked)
    node = node_name(config.api.node or "")
    found = [ssh_key(preparation.runner, target.identity_file, node, dry_run=preparation.dry_run)]
    if not _public(target).exists():
        return tuple(found)  # of a dry run: without the key nothing more can be said
    known: tuple[HostKey, ...] = ()
    if preparation.asked.admin:
        told = _as_administrator(preparation, script(_wanted(preparation, target)))
        known = host_keys(told.host_keys)
        found += told.actions
    if not _failed(found):
        found.append(_host_key(preparation, target, known))
    if not _failed(found):
        found.append(_configured(preparation, config, target))
        found += () if preparation.dry_run else _checked(preparation, config, target)
    return tuple(found)


def check(preparation: Preparation) -> tuple[Action, ...]:
    """What is right and wrong with the target, seen over its own account. Changes nothing. Raises `ConfigError`."""
    config = preparation.config()
    return _checked(preparation, config, choose(config, preparation.asked))


def _wanted(preparation: Preparation, target: Target) -> Wanted:
    try:
        key = PublicKey.parse(_public(target).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        raise ConfigError([f"{_public(target)} is missing"], hint="`pve-zfsbackup setup` makes the key") from None
    except ValueError as error:
        raise ConfigError([f"{_public(target)}: {error}"]) from None
    return Wanted(
        account=target.user,
        root=target.root,
        append_only=target.append_only,
        key=key,
        owner=owner_id(preparation.pve_root),
        keep=target.keep,
        clients=preparation.asked.clients,
    )


def _public(target: Target) -> Path:
    return target.identity_file.with_name(f"{target.identity_file.name}.pub")


def _as_administrator(preparation: Preparation, text: str) -> Told:
    """Run the script over the administrator's ssh, with whatever configuration, keys and agent that has."""
    where = place(preparation.asked.admin, "--admin")
    agent = ("-o", f"IdentityAgent={preparation.agent}") if preparation.agent else ()
    port = ("-p", str(where.port)) if where.port else ()
    mode = ("--dry-run",) if preparation.dry_run else ()
    client = ("ssh", "-T", "-o", "ForwardAgent=no", "-o", "ClearAllForwardings=yes", "-o", "ServerAliveInterval=15")
    spot = f"{where.user}@{where.host}" if where.user else where.host
    line = shlex.join(("sh", "-c", _AS_ROOT, "sh", *mode))
    argv = (*client, *agent, *port, "--", spot, line)
    done = preparation.runner.run(argv, input=text.encode("ascii"), timeout=_PATIENCE, check=False)
    said = "; ".join(done.stderr.strip().splitlines()[-3:])
    if done.returncode == SSH_FAILED:
        raise HostUnreachableError(
            f"ssh {spot}: {said or 'no message'}",
            hint="this is your own ssh, with your keys: does it log in by hand? Otherwise --print, and run it there",
        )
    try:
        return read_answer(done.stdout, spot)
    except CommandError as error:
        raise CommandError(f"{error.message}: {said or done.returncode}", hint=error.hint) from None


def _host_key(preparation: Preparation, target: Target, known: tuple[HostKey, ...]) -> Action:
    """Our known_hosts has the key the administrator's connection told; without one, a key a person vouches for."""
    hosts = KnownHosts(runner=preparation.runner, file=target.known_hosts_file, host=target.host, port=target.port)
    name = f"host key of {hosts.name}"
    pinned = hosts.pinned()
    if pinned and not preparation.accepted and (not known or set(pinned) & set(known)):
        return Action(object=name, state="right", detail=f"{pinned[0].fingerprint} in {hosts.file}")
    if pinned and known and not preparation.accepted:
        prints = ", ".join(key.fingerprint for key in known)
        return Action(
            object=name,
            state="failed",
            detail=f"pinned is {pinned[0].fingerprint}, and the host has {prints}. If that host was installed anew, "
            "accept its new key",
            command=f"--accept-hostkey {known[0].fingerprint}",
        )
    offered = known or hosts.scan()
    chosen = _vouched(preparation, name, offered, trusted=bool(known))
    if isinstance(chosen, Action):
        return chosen
    if chosen in pinned:
        return Action(object=name, state="right", detail=f"{chosen.fingerprint} in {hosts.file}")
    if not preparation.dry_run:
        hosts.pin(chosen)
    return Action(
        object=name,
        state="changed" if pinned else "created",
        detail=f"{chosen.kind} {chosen.fingerprint} in {hosts.file}",
        command=f"echo {shlex.quote(f'{hosts.name} {chosen.kind} {chosen.blob}')} >> {hosts.file}",
    )


def _vouched(preparation: Preparation, name: str, offered: tuple[HostKey, ...], *, trusted: bool) -> HostKey | Action:
    """The key to pin: the accepted one, the best one from a trusted connection, or one a person says yes to."""
    if preparation.accepted:
        wanted = preparation.accepted.rstrip("=")
        for key in offered:
            if key.fingerprint == wanted:
                return key
        prints = ", ".join(f"{key.kind} {key.fingerprint}" for key in offered)
        return Action(object=name, state="failed", detail=f"the accepted key is not there; the host has {prints}")
    best = offered[0]
    if trusted:
        return best
    if not preparation.dry_run and preparation.confirm(
        f"{name}: {best.kind} {best.fingerprint}\nIs that what `ssh-keygen -lf` on that host says of its own key?"
    ):
        return best
    return Action(
        object=name,
        state="failed",
        detail=f"nobody vouched for {best.kind} {best.fingerprint}: compare it with `ssh-keygen -lf "
        "/etc/ssh/ssh_host_*_key.pub` on that host",
        command=f"--accept-hostkey {best.fingerprint}",
    )


def _configured(preparation: Preparation, config: Config, target: Target) -> Action:
    """In the configuration: written where it is still as `setup` made it, otherwise told what to add. Nothing of ours
    is written below /etc/pve: the other nodes have no key for the target yet, and one of two editors would lose."""
    file = preparation.config_file
    name = f"target {target.name} in {file}"
    if target.name in config.targets:
        return Action(object=name, state="right")
    shared = file.resolve().is_relative_to(preparation.pve_root.resolve())
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    more = None if shared else added(text, target, str(file))
    if more is None:
        lines = f"targets:\n{section(target)}"
        why = "every node of the cluster reads this file: it" if shared else "the file was changed by hand and"
        told = f"{why} is left so; add this, and the target to its jobs"
        return Action(object=name, state="warning", detail=told, command=lines)
    if not preparation.dry_run:
        write_private(file, more)
    return Action(object=name, state="created", detail="and in its job", command=section(target))


def _checked(preparation: Preparation, config: Config, target: Target) -> tuple[Action, ...]:
    runner = preparation.runner
    host = Host(name=target.name, runner=runner, destination=destination_of(target, config.runtime_dir))
    with connected(host) as there:
        return check_target(
            Checked(
                target=target,
                host=there,
                local=Host(name=SOURCE, runner=runner),
                owner=owner_id(preparation.pve_root),
                now=int(preparation.now()),
            )
        )


def _failed(actions: list[Action]) -> bool:
    return any(action.state == "failed" for action in actions)
