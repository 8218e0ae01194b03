"""`setup target --check`: asks the target over the account that every run uses, and changes nothing there or here."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.target_judgement import COLUMNS, Heard, Hello, Side, judge, prepare_again
from pve_zfsbackup.config import Target
from pve_zfsbackup.errors import BackupError, CommandError, HostKeyError, ZfsError
from pve_zfsbackup.host.health import pool_of, pool_properties, state_argv
from pve_zfsbackup.host.runner import failure
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import SUSPENDED

_TIMEOUT = 60.0
_LIST = ("zfs", "list", "-Hp", "-d", "0", "-t", "filesystem,volume", "-o", ",".join(COLUMNS), "--")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Who is checked, from where, for whom. `now` is this node's clock, in seconds since 1970."""

    target: Target
    host: Host
    local: Host
    owner: str
    now: int


def check_target(checked: Checked) -> tuple[Action, ...]:
    """Everything that was looked at. What does not answer at all is a finding, too."""
    target = checked.target
    name = f"ssh {target.user}@{target.host}"
    try:
        hello, time = said_hello(checked.host)
    except BackupError as error:
        return (Action(object=name, state="failed", detail=error.message, command=_mend(error, target)),)
    right = Action(object=name, state="right", detail="answers, with the pinned host key")
    try:
        state = _pool_state(checked.host, target)
        if state == SUSPENDED:
            told = f"pool {pool_of(target.root)}"
            return right, Action(object=told, state="failed", detail="suspended", command="zpool status -v")
        heard = _heard(checked, hello, time, state)
    except BackupError as error:
        return right, Action(object=f"target {target.name}", state="failed", detail=error.message, command=error.hint)
    return (right, *judge(target, checked.owner, heard))


def _mend(error: BackupError, target: Target) -> str:
    if isinstance(error, HostKeyError):
        ours = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
        return f"pve-zfsbackup setup target {target.name} --accept-hostkey SHA256:…    # as `{ours}` says there"
    return prepare_again(target) if "Permission denied" in error.message else error.hint


def _heard(checked: Checked, hello: Hello | None, answer: dict[str, object], state: str) -> Heard:
    host, target = checked.host, checked.target
    if hello is None:
        allow = tuple(_ask(host, "zfs", "allow", target.root).splitlines())
        time = int(_ask(host, "date", "+%s"))
    else:
        told = answer.get("allow")
        allow = tuple(str(line) for line in told) if isinstance(told, list) else ()
        time = hello.time
    there = Side(zfs=tuple(_ask(host, "zfs", "version").split()), pools=pool_properties(host, pool_of(target.root)))
    here = Side(
        zfs=tuple(_ask(checked.local, "zfs", "version").split()),
        pools=_used(_ask(checked.local, "zpool", "get", "-Hp", "-o", "property,value", "all")),
    )
    return Heard(
        hello=hello, state=state, root=_root(host, target), allow=allow, skew=time - checked.now, there=there, here=here
    )


def said_hello(host: Host) -> tuple[Hello | None, dict[str, object]]:
    """What the receiver of a target says of itself; None where the account is a plain one: its shell knows no such
    program, or another one. Raises `CommandError`."""
    done = host.run(("hello",), check=False, timeout=_TIMEOUT)
    if "pve-zfsbackup-receiver" in done.stderr:
        raise CommandError(
            f"{host.name}: {done.stderr.strip().splitlines()[-1]}",
            hint="is the package pve-zfsbackup-receiver installed there?",
        )
    try:
        told = json.loads(done.stdout)
        hello = Hello(
            version=str(told["receiver"]),
            protocol=int(told["protocol"]),
            root=str(told["root"]),
            time=int(told.get("time", 0)),
            maintained=int(told.get("maintained", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, {}
    return hello, told


def _pool_state(host: Host, target: Target) -> str:
    """ONLINE, DEGRADED …; empty where the kernel does not tell."""
    done = host.run(state_argv(pool_of(target.root)), check=False, timeout=_TIMEOUT)
    if done.returncode == 1:
        return SUSPENDED
    return done.stdout.strip() if done.returncode == 0 else ""


def _root(host: Host, target: Target) -> dict[str, str] | None:
    done = host.run((*_LIST, target.root), check=False, timeout=_TIMEOUT)
    if done.returncode:
        if "does not exist" in done.stderr:
            return None
        raise classified(done)
    values = done.stdout.rstrip("\n").split("\t")
    if len(values) != len(COLUMNS):
        raise ZfsError(f"{host.name}: the answer of zfs list is not understood: {done.stdout[:200]!r}")
    return dict(zip(COLUMNS, values, strict=True))


def _ask(host: Host, *command: str) -> str:
    done = host.run(command, check=False, timeout=_TIMEOUT)
    if done.returncode:
        raise classified(done) if command[0] == "zfs" else failure(done)
    return done.stdout


def _used(text: str) -> dict[str, str]:
    """Of all pools together: a feature that one of them uses is used."""
    found: dict[str, str] = {}
    for key, _, value in (line.partition("\t") for line in text.splitlines()):
        if found.get(key) != "active":
            found[key] = value
    return found
