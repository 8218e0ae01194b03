"""The documentation is true: its command lines can be typed, its links lead somewhere, its messages exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from pve_zfsbackup.cli import cli
from tests.documented import (
    ELSEWHERE,
    NOT_SEEN,
    PAGES,
    PROGRAM,
    ROOT,
    WORDS,
    Block,
    bare,
    blocks,
    blocks_of,
    examples,
    executes,
    filled,
    pages_read_by_tests,
    signature,
    typed_examples,
    unmarked,
)
from tests.lab.test_docs import ANSWERS, AT_TERMINAL, FED
from tools.manpage import CONFIGURATION, PROSE, children, context_of, name_of

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


@pytest.mark.parametrize("context", pages(), ids=name_of)
def test_every_man_page_has_an_example_that_can_be_typed(context: click.Context) -> None:
    page = name_of(context)
    text = "\n".join(examples(page))
    found = list(command_lines(f"```\n{text}\n```\n"))
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


# -- every command line is executed somewhere


def every_line() -> list[tuple[str, str]]:
    """Each command line of a block of code that is not typed in the lab as it stands, and where it is."""
    return [(block.where, line) for block in unmarked() for line in block.lines]


@pytest.mark.parametrize(("where", "line"), [one for one in every_line() if bare(one[1]) not in NOT_SEEN])
def test_a_command_line_is_executed_by_a_test(where: str, line: str) -> None:
    """Typed in a marked block or as an example of a man page, or walked through by the test that is named for it."""
    typed = {signature(one) for block in (*blocks(), *typed_examples()) for one in block.lines}
    called = signature(line)
    assert called in typed or called in ELSEWHERE, (
        f"{where}: mark the block, or say in tests/documented.py what executes `{bare(line)}`"
    )


@pytest.mark.parametrize(("called", "place"), ELSEWHERE.items())
def test_what_is_executed_elsewhere_is_executed_there(called: str, place: str) -> None:
    assert executes(place, called), f"{place} has no such test, or not these words"


def test_nothing_is_named_that_no_page_has() -> None:
    lines = [line for block in (*blocks(), *unmarked()) for line in block.lines]
    lines += [line for page in PROSE.glob("*.man") for line in examples(page.stem)]
    known = {bare(line) for line in lines} | {signature(line) for line in lines}
    assert (ELSEWHERE.keys() | NOT_SEEN.keys()) - known == set()
    assert len(NOT_SEEN) <= 2, "what nobody executes is an exception"


def test_a_block_that_a_test_reads_from_the_page_is_read_there() -> None:
    found = pages_read_by_tests()
    assert found
    for page, place in found:
        name, _, test = place.partition("::")
        text = (ROOT / name).read_text()
        assert f"docs/{page}" in text
        assert f"def {test}(" in text


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_code_is_fenced_so_that_no_command_line_is_missed(page: Path) -> None:
    text = re.sub(r"(?ms)^([ ]*)```.*?^\1```", "", page.read_text())
    assert [line for line in text.splitlines() if re.match(r"(?: {4}|\t)\S", line)] == []
    languages = set(re.findall(r"(?m)^[ ]*```(\w+)$", page.read_text()))
    assert languages <= {"sh", "yaml", "toml", "ini", "text"}, "a new one may have command lines"


@pytest.mark.parametrize(
    ("place", "line", "is_there"),
    [
        ("tests/lab/test_keys.py::test_the_keys_of_this_host_are_tried_and_a_wrong_one_is_told", "key test", True),
        ("tests/lab/test_keys.py::test_no_such_test", "key test", False),
        ("tests/lab/test_restore.py::test_one_disk_is_laid_beside", "restore --disk --from", True),
        ("tests/lab/test_restore.py::test_one_disk_is_laid_beside", "restore --disk --no-such-option", False),
        ("tests/lab/test_restore.py::test_one_disk_is_laid_beside", "verify drill", False),
        ("tests/lab/test_archive.py::test_a_fresh_host_restores_it_with_nothing_but_the_script", "key change", False),
        ("Makefile", "make demo", True),
        ("Makefile", "make coffee", False),
    ],
)
def test_words_that_are_not_there_are_missed(place: str, line: str, is_there: bool) -> None:
    assert executes(place, line) == is_there


@pytest.mark.parametrize(
    ("line", "called"),
    [
        ("pve-zfsbackup restore 100 --as 9100 --start   # beside it", "restore --as --start"),
        ("pve-zfsbackup verify archive box1 --level hashed", "verify archive --level"),
        ("pve-zfsbackup setup target backup1 --check", "setup target --check"),
        ("pve-zfsbackup setup", "setup"),
        ("pve-zfsbackup run -v tag:prod", "run"),
        ("pve-zfsbackup-receiver check", "pve-zfsbackup-receiver check"),
        ("zfs allow x tank   # older", "zfs allow x tank"),
    ],
)
def test_a_line_calls_a_command_with_options(line: str, called: str) -> None:
    assert signature(line) == called


# -- blocks that the lab executes


def test_marked_blocks_are_found_and_made_of_lines_that_can_be_executed() -> None:
    found = (*blocks(), *typed_examples())
    lines = [filled(line) for block in found for line in block.lines]
    assert len(blocks()) >= 30
    assert {block.host for block in found} == {"pve1", "backup1"}
    assert all(set(block.words) <= WORDS.keys() for block in found)
    filled_in = [line for line in lines if re.search(r"(?<![-\w])[A-Z]{3,}(?!\w)|…|<(?![<( ])", bare(line))]
    assert filled_in == [], "that takes a reader"
    for line in lines:
        shlex.split(line, comments=True)


def test_what_is_known_of_lines_is_of_lines_that_are_typed() -> None:
    typed = {bare(line) for block in (*blocks(), *typed_examples()) for line in block.lines}
    assert (ANSWERS.keys() | FED.keys() | AT_TERMINAL) - typed == set()


def test_a_marker_needs_its_block_and_answers_are_not_typed() -> None:
    text = (
        "a\n<!-- lab: pve1 target -->\n```sh\npve-zfsbackup run \\\n  -v   # all\n\n# nothing\n```\nb\n"
        "   <!-- lab: pve1 -->\n   ```\n   $ pve-zfsbackup check\n   WARNING - x\n   ```\n"
        "```\ncat > x <<END\na\nEND\nls\n```\n```yaml\na: b\n```\n<!-- test: a.py::b -->\n```\nls\n```\n"
    )
    one, two, three, four = blocks_of("page.md", text)
    assert one == Block(
        where="page.md:2", host="pve1", words=("target",), lines=("pve-zfsbackup run    -v   # all",)
    )
    assert (two.where, two.lines) == ("page.md:10", ("pve-zfsbackup check",))
    assert (three.host, three.lines) == ("", ("cat > x <<END\na\nEND", "ls"))
    assert (four.host, four.test, four.lines) == ("", "a.py::b", ("ls",))
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
