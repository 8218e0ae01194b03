"""YAML to typed values, with every problem at its line and column.

The nodes of the YAML tree are read, not Python objects made by YAML: they know their position, duplicate keys
are still there, and `off` is still the word that was written.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pve_zfsbackup.config.definitions import Config, Option
from pve_zfsbackup.config.files import read_config_text
from pve_zfsbackup.config.kinds import Kind
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import printable

_TAG: Final = "tag:yaml.org,2002:"
_NUMBERS: Final = frozenset({f"{_TAG}int", f"{_TAG}float"})
_LONGEST: Final = 60


def load_config(path: Path) -> Config:
    """Read and check the configuration. Raises ConfigError with every problem found.

    Refuses a file, or a directory around it, that others than root (or the current user) can write: it decides
    what root does.
    """
    return parse_config(read_config_text(path), str(path))


def parse_config(text: str, filename: str) -> Config:
    """Check the text of a configuration; `filename` is for the messages. Raises ConfigError."""
    problems = Problems(filename=filename)
    root = _compose(text, problems)
    config = Config()
    if root is not None:
        loader = _Loader(problems)
        loaded = loader.section(root, Config, Option(help=""))
        loader.check_references()
        config = loaded if isinstance(loaded, Config) else config
    problems.raise_if_any()
    return config


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


def _compose(text: str, problems: Problems) -> Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = len(before) - (before.rfind("\n") + 1)
        problems.add_at(before.count("\n"), column, f"the character {chr(error.character)!r} is not allowed in YAML")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = printable(error.problem or error.context or "cannot be read").strip()
        if "\\t" in told:
            told += ": indent with spaces, not tabs"
        problems.add_at(mark.line if mark else 0, mark.column if mark else 0, f"not valid YAML: {told}")
    except RecursionError:
        problems.add_at(0, 0, "not valid YAML: nested too deeply")
    return None


def shown(text: str) -> str:
    """Text of the file in a message: quoted, on one line, bounded."""
    return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as the end of a message, and what else there is."""
    for near in nearest(word, known):
        return f", did you mean {near!r}?"
    names = ", ".join(known)
    return f"; expected one of: {names}" if names else ""


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The one most similar of the known words, or none."""
    return difflib.get_close_matches(word.lower().replace("_", "-"), list(known), n=1, cutoff=0.6)


def _described(node: Node) -> str:
    """What stands there, for a message about something else being expected."""
    if isinstance(node, MappingNode):
        return "a section"
    if isinstance(node, SequenceNode):
        return "a list"
    return "nothing" if _empty(node) else shown(str(node.value))


def _empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == f"{_TAG}null"


def option_of(entry: Field[Any]) -> Option | None:
    """The option behind a dataclass field; `Keep` has plain help texts, as it is part of the model."""
    if "option" in entry.metadata:
        return typing.cast(Option, entry.metadata["option"])
    return Option(help=entry.metadata["help"]) if "help" in entry.metadata else None


def option_fields(section: type) -> tuple[tuple[Field[Any], Option], ...]:
    """Fields of a section that are options, in order."""
    return tuple((entry, about) for entry in fields(section) if (about := option_of(entry)))


def key_of(entry: Field[Any], prefix: str) -> str:
    return prefix + entry.name.replace("_", "-")


@cache
def type_hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def is_section(wanted: object) -> bool:
    return isinstance(wanted, type) and is_dataclass(wanted)


def is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


class _Missing:
    """The value had a problem, which has been noted; nothing more is to be said about it."""


BAD: Final = _Missing()


class _Loader:
    """Walks the definitions and the tree side by side; a problem is noted and the walk goes on."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._named: dict[str, tuple[str, ...]] = {}  # top-level section -> its names, good or bad
        self._references: list[tuple[Node, str, str]] = []

    def check_references(self) -> None:
        """Every name that points to another section must be there."""
        for node, section, name in self._references:
            known = self._named.get(section, ())
            if name not in known:
                told = did_you_mean(name, known) or f"; {section!r} is empty"
                self._problems.add(node, f"{shown(name)} is not one of the {section}{told}")

    def section(self, node: Node, wanted: type, about: Option) -> Any:
        """A mapping with known keys."""
        entries = {key_of(entry, about.prefix): (entry, option) for entry, option in option_fields(wanted)}
        if not isinstance(node, MappingNode):
            self._problems.add(node, f"expected a section with {', '.join(entries)}; found {_described(node)}")
            return BAD
        values: dict[str, Any] = {}
        for key_node, value_node in self._pairs(node):
            key = str(key_node.value)
            if key not in entries:
                self._problems.add(key_node, f"unknown key {shown(key)}{did_you_mean(key, entries)}")
                values.update({entries[near][0].name: BAD for near in nearest(key, entries)})
                continue
            entry, option = entries[key]
            inner = replace(option, kind=option.kind or about.kind)
            values[entry.name] = self._value(value_node, type_hints(wanted)[entry.name], inner)
            if wanted is Config and isinstance(value_node, MappingNode):
                self._named[key] = tuple(str(name.value) for name, _ in self._pairs(value_node))
        return self._built(node, wanted, entries, values)

    def _built(
        self, node: Node, wanted: type, entries: Mapping[str, tuple[Field[Any], Option]], values: dict[str, Any]
    ) -> Any:
        bad = any(value is BAD for value in values.values())
        for key, (entry, option) in entries.items():
            if is_required(entry) and entry.name not in values:
                expects = f"; expected {option.kind.expects}" if option.kind else ""
                self._problems.add(node, f"the key {key!r} is missing{expects}")
                bad = True
        if bad:
            return BAD
        try:
            return wanted(**values)
        except ValueError as error:  # options that are good alone and not together
            self._problems.add(node, str(error))
            return BAD

    def _value(self, node: Node, wanted: Any, about: Option) -> Any:
        origin = typing.get_origin(wanted)
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return self._named_sections(node, typing.get_args(wanted)[1], about)
        if _empty(node) and is_section(wanted) and not about.prefix:
            return wanted()  # everything below it is commented out
        if _empty(node):
            # For `keep` in particular, none and the default are opposites: never guess.
            value = "an empty section is written {}" if is_section(wanted) else "give a value"
            self._problems.add(node, f"nothing is set here: {value}, or leave the line out for the default")
            return BAD
        if origin is tuple:
            return self._items(node, about)
        if is_section(wanted):
            return self.section(node, wanted, about)
        return self._scalar(node, about)

    def _named_sections(self, node: Node, wanted: type, about: Option) -> Any:
        """A mapping whose keys are names the administrator chose."""
        if _empty(node):
            return MappingProxyType({})
        if not isinstance(node, MappingNode):
            self._problems.add(node, f"expected names, each with a section below; found {_described(node)}")
            return BAD
        found: dict[str, Any] = {}
        for key_node, value_node in self._pairs(node):
            name = self._scalar(key_node, about)
            value = self.section(value_node, wanted, Option(help=""))
            known = name is not BAD and value is not BAD
            found[str(key_node.value)] = replace(value, name=name) if known else BAD
        return BAD if BAD in found.values() else MappingProxyType(found)

    def _items(self, node: Node, about: Option) -> Any:
        """A list; a single word stands for a list of one."""
        if isinstance(node, MappingNode):
            self._problems.add(node, "expected a list; found a section")
            return BAD
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        items = tuple(self._scalar(item, about) for item in nodes)
        return BAD if BAD in items else items

    def _scalar(self, node: Node, about: Option) -> Any:
        kind = about.kind or Kind(expects="text", parse=str)
        if not isinstance(node, ScalarNode) or _empty(node):
            self._problems.add(node, f"expected {kind.expects}; found {_described(node)}")
        elif not node.tag.startswith(_TAG):
            self._problems.add(node, f"text that begins with '!' must be in quotes: {shown(node.tag)}")
        elif kind.number and node.style in {"'", '"'}:
            self._problems.add(node, f"expected {kind.expects}; found text, remove the quotes")
        else:
            try:
                value = kind.parse(str(node.value))
                if about.refers:
                    self._references.append((node, about.refers, str(value)))
                return value
            except ValueError as error:
                self._problems.add(node, f"{error}; found {_described(node)}")
        return BAD

    def _pairs(self, node: MappingNode) -> Iterator[tuple[ScalarNode, Node]]:
        """Keys with their values: merged ones (`<<`) after the own ones, which win. Duplicates are problems."""
        seen: dict[str, Node] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._problems.add(key, f"expected a key; found {_described(key)}")
            elif key.tag == f"{_TAG}merge":
                merged.append(value)
            elif key.value in seen:
                line = seen[key.value].start_mark.line + 1
                self._problems.add(key, f"{shown(key.value)} is given twice, first in line {line}")
            else:
                seen[key.value] = key
                yield key, value
        yield from self._merged(merged, set(seen), {id(node)})

    def _merged(self, queue: list[Node], taken: set[str], visited: set[int]) -> Iterator[tuple[ScalarNode, Node]]:
        for node in queue:
            if id(node) in visited:  # a merge of itself
                continue
            visited.add(id(node))
            if isinstance(node, SequenceNode):
                yield from self._merged(node.value, taken, visited)
            elif isinstance(node, MappingNode):
                inner = [value for key, value in node.value if key.tag == f"{_TAG}merge"]
                for key, value in node.value:
                    if isinstance(key, ScalarNode) and key.tag != f"{_TAG}merge" and key.value not in taken:
                        taken.add(key.value)
                        yield key, value
                yield from self._merged(inner, taken, visited)
            else:
                self._problems.add(node, f"'<<' takes sections; found {_described(node)}")
