"""`zpool history -i` against a list of what the product may do. Pure.

The internal events (`[txg:…]`) are what happened, whoever asked for it. An event is allowed when its verb and object
fit one of the patterns of its side; what the lab does by hand names its objects beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

_EVENT = re.compile(r"^\d{4}-\d\d-\d\d\.\d\d:\d\d:\d\d \[txg:(\d+)\] (.*)$")
_OBJECT = re.compile(r"[A-Za-z0-9_.:%-]+(?:/[A-Za-z0-9_.:%-]+)*(?:[@#][A-Za-z0-9_.:%-]+)?")
_VERBS = (
    "finish receiving", "finish snapshotting", "clone swap", "remove bookmark", "create bookmark", "bookmark",
    "receive", "resume receive", "snapshot", "destroy", "hold", "release", "create", "set", "inherit", "rename",
    "rollback", "promote", "clone", "permission update", "permission remove", "update_refreservation",
)  # fmt: skip
OURS = r"@pzb:\d{8}T\d{6}Z-[0-9a-f]{4}"
MARK = r"#pzb:\d{8}T\d{6}Z-[0-9a-f]{4}:\S+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    txg: int
    verb: str
    object: str
    text: str


def events(lines: Iterable[str]) -> Iterator[Event]:
    """The internal events that name a dataset; those about the pool itself (scrub, feature counts) are left out."""
    for line in lines:
        if not (match := _EVENT.match(line)):
            continue
        text = match[2]
        verb = next((verb for verb in _VERBS if text.startswith(verb + " ")), "")
        if not verb:
            continue
        rest = text[len(verb) + 1 :].removeprefix("name=")
        found = _OBJECT.match(rest)
        if found:
            yield Event(txg=int(match[1]), verb=verb, object=found[0], text=text)


def allowed_on_source(event: Event) -> bool:
    """Our snapshots and bookmarks come and go, and their own properties are set; nothing else, and no holds."""
    ours = re.search(OURS + r"\Z", event.object)
    if event.verb == "set":
        return bool(ours) and "pve-zfsbackup:" in event.text
    if event.verb in ("bookmark", "create bookmark", "remove bookmark"):
        return bool(re.search(MARK + r"\Z", event.object))
    if event.verb in ("hold", "release"):
        return False
    return event.verb in ("snapshot", "destroy") and bool(ours)


def allowed_on_target(event: Event, root: str) -> bool:
    """Below the root: receive, our marks and holds, and the end of our own snapshots and partial receives."""
    if event.object != root and not event.object.startswith(root + "/"):
        return False
    ours = bool(re.search(OURS + r"\Z", event.object))
    partial = "%" in event.object
    match event.verb:
        case "receive" | "resume receive" | "finish receiving" | "clone swap" | "create" | "finish snapshotting":
            return True
        case "set":
            return (ours and "pve-zfsbackup:" in event.text) or "@" not in event.object
        case "snapshot":
            return ours
        case "hold" | "release":
            return ours and "pve-zfsbackup" in event.text
        case "clone":
            return partial
        case "destroy":
            return ours or partial
        case "inherit":
            return partial
    return False


def foreign(found: Iterable[Event], root: str | None, by_hand: Set[str]) -> list[str]:
    """The events that are nobody's: not the product's to do, and not done by the lab. `root` is None on the source."""
    told = []
    for event in found:
        allowed = allowed_on_source(event) if root is None else allowed_on_target(event, root)
        if not allowed and not _ours(event, by_hand):
            told.append(event.text[:160])
    return told


def _ours(event: Event, by_hand: Set[str]) -> bool:
    """The lab's own: its clones for hashing, and what a row named."""
    if "lab-hash" in event.text:
        return True
    dataset = re.split("[@#]", event.object)[0].partition("/%")[0]
    return event.object in by_hand or dataset in by_hand
