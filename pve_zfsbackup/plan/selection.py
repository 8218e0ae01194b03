"""Which guests, and which of their disks, a job or a command line means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from pve_zfsbackup.model import Disk, DiskPattern, Guest, Selector, SelectorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The guests that were meant, and words that meant nothing here.

    `unknown` are vmids and plain names without a guest on this node (it may be on another one); `unmatched` are
    patterns, and disks of selected guests, that fit nothing: perhaps a typing error.
    """

    guests: tuple[Guest, ...] = ()
    unknown: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def select(
    guests: Sequence[Guest],
    *,
    include: Sequence[Selector],
    exclude: Sequence[Selector] = (),
    exclude_disks: Sequence[DiskPattern] = (),
    by: str = "",
) -> Selection:
    """The guests at least one selector means and none leaves out, in their order. Disks left out stay, with the
    reason `excluded by <by>`. To narrow a job down to guests named on the command line, select again."""
    wanted = [selector for selector in include if not selector.negated]
    without = [selector for selector in include if selector.negated] + list(exclude)
    chosen = tuple(
        guest
        for guest in guests
        if any(matches(selector, guest) for selector in wanted)
        and not any(matches(selector, guest) for selector in without)
    )
    idle = [selector for selector in wanted if not any(matches(selector, guest) for guest in guests)]
    missing_disks = [pattern.text for pattern in exclude_disks if _fits_nothing(pattern, chosen)]
    return Selection(
        guests=tuple(_without_disks(guest, exclude_disks, by) for guest in chosen),
        unknown=tuple(selector.text for selector in idle if selector.explicit),
        unmatched=(*(s.text for s in idle if not s.explicit and s.kind is not SelectorKind.ALL), *missing_disks),
    )


def matches(selector: Selector, guest: Guest) -> bool:
    """Whether the selector means the guest; `negated` is not looked at."""
    return _TESTS[selector.kind](selector, guest)


def _any_case(text: str, pattern: str) -> bool:
    return fnmatchcase(text.casefold(), pattern.casefold())


_TESTS: Final[Mapping[SelectorKind, Callable[[Selector, Guest], bool]]] = {
    SelectorKind.ALL: lambda _, guest: True,
    SelectorKind.VMID: lambda selector, guest: selector.low <= guest.vmid <= selector.high,
    SelectorKind.NAME: lambda selector, guest: _any_case(guest.name, selector.pattern),
    SelectorKind.TAG: lambda selector, guest: any(_any_case(tag, selector.pattern) for tag in guest.tags),
    SelectorKind.POOL: lambda selector, guest: fnmatchcase(guest.pool, selector.pattern),
    # A volume that is not attached does not make the guest one of that storage.
    SelectorKind.STORAGE: lambda selector, guest: any(
        disk.storage and fnmatchcase(disk.storage, selector.pattern)
        for disk in guest.disks
        if not disk.key.startswith("unused")
    ),
    SelectorKind.NODE: lambda selector, guest: fnmatchcase(guest.node, selector.pattern),
}


def _means_disk(pattern: DiskPattern, guest: Guest, disk: Disk) -> bool:
    return pattern.vmid in {None, guest.vmid} and fnmatchcase(disk.key, pattern.key)


def _fits_nothing(pattern: DiskPattern, guests: Sequence[Guest]) -> bool:
    """A pattern for one guest is judged only where that guest is."""
    meant = [guest for guest in guests if pattern.vmid in {None, guest.vmid}]
    return bool(meant) and not any(_means_disk(pattern, guest, disk) for guest in meant for disk in guest.disks)


def _without_disks(guest: Guest, patterns: Sequence[DiskPattern], by: str) -> Guest:
    reason = f"excluded by {by}" if by else "excluded"
    disks = tuple(
        replace(disk, reason=reason, lost=False, excluded=True)
        if (disk.protected or disk.lost) and any(_means_disk(pattern, guest, disk) for pattern in patterns)
        else disk
        for disk in guest.disks
    )
    return guest if disks == guest.disks else replace(guest, disks=disks)
