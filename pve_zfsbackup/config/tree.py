"""The tree of a YAML file, read without making Python objects of it, and problems with their place in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import printable

TAG: Final = "tag:yaml.org,2002:"
_LONGEST: Final = 60


@dataclass(slots=True, kw_only=True)
class Problems:
    """Problems with their position, sorted by it when they are raised."""

    filename: str
    found: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, node: Node | None, message: str) -> None:
        line, column = (node.start_mark.line, node.start_mark.column) if node is not None else (0, 0)
        self.add_at(line, column, message)

    def add_at(self, line: int, column: int, message: str) -> None:
        entry = (line, column, message)
        if entry not in self.found:  # an alias is read as often as it is used
            self.found.append(entry)

    def raise_if_any(self) -> None:
        if self.found:
            where = printable(self.filename)
            raise ConfigError([f"{where}:{row + 1}:{col + 1}: {text}" for row, col, text in sorted(self.found)])


def compose(text: str, problems: Problems) -> Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = len(before) - (before.rfind("\n") + 1)
        problems.add_at(before.count("\n"), column, f"the character {chr(error.character)!r} is not allowed in YAML")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line, mark.column) if mark else (0, 0)
        problems.add_at(*place, f"not valid YAML: {_yaml_problem(error)}")
    except RecursionError:
        problems.add_at(0, 0, "not valid YAML: nested too deeply")
    return None


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    told = printable(error.problem or "cannot be read")
    if "\\t" in told:
        return f"{told}: indent with spaces, not tabs"
    if told.startswith("but "):
        return f"{error.context}, {told}"
    began = f" ({error.context} that begins in line {error.context_mark.line + 1})" if error.context_mark else ""
    return told + began


def shown(text: str) -> str:
    """Text of the file in a message: quoted, on one line, bounded."""
    return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def described(node: Node) -> str:
    """What stands there, for a message about something else being expected."""
    if isinstance(node, MappingNode):
        return "a section"
    if isinstance(node, SequenceNode):
        return "a list"
    return "nothing" if is_empty(node) else shown(str(node.value))


def is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == f"{TAG}null"


def pairs(node: MappingNode, problems: Problems) -> Iterator[tuple[ScalarNode, Node]]:
    """Keys with their values: merged ones (`<<`) after the own ones, which win. Duplicates are problems."""
    seen: dict[str, Node] = {}
    merged: list[Node] = []
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            problems.add(key, f"expected a key; found {described(key)}")
        elif key.tag == f"{TAG}merge":
            merged.append(value)
        elif key.value in seen:
            line = seen[key.value].start_mark.line + 1
            problems.add(key, f"{shown(key.value)} is given twice, first in line {line}")
        else:
            seen[key.value] = key
            yield key, value
    yield from _merged(merged, set(seen), {id(node)}, problems)


def _merged(
    queue: list[Node], taken: set[str], visited: set[int], problems: Problems
) -> Iterator[tuple[ScalarNode, Node]]:
    for node in queue:
        if id(node) in visited:  # a merge of itself
            continue
        visited.add(id(node))
        if isinstance(node, SequenceNode):
            yield from _merged(node.value, taken, visited, problems)
        elif isinstance(node, MappingNode):
            inner = [value for key, value in node.value if key.tag == f"{TAG}merge"]
            for key, value in node.value:
                if isinstance(key, ScalarNode) and key.tag != f"{TAG}merge" and key.value not in taken:
                    taken.add(key.value)
                    yield key, value
            yield from _merged(inner, taken, visited, problems)
        else:
            problems.add(node, f"'<<' takes sections; found {described(node)}")
