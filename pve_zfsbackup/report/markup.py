"""HTML and SVG from values: what is not `Markup` is text, and text is escaped. There is no other way in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pve_zfsbackup.model import printable

_VOID = frozenset({"meta", "br", "col", "path", "rect", "line", "circle"})


class Markup(str):
    """Made by `tag` alone: already escaped."""

    __slots__ = ()


Child = str | Sequence["Child"] | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. Attributes are written with `_` for `-` and a `_` behind Python's own words (`class_`); one that is
    None or "" is left out. Control characters in names become visible, as on a terminal."""
    words = [name]
    for key, value in attributes.items():
        if value is not None and value != "":
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(printable(shown))}"')
    if name in _VOID and not children:
        return Markup(f"<{' '.join(words)}>" if name in ("meta", "br", "col") else f"<{' '.join(words)}/>")
    return Markup(f"<{' '.join(words)}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(printable(children)))
    return Markup("".join(map(join, children)))
