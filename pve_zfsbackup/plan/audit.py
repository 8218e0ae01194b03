"""What is not protected as one would expect, disk by disk, and whether somebody decided so.

A decision is something written down: `backup=0`, `exclude`, `exclude-disks`, `quiesce: off`. Everything else is a
finding until it is decided or mended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup.model import Consistency, Disk, Guest, GuestKind, Point, Quiesce, Vmid

# Beginnings of reasons of `plan.discovery` that need no decision, because nothing would be gained, or that are one.
_EXPLAINED: Final = (
    "cloud-init drive", "empty drive", "CD-ROM", "not attached", "backup=0", "EFI disk that is not used",
    "the same volume as", "excluded by",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something an administrator should know. `explained` says why it is all right; empty when nobody said so."""

    vmid: Vmid | None  # None where it is of no guest that is seen
    guest: str
    kind: str  # hidden, no-job, unreadable, not-protected, lost, new-disk, agent, template, note
    text: str
    disk: str = ""
    explained: str = ""
    resolve: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the jobs make of a guest. `excluded` is the rule that leaves it out, `newest` its newest complete point."""

    jobs: tuple[str, ...] = ()
    excluded: str = ""
    disks: Mapping[str, str] = field(default_factory=dict)  # key of a disk -> the rule that leaves it out
    quiesce: Quiesce = Quiesce.PREFER
    newest: Point | None = None


def hidden(doubt: str) -> Finding:
    """Of guests that nobody sees nothing can be found out, and a check that finds nothing would be taken for good."""
    return Finding(vmid=None, guest="", kind="hidden", text=doubt, resolve="pve-zfsbackup setup")


def audit_guest(guest: Guest, standing: Standing) -> tuple[Finding, ...]:
    """Everything about one guest, in the order of its configuration."""
    return tuple(_findings(guest, standing))


def _findings(guest: Guest, standing: Standing) -> Iterator[Finding]:
    if guest.trouble:
        text = f"its configuration cannot be read: {guest.trouble}"
        yield Finding(vmid=guest.vmid, guest=guest.name, kind="unreadable", text=text)
        return
    if not standing.jobs:
        yield _no_job(guest, standing)
    for disk in guest.disks:
        if disk.reason:
            yield _not_protected(guest, disk, standing.disks.get(disk.key, ""))
        elif standing.jobs and _is_new(disk, standing.newest):
            text = f"new since the last point: {disk.volid}"
            yield Finding(
                vmid=guest.vmid, guest=guest.name, kind="new-disk", text=text, disk=disk.key,
                resolve=f"pve-zfsbackup snapshot {guest.vmid}",
            )  # fmt: skip
    if standing.jobs and (told := _agent(guest, standing)):
        yield told
    if guest.template:
        text = "template: its disks do not change, one point is enough"
        yield Finding(vmid=guest.vmid, guest=guest.name, kind="template", text=text, explained="a template")
    for note in guest.notes:
        if not note.startswith("template"):
            yield Finding(vmid=guest.vmid, guest=guest.name, kind="note", text=note, explained="for your information")


def _no_job(guest: Guest, standing: Standing) -> Finding:
    explained = "a template" if guest.template else standing.excluded
    return Finding(
        vmid=guest.vmid,
        guest=guest.name,
        kind="no-job",
        text="in no job: nothing of it is protected",
        explained=explained,
        resolve="" if explained else "add it to a job's guests, or to `exclude` of one",
    )


def is_explained(disk: Disk) -> bool:
    """Whether the reason why a disk is not protected is a decision, or means that nothing is lost. Only its beginning
    counts: what follows may be the name of a storage or a path, which anybody chooses."""
    return disk.reason.startswith(_EXPLAINED)


def _not_protected(guest: Guest, disk: Disk, rule: str) -> Finding:
    explained = rule or (disk.reason if is_explained(disk) else "")
    wanted = "import its pool or run `pve-zfsbackup setup`" if disk.lost else "move it to a ZFS storage"
    return Finding(
        vmid=guest.vmid,
        guest=guest.name,
        kind="lost" if disk.lost else "not-protected",
        text=f"{disk.volid}: {disk.reason}",
        disk=disk.key,
        explained=explained,
        resolve="" if explained else f"{wanted}, or exclude-disks: ['{guest.vmid}:{disk.key}']",
    )


def _is_new(disk: Disk, newest: Point | None) -> bool:
    return newest is not None and newest.disks.get(disk.key) != disk.volid


def _agent(guest: Guest, standing: Standing) -> Finding | None:
    """A VM whose points would be quiesced, were it not for its agent: switched off, or silent at the newest point."""
    if guest.kind is GuestKind.CT or guest.template or standing.quiesce is Quiesce.OFF:
        return None
    explained = ""
    if not guest.agent.enabled:
        text = "guest agent is not configured: its points are crash-consistent"
    elif not guest.agent.freeze:
        text, explained = "freeze-fs=0: its points are crash-consistent", "freeze-fs=0 is set"
    elif guest.running and standing.newest and "agent does not answer" in standing.newest.consistency:
        text = f"its newest point is {Consistency.CRASH}: the guest agent did not answer"
    else:
        return None
    return Finding(
        vmid=guest.vmid,
        guest=guest.name,
        kind="agent",
        text=text,
        explained=explained,
        resolve="install qemu-guest-agent and set agent: 1, or quiesce: off in its job",
    )
