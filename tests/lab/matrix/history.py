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
_MARK_NAME = re.compile(r" name=(\S+)")
_VERBS = (
    "finish receiving", "finish snapshotting", "clone swap", "remove bookmark", "create bookmark", "bookmark",
    "receive", "resume receive", "snapshot", "destroy", "hold", "release", "create", "set", "inherit", "rename",
    "rollback", "promote", "clone", "permission update", "permission remove", "update_refreservation",
)  # fmt: skip
OURS = r"@pzb:\d{8}T\d{6}Z-[0-9a-f]{4}"
BENCH = re.compile(r"[^/@]+/pve-zfsbackup-drill(/[0-9a-f]{8}-\d+)?")
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
        found = _OBJECT.match(text, len(verb) + 1)
        if found:
            mark = _MARK_NAME.search(text) if "bookmark" in verb else None
            name = f"{found[0]}#{mark[1]}" if mark else found[0]
            yield Event(txg=int(match[1]), verb=verb, object=name, text=text)


def allowed_on_source(event: Event) -> bool:
    """Our snapshots and bookmarks come and go, and their own properties are set, and a drill has clones below a parent
    of its own; nothing else, and no holds."""
    if BENCH.fullmatch(event.object):
        return event.verb in ("create", "clone", "set", "destroy")
    ours = re.search(OURS + r"\Z", event.object)
    if event.verb == "set":
        return bool(ours) and "pve-zfsbackup:" in event.text
    if event.verb in ("bookmark", "create bookmark", "remove bookmark"):
        return bool(re.search(MARK + r"\Z", event.object))
    if event.verb in ("hold", "release"):  # those of `zfs send` itself end with it
        return bool(ours) and " tag=.send-" in event.text
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


# What the events of a command by hand are called.
_EVENTS_OF = {
    "create": {"create", "set"},
    "destroy": {"destroy", "remove bookmark", "release"},
    "rollback": {"rollback", "destroy", "remove bookmark", "create", "clone swap", "clone"},
    "snapshot": {"snapshot"},
    "rename": {"rename"},
    "release": {"release"},
    "set": {"set", "inherit"},
}
ByHand = Set[tuple[str, str]]
"""What the lab did: verb of the command (`*`: anything) and dataset."""


def foreign(found: Iterable[Event], root: str | None, by_hand: ByHand) -> list[str]:
    """The events that are nobody's: not the product's to do, and not done by the lab. `root` is None on the source."""
    told = []
    for event in found:
        allowed = allowed_on_source(event) if root is None else allowed_on_target(event, root)
        if not allowed and not _ours(event, by_hand):
            told.append(event.text[:160])
    return told


def _ours(event: Event, by_hand: ByHand) -> bool:
    """The lab's own: its clones for hashing, and what a row named."""
    if "lab-hash" in event.text:
        return True
    dataset = re.split("[@#]", event.object)[0].partition("/%")[0]
    verbs = {verb for verb, name in by_hand if name == dataset}
    return "*" in verbs or any(event.verb in _EVENTS_OF.get(verb, {verb}) for verb in verbs)
