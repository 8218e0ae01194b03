"""The documentation's blocks of code, and where a test executes each of their command lines.

A block behind `<!-- lab: HOST WORD… -->` is typed in the lab (tests/lab/test_docs.py): HOST is where, WORDS say what is
the case by then. So are the examples of the man pages (`examples`). What is behind `<!-- test: FILE::TEST -->` is read
from the page and executed by that test. The others are in `ELSEWHERE`, or in `NOT_SEEN`.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path

from tools.manpage import PROSE, prose

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAM = "pve-zfsbackup"
LAB = "tests/lab"
WORDS = {
    "target": "the target backup1 is configured",
    "box": "the box box1 is configured, and its provider knows this node's key",
    "leave": "on the target: the account as `setup target` makes it, which may do things in tank/backups/pve1, too",
    "bare": "on the target: no account, and nothing at tank/backups",
}
LAST = ("leave", "bare")  # what takes the account away that all others need
GROUPS = ("hook", "import", "key", "verify", "why")  # commands of commands
COMMANDS = ("", "sh")  # the languages of blocks that are made of command lines
# What words for the reader to fill in are in the lab; nothing is the fingerprint of the box's host key.
FILLED = {"SHA256:…": "", "FILE": "/media/safe/box1.key"}
_SIGNED = (
    "ssh-keygen -Y verify -f archive.signers -I <writer> -n pve-zfsbackup-archive -s manifest.json.sig < manifest.json"
)
# By a line as it stands, or by the command and options of our program's: which file, or test in it, executes that; `by`
# what is started there. A line of a marked block that is here is not typed.
ELSEWHERE = {
    "make deb": "tests/lab/conftest.py::debs",
    "make demo": "Makefile",
    "make test": "Makefile",
    # Each asks a person, and is told --yes; guests are made, put back and taken over, of those tests' own.
    "restore": f"{LAB}/test_archive.py::test_the_guest_that_was_destroyed_is_made_again_on_the_node",
    "restore --as": f"{LAB}/test_restore.py::test_a_copy_from_the_target_is_equal_and_tells_itself_apart",
    "restore --as --start": f"{LAB}/test_docs.py::test_a_copy_is_made_and_started",
    "restore --at --replace": f"{LAB}/test_restore.py::test_a_stopped_guest_is_replaced_from_the_source",
    "restore --disk --from": f"{LAB}/test_restore.py::test_one_disk_is_laid_beside",
    "restore --files": f"{LAB}/test_drill.py::test_files_are_listed_and_copied_as_they_were",
    "restore --files --to": f"{LAB}/test_drill.py::test_files_are_listed_and_copied_as_they_were",
    "rollback --at": f"{LAB}/test_restore.py::test_rolled_back_in_place_and_replicated_on",
    "verify drill": f"{LAB}/test_drill.py::test_what_is_whole_passes_and_what_is_not_is_found",
    "verify drill --expect --local": f"{LAB}/test_drill.py::test_what_is_whole_passes_and_what_is_not_is_found",
    "verify drill --read": f"{LAB}/test_docs.py::test_a_guest_is_drilled_with_all_its_data_read",
    "verify drill --budget": f"{LAB}/test_docs.py::test_a_guest_is_drilled_with_all_its_data_read",
    "verify drill --boot": f"{LAB}/test_drill.py::test_what_is_good_is_started_beside_its_guest",
    "verify plant": f"{LAB}/test_plant.py::test_a_canary_takes_the_place_of_the_last_one_and_nothing_else",
    "verify plant --forget": f"{LAB}/test_plant.py::planted",
    "failover --all --dry-run": f"{LAB}/test_failover.py::test_silence_is_no_proof_and_a_dry_run_shows_the_plan",
    "failover --all": f"{LAB}/test_failover.py::test_silence_is_no_proof_and_a_dry_run_shows_the_plan",
    "failover --fenced": f"{LAB}/test_failover.py::test_killed_and_repeated_a_failover_makes_the_newest_points_disks",
    "failover --at --no-start --storage": f"{LAB}/test_failover.py::"
    "test_silence_is_no_proof_and_a_dry_run_shows_the_plan",
    "failover --force --reason": f"{LAB}/test_failover.py::test_nothing_is_taken_over_while_the_source_answers",
    "failback --dry-run": f"{LAB}/test_failover.py::test_only_what_changed_travels",
    "failback --start": f"{LAB}/test_failover.py::test_an_encrypted_disk_goes_home_in_full",
    "unblock-rollback": f"{LAB}/test_proxmox.py::test_proxmox_rolls_back_after_we_made_way",
    "unblock-rollback --dry-run": f"{LAB}/test_proxmox.py::test_proxmox_rolls_back_after_we_made_way",
    "qm rollback 100 before-upgrade": f"{LAB}/test_proxmox.py::test_proxmox_rolls_back_after_we_made_way",
    # Of a dataset of their own: rpool/crypt is there already.
    "key create --passphrase": f"{LAB}/test_keys.py::test_a_passphrase_is_read_from_standard_input",
    "key change": f"{LAB}/test_keys.py::test_after_a_change_the_replica_opens_with_the_old_key_still",
    "key test --key-file": f"{LAB}/test_keys.py::test_what_was_printed_for_the_safe_opens_source_and_replica",
    _SIGNED: f"{LAB}/test_archive.py::test_a_fresh_host_restores_it_with_nothing_but_the_script by "
    "pve_zfsbackup/archive/kit.py",
}
# What no test executes, and why.
NOT_SEEN = {
    "pvesm add zfspool crypt --pool rpool/crypt --content images,rootdir": "the simulated node has no pvesm",
    "apt install prometheus-node-exporter python3-prometheus-client": "neither the lab nor a root has a network; the "
    "directory of the one and the library of the other are there",
}
_MARK = re.compile(r"(?m)^[ ]*<!-- (lab|test): ([^\n]*?) -->\n")
_FENCE = re.compile(r"(?m)^([ ]*)```(\w*)\n(.*?)^\1```$", re.DOTALL)
_ROFF = (("\\-", "-"), ("\\(dq", '"'), ("\\(ti", "~"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`lines` are the command lines, continued ones as one; `where` is the page and line of the marker, or of the block
    where there is none: then `host` and `test` are empty."""

    where: str
    host: str = ""
    test: str = ""
    words: tuple[str, ...] = ()
    lines: tuple[str, ...]


def blocks() -> tuple[Block, ...]:
    """What is typed in the lab: every marked block, in the order in which the pages are read. Raises ValueError for a
    marker without a block."""
    return tuple(block for block in _all() if block.host)


def unmarked() -> tuple[Block, ...]:
    """Every block of command lines that is neither typed in the lab nor read from its page by a test."""
    return tuple(block for block in _all() if not block.host and not block.test)


def pages_read_by_tests() -> tuple[tuple[str, str], ...]:
    """Page and test of every block that a test reads from its page."""
    return tuple((block.where.partition(":")[0], block.test) for block in _all() if block.test)


@cache
def _all() -> tuple[Block, ...]:
    return tuple(block for page in PAGES for block in blocks_of(page.name, page.read_text("utf-8")))


def blocks_of(page: str, text: str) -> Iterator[Block]:
    marks = {mark.end(): mark for mark in _MARK.finditer(text)}
    fences = {fence.start(): fence for fence in _FENCE.finditer(text)}
    for at in sorted(marks.keys() | fences.keys()):
        mark, fence = marks.get(at), fences.get(at)
        where = f"{page}:{text.count(chr(10), 0, mark.start() if mark else at) + 1}"
        if not fence:
            raise ValueError(f"{where}: no block of code follows the marker")
        if fence[2] in COMMANDS:
            first, *words = mark[2].split() if mark else [""]
            host, test = ("", first) if mark and mark[1] == "test" else (first, "")
            yield Block(where=where, host=host, test=test, words=tuple(words), lines=tuple(_lines(fence[3])))


def _lines(block: str) -> Iterator[str]:
    """Where a block shows answers as well, only lines with a prompt are typed. A here-document belongs to its line."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    typed = iter([line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines)
    for line in typed:
        if here := re.search(r"<<(\w+)$", line):
            whole = [line]
            while whole[-1] != here[1]:
                whole.append(next(typed))
            yield "\n".join(whole)
        elif line and not line.startswith("#"):
            yield line


def bare(line: str) -> str:
    """A command line without the remark behind it."""
    return re.sub(r"\s+#.*", "", line).strip()


def filled(line: str, fingerprint: str = "SHA256:x") -> str:
    """A command line with what the reader fills in; `fingerprint` is that of the box's host key."""
    for words, value in FILLED.items():
        line = re.sub(rf"(?<!\S){re.escape(words)}(?!\S)", value or fingerprint, line)
    return line


def signature(line: str) -> str:
    """Which command of our program a line calls, with which options: `restore --as --start`. Else the line itself."""
    line = bare(line)
    words = shlex.split(line) if line.startswith(f"{PROGRAM} ") else []
    if not words:
        return line
    own = [word for word in words[1:] if not word.startswith("-")]
    deep = 2 if (own[:1] and own[0] in GROUPS) or own[:2] in (["setup", "target"], ["setup", "box"]) else 1
    options = sorted({word.partition("=")[0] for word in words if word.startswith("--")})
    return " ".join([*own[:deep], *options])


@cache
def examples(page: str) -> tuple[str, ...]:
    """The command lines of a man page's EXAMPLES. Raises ValueError for what roff would make something else of."""
    text = prose(page).partition(".SH EXAMPLES\n")[2].partition("\n.SH ")[0]
    found = []
    for line in text.splitlines():
        if line.startswith(".B ") and '"' in line:
            raise ValueError(f"{page}: roff takes the quotes away, and \\(dq is one")
        shown = reduce(lambda told, pair: told.replace(*pair), _ROFF, line.removeprefix(".B "))
        if shown.startswith(PROGRAM):
            if "\\" in shown:
                raise ValueError(f"{page}: {shown}: an escape that is not known here")
            found.append(shown)
    return tuple(found)


@cache
def typed_examples() -> tuple[Block, ...]:
    """The examples of man pages that no page of the documentation has: they are typed on the node, one by one."""
    known = {signature(line) for block in blocks() for line in block.lines} | set(ELSEWHERE)
    found: dict[str, Block] = {}
    for page in sorted(PROSE.glob("*.man")):
        for line in examples(page.stem):
            if signature(line) not in known:
                one = Block(where=page.name, host="pve1", words=("target", "box"), lines=(line,))
                found.setdefault(signature(line), one)
    return tuple(found.values())


# -- whether a test executes what it is named for


def executes(place: str, line: str) -> bool:
    """Whether the file of `FILE`, `FILE::TEST` or `FILE::TEST by FILE` has that test, and the command of a line with
    its options (a signature does as well)."""
    place, _, started = place.partition(" by ")
    name, _, test = place.partition("::")
    text = (ROOT / name).read_text("utf-8")
    line = line.split(" <", maxsplit=1)[0]
    if not name.endswith(".py"):
        return all(re.search(rf"(?m)^{re.escape(word)}\b", text) for word in line.split()[1:])
    functions = {node.name: node for node in ast.walk(_parsed(name)) if isinstance(node, ast.FunctionDef)}
    if test not in functions:
        return False
    said = _said(_parsed(started or name))
    command, options = _plain(line.split())[:2], {word for word in line.split() if word.startswith("--")}
    if not options <= {word for words in said for word in words}:
        return False
    # A helper may say the first word, as in `key("test", …)`.
    own = () if started else [_plain(words) for words in _said(functions[test])]
    return any(_runs(command, _plain(words)) for words in said) or (
        any(words[: len(command) - 1] == command[1:] for words in own if command[1:])
        and any(command[0] in words for words in said)
    )


@cache
def _parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text("utf-8"))


def _plain(words: list[str]) -> list[str]:
    return [word for word in words if not re.fullmatch(r"-.*|[\d,.]+", word)]


@cache
def _said(tree: ast.AST) -> tuple[list[str], ...]:
    """The words of the texts in each call, tuple, list and text, in their order."""
    return tuple(words for node in ast.walk(tree) if (words := _texts(node)))


def _texts(node: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return text.split()
        case ast.Call(args=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [word for part in parts for word in _texts(part)]
    return []


def _runs(command: list[str], words: list[str]) -> bool:
    """Whether the words of a command stand there side by side."""
    return any(words[at : at + len(command)] == command for at in range(len(words)))
