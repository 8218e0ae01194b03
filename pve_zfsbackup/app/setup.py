"""`setup`: the account on Proxmox, this node's token, an ssh key and a first configuration. And the way back.

Repeatable: it changes nothing that is right, and what a run left unfinished the next one finishes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pve_zfsbackup.app.setup_account import COMMENT, USER, Account, Action, Tokens, privileges
from pve_zfsbackup.config import Api as ApiConfig
from pve_zfsbackup.config import find_secret
from pve_zfsbackup.config.example import example_config
from pve_zfsbackup.errors import ConfigError, PveError, PveTrustError
from pve_zfsbackup.host.api import Api, Token
from pve_zfsbackup.host.guests import read_version
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.host.pve import HttpsApi
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import Guest

TOKEN_NAME: Final = "backup"  # noqa: S105 - not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Which node, where things go, and how the guests for the first configuration are found."""

    node: str
    guests: Callable[[Api], Sequence[Guest]]
    api: ApiConfig = field(default_factory=ApiConfig)
    config_file: Path = Path("/etc/pve-zfsbackup/config.yaml")
    identity_file: Path = Path("/etc/pve-zfsbackup/id_ed25519")
    dry_run: bool = False


def setup(runner: Runner, settings: Settings) -> tuple[Action, ...]:
    """Make what is missing, put right what is wrong, and see that it works; says about each thing what it did.

    Raises `PveError` when Proxmox refuses or the token does not work in the end, `ConfigError`, `CommandError`
    and `OSError` for files and keys. What was done before stays.
    """
    account = Account(api=PveshApi(runner), dry_run=settings.dry_run)
    version, _ = read_version(account.api)
    wanted = privileges(version)
    token, problem = _stored(settings.api.token_file)
    if token is not None and token.user != USER:
        account.done(f"token {token}", "kept", "put there by hand, so no account is made")
    else:
        account.role(wanted)
        tokens = account.user()
        account.grant("user", USER)
        token = _own_token(account, settings, tokens, token or problem)
    if token is not None:
        _verify(account, settings, token, wanted)
    account.actions.append(ssh_key(runner, settings.identity_file, settings.node, dry_run=settings.dry_run))
    _first_config(account, settings, token)
    return tuple(account.actions)


def unsetup(runner: Runner, settings: Settings) -> tuple[Action, ...]:
    """Take back this node's token and its file, and with the cluster's last token the user and the role."""
    account = Account(api=PveshApi(runner), dry_run=settings.dry_run)
    tokens = account.tokens()
    stored, _ = _stored(settings.api.token_file)
    left = set(tokens or ())
    if stored is not None and stored.user == USER:
        if stored.name in left:
            account.remove_token(stored.name)
            left.discard(stored.name)
        if not settings.dry_run:
            settings.api.token_file.unlink()
        account.done(f"file {settings.api.token_file}", "removed")
    if left:
        account.done(f"user {USER}", "kept", f"it still has {', '.join(sorted(left))}")
        return tuple(account.actions)
    if tokens is not None:
        account.remove_user()
    account.remove_role()
    return tuple(account.actions)


def _https(settings: Settings, token: Token) -> HttpsApi:
    api = settings.api
    return HttpsApi(api.url, token, ca_file=api.ca_file, fingerprint=api.fingerprint, timeout=api.timeout)


def _own_token(account: Account, settings: Settings, tokens: Tokens, stored: Token | str) -> Token | None:
    """The token of the file, or a new one, granted its role. `stored` may be the reason why the file has none.

    None in a dry run that would make one.
    """
    problem = stored if isinstance(stored, str) else _problem(account, settings, tokens, stored)
    if isinstance(stored, Token) and not problem:
        if int(tokens[stored.name].get("privsep", 1)):
            account.done(f"token {stored}", "right")
        else:
            account.change("PUT", f"/access/users/{USER}/token/{stored.name}", {"privsep": True})
            account.done(f"token {stored}", "changed", "now with privilege separation")
        account.grant("token", str(stored))
        return stored
    # Every node has a secret of its own, so in a cluster every node needs a token of its own.
    clustered = any(entry.get("type") == "cluster" for entry in account.api.get("/cluster/status"))
    name = f"{TOKEN_NAME}-{settings.node}" if clustered else TOKEN_NAME
    token = _new_token(account, settings, name, problem if name in tokens else "")
    account.grant("token", f"{USER}!{name}")
    return token


def _problem(account: Account, settings: Settings, tokens: Tokens, token: Token) -> str:
    """Why the token does not work; empty when it does. Raises when there is no telling."""
    if token.name not in tokens:
        return "Proxmox did not know the token of the file"
    with _https(settings, token) as https:
        try:
            https.get("/version")
        except PveError as error:
            if error.status != 401:
                raise _explained(account.api, settings.node, error) from None
            return "the secret in the file was not that of the token"
    return ""


def _new_token(account: Account, settings: Settings, name: str, lost: str) -> Token | None:
    """Make the token, and before that unmake the one whose secret is `lost`: Proxmox shows a secret only once."""
    file = settings.api.token_file
    path = f"/access/users/{USER}/token/{name}"
    if not settings.dry_run:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if lost:
        account.change("DELETE", path)
    answer = account.change("POST", path, {"privsep": True, "comment": f"{COMMENT}, node {settings.node}"})
    account.done(f"token {USER}!{name}", "created", f"again: {lost}" if lost else "")
    if answer is None:
        return None
    token = Token.parse(f"{USER}!{name}={answer['value']}")
    write_private(file, f"{token}={token.secret}\n")
    account.done(f"file {file}", "created", "the token's secret, for root only")
    return token


def _verify(account: Account, settings: Settings, token: Token, wanted: frozenset[str]) -> None:
    """The token has what it shall have, asked the way every run will ask."""
    with _https(settings, token) as https:
        try:
            held = https.get("/access/permissions") or {}
        except PveError as error:
            raise _explained(account.api, settings.node, error) from None
        missing = sorted(wanted - set(held.get("/", {})))
        if missing and not settings.dry_run:
            raise PveError(f"{https.describe()}: lacks {', '.join(missing)}", hint="look at its permissions")
        account.done(f"API {https.describe()}", "right", f"lacks {', '.join(missing)} now" if missing else "")


def _explained(api: Api, node: str, error: PveError) -> PveError:
    """A node with a certificate of its own cannot be known by Proxmox's CA; say its fingerprint."""
    if not isinstance(error, PveTrustError):
        return error
    pin = next((entry.get("ssl_fingerprint") for entry in api.get("/nodes") if entry["node"] == node), None)
    hint = f"if the node has a certificate of its own, put `fingerprint: {pin}` under `api:`" if pin else error.hint
    return PveTrustError(error.message, hint=hint)


def ssh_key(runner: Runner, file: Path, node: str, *, dry_run: bool) -> Action:
    """The node's own ssh key, made if there is none."""
    if file.exists():
        return Action(object=f"ssh key {file}", state="right")
    argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"pve-zfsbackup@{node}", "-f", str(file))
    if not dry_run:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        runner.run(argv)
    detail = f"targets need {file}.pub"
    return Action(object=f"ssh key {file}", state="created", detail=detail, command=shlex.join(argv))


def _first_config(account: Account, settings: Settings, token: Token | None) -> None:
    file = settings.config_file
    if file.exists():
        account.done(f"file {file}", "right", "left as it is")
        return
    if token is None:
        account.done(f"file {file}", "created", "with every guest of this node")
        return
    with _https(settings, token) as https:  # a hundred times quicker than pvesh
        guests = settings.guests(https)
    if not settings.dry_run:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, example_config(guests))
    account.done(f"file {file}", "created", f"with {len(guests)} guests, and no target yet")


def _stored(file: Path) -> tuple[Token | None, str]:
    """The token of the file, or why there is none of use: one that others could read is known to others."""
    try:
        secret = find_secret(file)
        token = Token.parse(secret.reveal()) if secret is not None else None
    except ConfigError as error:
        return None, error.message
    return token, "" if token else "its secret was lost"
