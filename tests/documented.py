"""Blocks of the documentation that a test executes: those behind `<!-- lab: HOST WORD… -->`.

HOST is where they are typed. The word `target` says that a target is configured by then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
WORDS = {"target"}
_MARK = re.compile(r"(?m)^[ ]*<!-- lab: ([^\n]*?) -->\n")
_BLOCK = re.compile(r"([ ]*)```\w*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`lines` are the command lines, continued ones as one; `where` is the page and line of the marker."""

    where: str
    host: str
    words: tuple[str, ...]
    lines: tuple[str, ...]


def blocks() -> tuple[Block, ...]:
    """Every marked block, in the order in which the pages are read. Raises ValueError for a marker without one."""
    return tuple(block for page in PAGES for block in blocks_of(page.name, page.read_text("utf-8")))


def blocks_of(page: str, text: str) -> Iterator[Block]:
    for mark in _MARK.finditer(text):
        where = f"{page}:{text.count(chr(10), 0, mark.start()) + 1}"
        block = _BLOCK.match(text, mark.end())
        if not block:
            raise ValueError(f"{where}: no block of code follows the marker")
        host, *words = mark[1].split()
        yield Block(where=where, host=host, words=tuple(words), lines=tuple(_lines(block[2])))


def _lines(block: str) -> Iterator[str]:
    """Where a block shows answers as well, only lines with a prompt are typed."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
    yield from (line for line in typed if line and not line.startswith("#"))
