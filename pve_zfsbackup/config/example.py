"""The example file, the first configuration and the reference page, made from the definitions.

In the file, a comment for people begins with `# `, and an option that is not set with `#` and its line as it
would stand there (two spaces per level), so that removing the `#` in front sets it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from enum import StrEnum
from typing import Any, Final, get_args, get_origin

from pve_zfsbackup.config.alerts import Webhook
from pve_zfsbackup.config.boxes import Box
from pve_zfsbackup.config.definitions import Config, Job
from pve_zfsbackup.config.option import Option, is_required, is_section, key_of, option_fields, type_hints
from pve_zfsbackup.config.targets import Target
from pve_zfsbackup.model import Disk, Guest, GuestKind, Keep, printable

_WIDTH: Final = 100
_HEAD: Final = """\
# Configuration of pve-zfsbackup.
#
# A `#` in the first column turns off the option behind it, which stands there with its default or an example:
# remove the `#` to set it. Comments have a space after the `#`. Times are in seconds.
"""


_PAGE: Final = """\
# Configuration

`/etc/pve-zfsbackup/config.yaml`, or `/etc/pve/pve-zfsbackup.yaml` for all nodes of a cluster. It is YAML; it must be
root's, and nobody else may write it. Every mistake in it is told at once, with line and column. Times are in seconds
unless the key says hours or days. This page is made from the definitions in the program (`pve_zfsbackup/config/`), and
so is the commented `/usr/share/doc/pve-zfsbackup/examples/config.yaml`.
"""


def example_config(guests: Sequence[Guest] = ()) -> str:
    """A commented configuration that can be loaded as it is: every guest, snapshots on this node only.

    With `guests`, each of them is listed in comments with its disks and what is protected.
    """
    return "\n".join([_HEAD.rstrip("\n"), *_file(guests), ""])


def config_reference() -> str:
    """Every option as markdown: a table for the whole file and one for each section."""
    parts = [_table("The file", Config, Option(help=""))]
    parts += [_table("`api`", *_inner(Config, "api"))]
    parts += [_table("`targets: NAME:`", Target, Option(help="")), _table("`boxes: NAME:`", Box, Option(help=""))]
    parts += [_table("`jobs: NAME:`", Job, Option(help=""))]
    parts += [_table("`alerts`", *_inner(Config, "alerts")), _table("`webhooks: NAME:`", Webhook, Option(help=""))]
    parts += [_table("`hooks`", *_inner(Config, "hooks")), _table("`vzdump`", *_inner(Config, "vzdump"))]
    parts += [_table("`verify`", *_inner(Config, "verify"))]
    parts += [_table("`keep` of a target, a box or a job", *_inner(Job, "keep"))]
    return "\n".join(parts)


def reference_page() -> str:
    """docs/configuration.md: the reference with what holds for all of it."""
    return f"{_PAGE}\n{config_reference()}"


def _inner(section: type, name: str) -> tuple[type, Option]:
    option = next(option for entry, option in option_fields(section) if entry.name == name)
    wanted: type = type_hints(section)[name]
    return wanted, option


def _file(guests: Sequence[Guest]) -> Iterator[str]:
    """The top level: sections are there, so that removing one `#` in them is enough; jobs has a job."""
    for entry, option in option_fields(Config):
        wanted = type_hints(Config)[entry.name]
        yield ""
        yield from _prose(option, wanted, 0)
        if is_section(wanted) or _is_mapping(wanted):
            yield f"{key_of(entry, '')}:"
            yield from _job(option, guests) if entry.name == "jobs" else map(_unset, _below(wanted, option, 1))
        else:
            yield _unset(f"{key_of(entry, '')}: {_value(entry, option)}")


def _job(named: Option, guests: Sequence[Guest]) -> Iterator[str]:
    """The first job: what it must have and its history are set."""
    yield f"  {named.example}:"
    yield from _guest_list(guests)
    for entry, option in option_fields(Job):
        wanted = type_hints(Job)[entry.name]
        lines = list(_entry(entry, option, wanted, 2))
        yield from lines if is_required(entry) or wanted is Keep else map(_unset_line, lines)


def _unset(line: str) -> str:
    return f"#{line}"


def _unset_line(line: str) -> str:
    return line if line.lstrip().startswith("#") else _unset(line)


def _entry(entry: Field[Any], option: Option, wanted: Any, level: int) -> Iterator[str]:
    """The lines of one option in a section, set: at its default, or with its example."""
    indent = "  " * level
    yield from _prose(option, wanted, level)
    if is_section(wanted):
        yield f"{indent}{key_of(entry, '')}:"
        yield from _keep(entry, option, level + 1)
    else:
        yield f"{indent}{key_of(entry, '')}: {_value(entry, option)}"


def _below(wanted: Any, option: Option, level: int) -> Iterator[str]:
    """What is below a section, or below the section of an example's name."""
    section = wanted
    if _is_mapping(wanted):
        yield f"{'  ' * level}{option.example}:"
        section, level = get_args(wanted)[1], level + 1
    for entry, inner in option_fields(section):
        yield from _entry(entry, inner, type_hints(section)[entry.name], level)


def _keep(entry: Field[Any], option: Option, level: int) -> Iterator[str]:
    for inner, about in option_fields(Keep):
        setting = f"{key_of(inner, option.prefix)}: {getattr(entry.default, inner.name)}"
        yield f"{'  ' * level}{setting:<18}# {about.help}"


def _is_mapping(wanted: Any) -> bool:
    origin = get_origin(wanted)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _prose(option: Option, wanted: Any, level: int) -> Iterator[str]:
    indent = "  " * level
    text = option.help
    if option.kind and (option.kind.number or option.kind.listed) and not is_section(wanted):
        text += f" [{option.kind.expects}]"
    for line in textwrap.wrap(text, _WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _value(entry: Field[Any], option: Option) -> str:
    return option.example or _yaml(entry.default)


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, StrEnum) else value)


def _guest_list(guests: Sequence[Guest]) -> Iterator[str]:
    if guests:
        yield "    # Guests found on this node when this file was written:"
    for guest in guests:
        kind = "VM" if guest.kind is GuestKind.VM else "container"
        # Lists in comments get a star: the markers of options begin with two spaces.
        yield f"    # * {guest.vmid} {printable(guest.name) or '(no name)'}, {kind}"
        for disk in guest.disks:
            yield f"    #   - {_disk(disk)}"


def _disk(disk: Disk) -> str:
    what = printable(disk.dataset or disk.volid)
    return f"{disk.key}: {what}" + (f" (not protected: {printable(disk.reason)})" if disk.reason else "")


def _table(title: str, section: type, about: Option) -> str:
    rows = [f"## {title}", "", "| key | value | default | |", "|---|---|---|---|"]
    for entry, option in option_fields(section):
        kind = option.kind or about.kind
        wanted = type_hints(section)[entry.name]
        value = kind.expects if kind and not is_section(wanted) else "a section"
        if _is_mapping(wanted):
            value = "names, each with a section"
        elif option.refers:
            value = f"a list of names of {option.refers}"
        elif get_origin(wanted) is tuple:
            value = f"a list of: {value}"
        cells = [f"`{key_of(entry, about.prefix)}`", value, _default(entry), option.help]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*rows, ""])


def _default(entry: Field[Any]) -> str:
    if is_required(entry):
        return "required"
    if entry.default is MISSING or entry.default in (None, ()) or is_section(type(entry.default)):
        return ""
    return f"`{_yaml(entry.default)}`"
