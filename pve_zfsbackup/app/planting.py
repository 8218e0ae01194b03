"""`verify plant`: a canary in each running guest, and the memory of it, by which a drill knows what must be there."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.host.planting import put
from pve_zfsbackup.model import Guest, GuestKind, Vmid
from pve_zfsbackup.model.canary import PATH, SETTLED, Planted, canary_text, digest, parse_canary

STAGE: Final = "verify-plant"
KEPT: Final = 64  # of each guest: points that are older are not asked for a canary


def planting_alone(config: Config) -> AbstractContextManager[None]:
    """One at a time: what is remembered is one file. Raises `LockedError`."""
    return run_lock(config.runtime_dir, "plant")


def plant(session: Session, scope: Scope) -> Iterator[Result]:
    """Plant one in each guest in scope; each ends for itself. To be called `planting_alone`."""
    found = inventory(session)
    items, notes = assign(session, found, scope)
    yield from (Result(stage=STAGE, outcome=Outcome.WARNING, message=note) for note in notes)
    for item in items:
        yield replace(_planted(session, item.guest), jobs=item.names)


def forget(session: Session, scope: Scope) -> Iterator[Result]:
    """No canary is expected in these guests any more. Their files stay. To be called `planting_alone`."""
    items, _ = assign(session, inventory(session), scope)
    known = dict(_recalled(session.config))
    for item in items:
        gone = known.pop(str(item.guest.vmid), None)
        told = "no canary is expected any more" if gone else "no canary was expected"
        yield replace(_result(item.guest, Outcome.OK, told), jobs=item.names)
    remember(_file(session.config), known)


def _planted(session: Session, guest: Guest) -> Result:
    if told := _unfit(guest):
        return _result(guest, Outcome.SKIPPED, told)
    at = int(session.now().timestamp())
    text = canary_text(guest.vmid, guest.name, at, secrets.token_hex(16))
    one = Planted(at=at, digest=digest(text), sure=False)
    try:
        _remember(session.config, guest.vmid, one)  # before: an answer that is lost leaves it there all the same
        put(session.runner, guest, PATH, text, ours=lambda found: parse_canary(found) is not None)
        _remember(session.config, guest.vmid, replace(one, sure=True))
    except Exception as error:  # also a bug of ours is this guest's alone
        return failed(STAGE, error, guest=guest)
    return _result(guest, Outcome.OK, f"canary planted: {PATH}")


def _unfit(guest: Guest) -> str:
    if guest.template or not guest.running or guest.paused:
        return "not running: no canary can be planted"
    if guest.kind is GuestKind.VM and not guest.agent.enabled:
        return "no guest agent: no canary can be planted; write a file of yours, and name it in `verify-files`"
    return ""


def _result(guest: Guest, outcome: Outcome, message: str, *, hint: str = "") -> Result:
    return Result(stage=STAGE, outcome=outcome, vmid=guest.vmid, guest=guest.name, message=message, hint=hint)


# -- the memory: lost, nothing is expected any more until the next one is planted


def planted(config: Config) -> Mapping[Vmid, Sequence[Planted]]:
    """What was planted in each guest, as far as that is remembered."""
    return {Vmid(int(vmid)): _entries(rows) for vmid, rows in _recalled(config).items() if vmid.isdecimal()}


def went_back(config: Config, vmid: Vmid, creation: int) -> tuple[str, ...]:
    """A guest's disks are those of a point again: what was planted since may be there no more, and no drill shall fail
    for that. Returns what went wrong with it, which is no reason to fail."""
    try:
        with planting_alone(config):
            rows = _entries(_recalled(config).get(str(vmid)))
            if any(row.at + SETTLED > creation for row in rows):
                _keep(config, vmid, [replace(row, sure=row.sure and row.at + SETTLED <= creation) for row in rows])
    except BackupError as error:
        return (f"the canary may be another one now ({error.message}): `verify plant {vmid}`, or drills fail",)
    return ()


def _remember(config: Config, vmid: Vmid, one: Planted) -> None:
    """In place of what is known of the same one."""
    rows = _entries(_recalled(config).get(str(vmid)))
    _keep(config, vmid, [*(row for row in rows if row.digest != one.digest), one])


def _keep(config: Config, vmid: Vmid, rows: Sequence[Planted]) -> None:
    """The newest; those that could not be planted must not push out the others."""
    kept = {row for sure in (True, False) for row in [one for one in rows if one.sure is sure][-KEPT:]}
    known = dict(_recalled(config))
    known[str(vmid)] = [
        {"at": row.at, "sha256": row.digest, **({} if row.sure else {"sure": False})} for row in rows if row in kept
    ]
    remember(_file(config), known)


def _recalled(config: Config) -> Mapping[str, Any]:
    return recall(_file(config))


def _entries(rows: Any) -> tuple[Planted, ...]:
    good = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return tuple(
        Planted(at=row["at"], digest=row["sha256"], sure=row.get("sure", True) is not False)
        for row in good
        if isinstance(row.get("at"), int) and isinstance(row.get("sha256"), str)
    )


def _file(config: Config) -> Path:
    return config.state_dir / "canaries.json"
