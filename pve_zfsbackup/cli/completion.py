"""What TAB offers for guests, jobs, targets, boxes and points: by the names of parameters, for every command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from pve_zfsbackup.app.known import Known, known
from pve_zfsbackup.cli.options import CONFIG, chosen
from pve_zfsbackup.model import SOURCE

Offer = Callable[[Known, click.Context], Iterable[tuple[str, str]]]
_GUEST_PARAMETERS: Final = ("guests", "guest", "vmids", "vmid")


def _guests(found: Known, _: click.Context) -> Iterable[tuple[str, str]]:
    return found.guests.items()


def _points(found: Known, context: click.Context) -> Iterator[tuple[str, str]]:
    """Of the guest that was typed already, else of all."""
    typed = next((context.params[name] for name in _GUEST_PARAMETERS if context.params.get(name)), "")
    words = [str(getattr(word, "text", word)) for word in (typed if isinstance(typed, tuple) else (typed,))]
    words += context.args  # an option that has no value yet lets click leave the arguments where they are
    wanted = [word for word in words if word in found.points] or list(found.points)
    yield from ((point, f"guest {vmid}") for vmid in wanted for point in found.points[vmid])


def _plain(names: Callable[[Known], Iterable[str]]) -> Offer:
    return lambda found, _: ((name, "") for name in names(found))


_TARGETS: Final = _plain(lambda found: found.targets)
_BOXES: Final = _plain(lambda found: found.boxes)
OFFERS: Final[Mapping[str, Offer]] = {
    **dict.fromkeys(_GUEST_PARAMETERS, _guests),
    "jobs": _plain(lambda found: found.jobs),
    "target": _TARGETS,
    "where": _plain(lambda found: (SOURCE, *found.targets)),
    "box": _BOXES,
    "point": _points,
    "restore at": _points,
    "restore where": _plain(lambda found: (SOURCE, *found.targets, *found.boxes)),
    "restore replace": _guests,
    "rollback at": _points,
    "setup target name": _TARGETS,
    "setup box name": _BOXES,
}


def complete(command: click.Command, path: tuple[str, ...] = ()) -> None:
    """Let the parameters of a command, and of those below it, offer what they mean."""
    for parameter in command.params:
        named = f"{' '.join(path)} {parameter.name}"
        if offer := OFFERS.get(named) or OFFERS.get(parameter.name or ""):
            # click takes such a function only where a parameter is made, and they are made all over this package.
            setattr(parameter, "shell_complete", _completing(offer))  # noqa: B010 - a method of the class, for mypy
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            complete(child, (*path, name))


def _completing(offer: Offer) -> Callable[[click.Context, str], list[CompletionItem]]:
    def shell_complete(context: click.Context, incomplete: str) -> list[CompletionItem]:
        found = known(chosen(Path(context.params.get("config_path") or CONFIG)))
        return [
            CompletionItem(value, help=text or None)
            for value, text in offer(found, context)
            if value.startswith(incomplete)
        ]

    return shell_complete
