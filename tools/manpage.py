"""Write the man pages of pve-zfsbackup from the commands themselves: `manpage.py DIRECTORY`.

One page for the program and one for every command below it, and pve-zfsbackup.yaml(5) for the configuration,
in man(7). Options, arguments and descriptions are what `--help` and the configuration's definitions say; what
these have no place for (files, exit status, examples) is man(7) text in `packaging/man/<page>.man` and is put in
behind the options. The date is that of SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from pve_zfsbackup import __version__
from pve_zfsbackup.cli import cli
from pve_zfsbackup.config.example import config_reference

PROGRAM = "pve-zfsbackup"
SECTION = "8"
CONFIGURATION = f"{PROGRAM}.yaml"
PROSE = Path(__file__).resolve().parent.parent / "packaging" / "man"


def escape(text: str) -> str:
    """Text as roff shows it literally: hyphens stay hyphens, and no line becomes a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def words(text: str) -> str:
    """One line of usage: options and literal words bold, what stands for something else in italics.

    A long list of choices may break behind each `|`; groff complains about a word that is wider than the page.
    """

    def shown(word: str) -> str:
        return re.sub(r"(?<=.)\|(?=.)", r"|\\:", formed(word))

    def formed(word: str) -> str:
        if re.search(r"[A-Z]{2}", word) or word == "...":
            return re.sub(r"([A-Z][A-Z_|-]*[A-Z])", lambda found: f"\\fI{escape(found[0])}\\fR", word)
        return word if word in {"/", "|"} else bold(word)

    return re.sub(r"[^\s,\[\]]+", lambda found: shown(found[0]), text)


def paragraphs(text: str) -> str:
    """Help text as click lays it out: blank lines part paragraphs, `\\b` alone keeps the lines of one."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text.partition("\f")[0]).strip()):
        kept = block.startswith("\b")
        body = escape(block.lstrip("\b").strip("\n"))
        if body:
            out.append(f".PP\n.nf\n{body}\n.fi" if kept else f".PP\n{body}")
    return "\n".join(out)


def name_of(context: click.Context) -> str:
    """The page: pve-zfsbackup-setup-target for `pve-zfsbackup setup target`."""
    return context.command_path.replace(" ", "-")


def context_of(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def children(context: click.Context) -> Iterator[click.Context]:
    """A context for every command below, in the order of --help."""
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield context_of(child, name, context)


def options(context: click.Context) -> str:
    entries = []
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            entries.append(f".TP\n{words(record[0])}\n{escape(record[1])}")
    return ".SH OPTIONS\n" + "\n".join(entries)


def commands(context: click.Context) -> str:
    entries = [
        f".TP\n.BR {escape(name_of(child))} ({SECTION})\n{escape(child.command.get_short_help_str(1000))}"
        for child in children(context)
    ]
    return ".SH COMMANDS\n" + "\n".join(entries) if entries else ""


def see_also(context: click.Context) -> str:
    up = context.parent
    names = [f"{CONFIGURATION}(5)", *([f"{PROGRAM}({SECTION})"] if up else [])]
    names += [f"{name_of(other)}({SECTION})" for other in children(up or context) if name_of(other) != name_of(context)]
    split = [name.rsplit("(", 1) for name in dict.fromkeys(names)]
    return ".SH SEE ALSO\n" + ",\n".join(f".BR {escape(name)} ({number}" for name, number in split)


def prose(page: str) -> str:
    path = PROSE / f"{page}.man"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def heading(page: str, section: str) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    return f'.TH {escape(page).upper()} {section} {day} "{PROGRAM} {__version__}" "Proxmox VE backup"\n.nh\n.ad l'


def page_of(context: click.Context) -> str:
    command, name = context.command, name_of(context)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        heading(name, SECTION),
        f".SH NAME\n{escape(name)} \\- {escape(command.get_short_help_str(1000).rstrip('.'))}",
        f".SH SYNOPSIS\n{bold(context.command_path)} {words(usage)}",
        f".SH DESCRIPTION\n{paragraphs(command.help or '')}",
        commands(context),
        options(context),
        paragraphs(command.epilog or ""),
        prose(name),
        see_also(context),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def pages(context: click.Context) -> Iterator[tuple[str, str]]:
    """File name and text of the page of this command and of all below it."""
    yield f"{name_of(context)}.{SECTION}", page_of(context)
    for child in children(context):
        yield from pages(child)


def configuration() -> str:
    """The page of the file, from the reference: sections of Markdown tables `| `key` | value | default | help |`."""
    out = [
        heading(CONFIGURATION, "5"),
        f".SH NAME\n{escape(CONFIGURATION)} \\- configuration of {escape(PROGRAM)}",
        prose(CONFIGURATION),
        ".SH OPTIONS",
    ]
    for line in config_reference().splitlines():
        if line.startswith("## "):
            out.append(f".SS {escape(line[3:].replace('`', ''))}")
        elif line.startswith("| `"):
            key, value, default, text = (cell.strip(" `") for cell in line.strip("| ").split(" | ", 3))
            facts = "; ".join(
                part for part in (value, default if default in {"", "required"} else f"default {default}") if part
            )
            out.append(f".TP\n{bold(key)}: {escape(facts)}\n{escape(text)}")
    return "\n".join([*out, f".SH SEE ALSO\n.BR {escape(PROGRAM)} ({SECTION})\n"])


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages(context_of(cli, PROGRAM)):
        (directory / name).write_text(text, encoding="utf-8")
    (directory / f"{CONFIGURATION}.5").write_text(configuration(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    write(Path(sys.argv[1]))
