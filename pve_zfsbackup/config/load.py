"""YAML to typed values, with every problem at its line and column.

The nodes of the YAML tree are read, not Python objects made by YAML: they know their position, duplicate keys
are still there, and `off` is still the word that was written.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pve_zfsbackup.config.definitions import Config
from pve_zfsbackup.config.files import read_config_text
from pve_zfsbackup.config.kinds import Kind
from pve_zfsbackup.config.option import Option, is_required, is_section, key_of, option_fields, type_hints
from pve_zfsbackup.config.tree import TAG, Problems, compose, described, is_empty, pairs, shown


def load_config(path: Path) -> Config:
    """Read and check the configuration. Raises ConfigError with every problem found.

    Refuses a file, or a directory around it, that others than root (or the current user) can write: it decides
    what root does.
    """
    return parse_config(read_config_text(path), str(path))


def parse_config(text: str, filename: str) -> Config:
    """Check the text of a configuration; `filename` is for the messages. Raises ConfigError."""
    problems = Problems(filename=filename)
    root = compose(text, problems)
    config = Config()
    if root is not None:
        loader = _Loader(problems)
        loaded = loader.section(root, Config, Option(help=""))
        loader.check_references()
        config = loaded if isinstance(loaded, Config) else config
    problems.raise_if_any()
    return config


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as the end of a message, and what else there is."""
    for near in nearest(word, known):
        return f", did you mean {near!r}?"
    names = ", ".join(known)
    return f"; expected one of: {names}" if names else ""


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The one most similar of the known words, or none."""
    return difflib.get_close_matches(word.lower().replace("_", "-"), list(known), n=1, cutoff=0.6)


Entry = tuple[Field[Any], Option]


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
            self._problems.add(node, f"expected a section with {', '.join(entries)}; found {described(node)}")
            return BAD
        values: dict[str, Any] = {}
        nodes: dict[str, Node] = {}
        for key_node, value_node in pairs(node, self._problems):
            key = str(key_node.value)
            if key not in entries:
                self._problems.add(key_node, f"unknown key {shown(key)}{did_you_mean(key, entries)}")
                values.update({entries[near][0].name: BAD for near in nearest(key, entries)})
                continue
            entry, option = entries[key]
            inner = replace(option, kind=option.kind or about.kind)
            values[entry.name] = self._value(value_node, type_hints(wanted)[entry.name], inner)
            nodes[entry.name] = value_node
            if wanted is Config and isinstance(value_node, MappingNode):
                self._named[key] = tuple(str(name.value) for name, _ in pairs(value_node, self._problems))
        good = self._all_there(node, entries, values) & self._all_together(nodes, wanted, values)
        return wanted(**values) if good else BAD

    def _all_there(self, node: Node, entries: Mapping[str, Entry], values: Mapping[str, Any]) -> bool:
        missing = [key for key, (entry, _) in entries.items() if is_required(entry) and entry.name not in values]
        for key in missing:
            kind = entries[key][1].kind
            self._problems.add(node, f"the key {key!r} is missing" + (f"; expected {kind.expects}" if kind else ""))
        return not missing and BAD not in values.values()

    def _all_together(self, nodes: Mapping[str, Node], wanted: type, values: Mapping[str, Any]) -> bool:
        check = getattr(wanted, "conflicts", None)
        good = {name: value for name, value in values.items() if value is not BAD}
        found = list(check(good)) if check else []
        for name, message in found:
            self._problems.add(nodes[name], message)
        return not found

    def _value(self, node: Node, wanted: Any, about: Option) -> Any:
        origin = typing.get_origin(wanted)
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return self._named_sections(node, typing.get_args(wanted)[1], about)
        if is_empty(node) and is_section(wanted) and not about.prefix:
            return wanted()  # everything below it is commented out
        if is_empty(node):
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
        if is_empty(node):
            return MappingProxyType({})
        if not isinstance(node, MappingNode):
            self._problems.add(node, f"expected names, each with a section below; found {described(node)}")
            return BAD
        found: dict[str, Any] = {}
        for key_node, value_node in pairs(node, self._problems):
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
        if not isinstance(node, ScalarNode) or is_empty(node):
            self._problems.add(node, f"expected {kind.expects}; found {described(node)}")
        elif not node.tag.startswith(TAG):
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
                found = "" if kind.private else f"; found {described(node)}"
                self._problems.add(node, f"{error}{found}")
        return BAD
