"""The documentation is true: its command lines can be typed, its links lead somewhere, its messages exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path

import click
import pytest

from pve_zfsbackup.cli import cli
from tests.documented import PAGES, ROOT, WORDS, Block, blocks, blocks_of
from tools.manpage import CONFIGURATION, PROSE, children, context_of, name_of, prose

PROGRAM = "pve-zfsbackup"
SAMPLES = {"VMID": "100", "N": "1", "GUEST": "100", "GUESTS": "100"}  # words that stand for a number


def ids(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


# -- command lines


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and code within lines. A continued line is one."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


def command_lines(text: str) -> Iterator[list[str]]:
    """The words behind our program's name wherever a line of code calls it."""
    for line in code(text):
        bare = re.sub(r"(^|\s)#\s.*|\s{3,}#.*", "", line)
        for part in re.split(r"&&|\|\||[|;()]|[<>]\s*\S+", bare):
            try:
                words = shlex.split(part.strip().removeprefix("$ ").removesuffix("…"))
            except ValueError:
                continue  # an apostrophe in prose
            while words and (words[0] in ("sudo", "exec") or re.fullmatch(r"\w+=\S*", words[0])):
                words = words[1:]
            if words[:1] == [PROGRAM] and len(words) > 1 and not words[1].isupper():  # COMMAND stands for any
                yield words[1:]


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named need not be here."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)


def parse(words: list[str]) -> None:
    """As click does it, up to where the command would begin. Raises click's own errors."""
    command: click.Command = cli
    context = click.Context(cli, info_name=PROGRAM, **cli.context_settings)  # click keeps what -h was at first
    while isinstance(command, click.Group) and words and (child := command.get_command(context, words[0])):
        context = click.Context(command, info_name=command.name, parent=context)
        command, words = child, words[1:]
    typed = [SAMPLES.get(word, word) for word in words]
    try:
        inner = command.make_context(command.name or PROGRAM, typed, parent=context)
    except click.exceptions.Exit:
        return  # --help and --version have said what they say
    if isinstance(command, click.Group) and not command.invoke_without_command:
        inner.fail("a command is missing")


def all_command_lines() -> list[tuple[str, str]]:
    found = [(page.name, shlex.join(words)) for page in PAGES for words in command_lines(page.read_text())]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "line"), all_command_lines())
def test_every_command_line_can_be_typed(page: str, line: str) -> None:
    try:
        parse(shlex.split(line))
    except click.ClickException as error:
        pytest.fail(f"{page}: {PROGRAM} {line}: {error.format_message()}")


def test_command_lines_are_found_where_they_stand() -> None:
    text = (
        "Say `pve-zfsbackup run -v`, not `pve-zfsbackup` nor `pve-zfsbackup-receiver check`.\n"
        "```\n$ sudo pve-zfsbackup list 100   # all of them\nssh a true && pve-zfsbackup status | less\n"
        "pve-zfsbackup import sanoid FILE > config.yaml\n```\n    A=1 pve-zfsbackup check \\\n      --json\n"
    )
    assert [" ".join(words) for words in command_lines(text)] == [
        "run -v", "list 100", "status", "import sanoid FILE", "check --json"
    ]  # fmt: skip
    assert len(all_command_lines()) > 40


@pytest.mark.parametrize(
    "line", ["run --nope", "lisst", "why prune", "thaw web", "run --stage fly", "verify archive"]
)
def test_what_cannot_be_typed_is_noticed(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(shlex.split(line))


# -- man pages


def pages() -> list[click.Context]:
    """Every command that has a page, and so every group of them."""

    def below(context: click.Context) -> Iterator[click.Context]:
        yield context
        for child in children(context):
            yield from below(child)

    return list(below(context_of(cli, PROGRAM)))


ROFF = (("\\-", "-"), ("\\(dq", '"'), ("\\(ti", "~"))


def examples(page: str) -> list[list[str]]:
    """The command lines of a page's EXAMPLES, without the program's name."""
    text = prose(page).partition(".SH EXAMPLES\n")[2].partition("\n.SH ")[0]
    plain = []
    for line in text.splitlines():
        assert not (line.startswith(".B ") and '"' in line), f"{page}: roff takes the quotes away, and \\(dq is one"
        shown = reduce(lambda told, pair: told.replace(*pair), ROFF, line.removeprefix(".B "))
        if shown.startswith(PROGRAM):
            assert "\\" not in shown, f"{page}: an escape this test does not know"
            plain.append(shown)
    text = "\n".join(plain)
    return list(command_lines(f"```\n{text}\n```\n"))


@pytest.mark.parametrize("context", pages(), ids=name_of)
def test_every_man_page_has_an_example_that_can_be_typed(context: click.Context) -> None:
    page = name_of(context)
    found = examples(page)
    assert found, f"packaging/man/{page}.man has none"
    own = page.removeprefix(f"{PROGRAM}").strip("-")
    for words in found:
        typed = shlex.join(words)
        assert "-".join(words).startswith(own), f"{page}: {typed} is another command"
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{page}: {PROGRAM} {typed}: {error.format_message()}")


def test_prose_belongs_to_a_page() -> None:
    """A command that was renamed would leave its prose behind."""
    known = {name_of(context) for context in pages()} | {CONFIGURATION}
    assert sorted({path.stem for path in PROSE.glob("*.man")} - known) == []


# -- blocks that the lab executes


def test_marked_blocks_are_found_and_made_of_lines_that_can_be_executed() -> None:
    found = blocks()
    lines = [line for block in found for line in block.lines]
    assert len(found) >= 16
    assert {block.host for block in found} == {"pve1"}
    assert all(set(block.words) <= WORDS for block in found)
    filled_in = [line for line in lines if re.search(r"[A-Z]{3,}|…|<", line.partition("#")[0])]
    assert filled_in == [], "that takes a reader"
    for line in lines:
        shlex.split(line, comments=True)


def test_a_marker_needs_its_block_and_answers_are_not_typed() -> None:
    text = (
        "a\n<!-- lab: pve1 target -->\n```sh\npve-zfsbackup run \\\n  -v   # all\n\n# nothing\n```\nb\n"
        "   <!-- lab: pve1 -->\n   ```\n   $ pve-zfsbackup check\n   WARNING - x\n   ```\n"
    )
    one, two = blocks_of("page.md", text)
    assert one == Block(
        where="page.md:2", host="pve1", words=("target",), lines=("pve-zfsbackup run    -v   # all",)
    )
    assert (two.where, two.lines) == ("page.md:10", ("pve-zfsbackup check",))
    with pytest.raises(ValueError, match=r"page\.md:1: no block"):
        list(blocks_of("page.md", "<!-- lab: pve1 -->\ntext\n```\nx\n```\n"))


# -- links


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", page.read_text())
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {"README.md"}
    while True:
        linked = {
            Path(target.partition("#")[0]).name
            for page in PAGES
            if page.name in reached
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        }
        if linked <= reached:
            break
        reached |= linked
    assert {page.name for page in PAGES} <= reached


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b(docs/[\w-]+\.md|ARCHITECTURE\.md|hooks/[\w-]+|packaging/[\w./-]+)", page.read_text())
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


# -- messages


@cache
def templates() -> tuple[str, ...]:
    """Every text in the program, with … where a value is put in."""
    found = []
    for path in sorted((ROOT / "pve_zfsbackup").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
    return tuple(found)


def documented() -> list[str]:
    return re.findall(r"(?m)^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text())


@pytest.mark.parametrize("message", documented())
def test_every_documented_message_is_one_of_the_program(message: str) -> None:
    assert any(message in template for template in templates()), "no text of the program has these words"


def test_each_message_is_explained_once_and_has_something_to_do() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    headings = documented()
    assert len(headings) == len(set(headings)) > 40
    blocks = re.split(r"(?m)^#+ .*$", text)
    assert [block for block in blocks[1:] if 0 < len(block.strip()) < 20] == []
    for message in headings:
        plain = re.sub(r"…|\W", "", message)
        assert len(plain) >= 10, f"{message}: too little to be looked for"
