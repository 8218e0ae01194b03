"""What `setup target` does on the target: one POSIX script, whether it is run over ssh or printed and run by hand.

It looks before it does anything, and does nothing when something stands in the way; what is right stays as it is. Every
value in it is quoted, and was checked before. It tells what it did in lines of tabs: state, object, detail, commands.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Final

from pve_zfsbackup.app.setup_account import STATES, Action
from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.zfs import PARENT
from pve_zfsbackup.model import Dataset, Keep, printable
from pve_zfsbackup.plan.ownership import OWNER

_RECEIVE: Final = "RECEIVE"  # the narrowest there is
_LIMITED: Final = ("create", "mount", _RECEIVE, "send", "userprop")
_PLAIN: Final = (
    "create", "mount", "receive", "send", "destroy", "hold", "release", "userprop",
    "readonly", "mountpoint", "canmount", "volmode", "snapdir",
)  # fmt: skip
_HEAD: Final = """\
#!/bin/sh
# Makes this host a target of pve-zfsbackup: an account for {comment}, and {root} for its replicas.
# Run it as root. With --dry-run it only tells what it would do. It may be run again: what is right stays as it is.
"""
_KEY: Final = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+={0,2})(?: ([ -~]*))?\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A line of an ssh public key file."""

    kind: str
    blob: str
    comment: str

    @staticmethod
    def parse(text: str) -> PublicKey:
        """Raises ValueError."""
        match = _KEY.match(text.strip())
        if match is None:
            raise ValueError("expected one ssh public key")
        # The comment marks the line as ours, there and wherever it is shown.
        comment = re.sub(r"[^A-Za-z0-9@._-]", "-", match[3] or "")
        if not comment.startswith("pve-zfsbackup@"):
            comment = f"pve-zfsbackup@{comment or 'node'}"
        return PublicKey(kind=match[1], blob=match[2], comment=comment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a target is to be. `clients`: addresses the key may come from, as in `from=` of sshd(8), or empty.
    `owner` is this cluster or node (host/identity.py)."""

    account: str
    root: Dataset
    append_only: bool
    key: PublicKey
    owner: str
    keep: Keep
    clients: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the script answered: what it found and did, and the host's public ssh keys (type and text)."""

    actions: tuple[Action, ...]
    host_keys: tuple[tuple[str, str], ...]


def permissions(*, append_only: bool, receive: str) -> frozenset[str]:
    """What the account is allowed on its root. `receive`: the narrowest there is (reliability §3, S3)."""
    return frozenset(receive if name == _RECEIVE else name for name in _LIMITED) if append_only else frozenset(_PLAIN)


def script(wanted: Wanted) -> str:
    """The whole script."""
    policy = [f"account = {toml(wanted.account)}"]
    policy += [f"keep-{entry.name} = {value}" for entry in fields(Keep) if (value := getattr(wanted.keep, entry.name))]
    values = {
        "ACCOUNT": wanted.account,
        "ROOT": wanted.root,
        "MODE": "append-only" if wanted.append_only else "plain",
        "KEY_KIND": wanted.key.kind,
        "KEY_BLOB": wanted.key.blob,
        "KEY_COMMENT": wanted.key.comment,
        "CLIENTS": wanted.clients,
        "OWNER_KEY": OWNER,
        "OWNER": wanted.owner,
        "PROPERTIES": " ".join(f"{key}={value}" for key, value in PARENT.items()),
        "PERMISSIONS": " ".join(_LIMITED if wanted.append_only else _PLAIN),
        "POLICY": "\n".join((f"[roots.{toml(wanted.root)}]", *policy)),
    }
    body = files("pve_zfsbackup.app").joinpath("target.sh").read_text("ascii")
    head = _HEAD.format(comment=wanted.key.comment, root=wanted.root)
    return head + "".join(f"{name}={_quoted(value)}\n" for name, value in values.items()) + body


def toml(text: str) -> str:
    """A string of TOML; the names here have nothing in them that needs more than quotes."""
    if not re.fullmatch(r"[A-Za-z0-9_.:/@-]*", text):
        raise ValueError(f"{printable(text)!r} has characters that do not belong in a name")
    return f'"{text}"'


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else "''"


def read_answer(text: str, where: str) -> Told:
    """Raises `CommandError` when these are not the lines of the script to its end."""
    actions: list[Action] = []
    keys: list[tuple[str, str]] = []
    lines = text.splitlines()
    for line in lines:
        state, name, detail, command = (*line.split("\t"), "", "", "", "")[:4]
        if state == "hostkey":
            keys.append((name, detail))
        elif state in STATES:
            actions.append(Action(object=name, state=STATES[state], detail=detail, command=command.replace("; ", "\n")))
    if not lines or lines[-1] != "end":
        raise CommandError(
            f"{where}: the script did not come to its end",
            hint="look there what it did (--dry-run tells); repeating it goes on from there",
        )
    return Told(actions=tuple(actions), host_keys=tuple(keys))
