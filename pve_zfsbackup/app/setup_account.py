"""The account on Proxmox: role, user, tokens and ACL, through `pvesh` as root. Reads before it writes.

The role is granted on `/`, to the user and to the token (a token with privilege separation has what both have):
its privileges are looked up under /vms, /storage, /pool, /nodes and on / itself, so nothing narrower would do, and
elsewhere they open nothing but reading (pve-facts §m).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from pve_zfsbackup.errors import PveError
from pve_zfsbackup.host.api import Api
from pve_zfsbackup.host.pvesh import pvesh_argv

ROLE: Final = "PVEZFSBackup"
USER: Final = "pve-zfsbackup@pve"
COMMENT: Final = "pve-zfsbackup: snapshots and replication"
_COMMON: Final = frozenset({"VM.Audit", "Datastore.Audit", "Pool.Audit", "Sys.Audit"})
_QUIESCE: Final = {
    8: frozenset({"VM.Monitor"}),
    9: frozenset({"VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt"}),
}

State = Literal["created", "changed", "right", "removed", "kept", "warning", "failed"]
STATES: Final[Mapping[str, State]] = {state: state for state in get_args(State)}
Tokens = Mapping[str, Mapping[str, Any]]  # by name, as Proxmox tells them


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What was found or done with one thing. `command` is what did it, for a shell; in a dry run, what would."""

    object: str
    state: State
    detail: str = ""
    command: str = ""


@dataclass(slots=True, kw_only=True)
class Account:
    """One pass over the account: the changes made for the thing at hand, and the actions so far."""

    api: Api
    dry_run: bool = False
    actions: list[Action] = field(default_factory=list)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def change(self, method: str, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """A call that changes something: made, or in a dry run only remembered."""
        self.commands.append(pvesh_argv(method, path, params or {}))
        return None if self.dry_run else self.api.request(method, path, params)

    def done(self, name: str, state: State, detail: str = "") -> None:
        """What was changed since the last time was about `name`."""
        command = "\n".join(shlex.join(argv) for argv in self.commands)
        self.commands.clear()
        self.actions.append(Action(object=name, state=state, detail=detail, command=command))

    def role(self, wanted: frozenset[str]) -> None:
        """The role with these privileges, no more and no less."""
        text = ",".join(sorted(wanted))
        found = next((role for role in self.api.get("/access/roles") if role["roleid"] == ROLE), None)
        if found is None:
            self.change("POST", "/access/roles", {"roleid": ROLE, "privs": text})
            self.done(f"role {ROLE}", "created", text)
            return
        has = {name for name in str(found.get("privs") or "").split(",") if name}
        if has == wanted:
            self.done(f"role {ROLE}", "right", text)
            return
        self.change("PUT", f"/access/roles/{ROLE}", {"privs": text})
        changes = [f"+{name}" for name in sorted(wanted - has)] + [f"-{name}" for name in sorted(has - wanted)]
        self.done(f"role {ROLE}", "changed", " ".join(changes))

    def user(self) -> Tokens:
        """The user, able to log in. Returns its tokens."""
        found = self._found_user()
        if found is None:
            self.change("POST", "/access/users", {"userid": USER, "comment": COMMENT})
            self.done(f"user {USER}", "created")
            return {}
        if int(found.get("enable", 1)):
            self.done(f"user {USER}", "right")
        else:
            self.change("PUT", f"/access/users/{USER}", {"enable": True})
            self.done(f"user {USER}", "changed", "was disabled")
        return _tokens(found)

    def tokens(self) -> Tokens | None:
        """The user's tokens; None when there is no such user."""
        found = self._found_user()
        return None if found is None else _tokens(found)

    def _found_user(self) -> Mapping[str, Any] | None:
        users: list[Mapping[str, Any]] = self.api.get("/access/users", full=True)
        return next((user for user in users if user["userid"] == USER), None)

    def grant(self, kind: Literal["user", "token"], who: str) -> None:
        """The role on `/`, and so on everything below."""
        for entry in self.api.get("/access/acl"):
            same = (entry["path"], entry["type"], entry["ugid"], entry["roleid"]) == ("/", kind, who, ROLE)
            if same and int(entry.get("propagate", 1)):
                self.done(f"ACL / {who}", "right")
                return
        self.change("PUT", "/access/acl", {"path": "/", "roles": ROLE, f"{kind}s": who, "propagate": True})
        self.done(f"ACL / {who}", "created", ROLE)

    def remove_token(self, name: str) -> None:
        """Its ACL entries go with it."""
        self.change("DELETE", f"/access/users/{USER}/token/{name}")
        self.done(f"token {USER}!{name}", "removed")

    def remove_user(self) -> None:
        """Its ACL entries go with it."""
        self.change("DELETE", f"/access/users/{USER}")
        self.done(f"user {USER}", "removed")

    def remove_role(self) -> None:
        """Unless somebody granted it to others."""
        if all(role["roleid"] != ROLE for role in self.api.get("/access/roles")):
            return
        holders = {str(entry["ugid"]) for entry in self.api.get("/access/acl") if entry["roleid"] == ROLE}
        others = sorted(name for name in holders if name.partition("!")[0] != USER)
        if others:
            self.done(f"role {ROLE}", "kept", f"granted to {', '.join(others)}")
            return
        self.change("DELETE", f"/access/roles/{ROLE}")
        self.done(f"role {ROLE}", "removed")


def _tokens(user: Mapping[str, Any]) -> Tokens:
    return {str(token["tokenid"]): token for token in user.get("tokens") or ()}


def privileges(major: int) -> frozenset[str]:
    """What the product needs on this version of Proxmox VE, and no more (pve-facts §m). Raises `PveError`."""
    if major < min(_QUIESCE):
        raise PveError(f"Proxmox VE {major} is not supported", hint="8 or later is")
    return _COMMON | _QUIESCE[min(major, max(_QUIESCE))]
