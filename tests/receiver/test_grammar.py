"""The forced command's grammar: what is understood, what is denied, and that the two do not blur."""

from __future__ import annotations

import os
import random
import shlex
import string
import subprocess
from collections.abc import Sequence

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.receiver import DENIED, DeniedError, parse, serve
from tests.receiver.conftest import ROOT, Target
from tests.receiver.lines import (
    ABORT,
    ALLOWED,
    CREATE,
    DISK,
    GREP,
    LIST,
    OTHER,
    RECEIVE,
    RESUME,
    SEND,
    SET,
    SNAPSHOT,
    STAMP,
    TOKEN,
    ZPOOL,
)

POINT = f"zfs set pve-zfsbackup:point=100/{STAMP}"
SEED = 20261123
MUTATIONS = 10_000


@pytest.mark.parametrize("line", ALLOWED)
def test_the_contract_is_understood_word_for_word(line: str) -> None:
    request = parse(line, ROOT)
    words = [word for command in (*request.filters, *request.commands) for word in command.words]
    assert words == [word for word in shlex.split(line.replace("; }", " }")) if word not in ("&&", "|", "{", "}")]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "no command"),
        ("sh", "'sh'"),
        ("zfs", "missing behind 'zfs'"),
        ("zfs destroy " + SNAPSHOT, "'destroy'"),
        ("zfs rollback " + SNAPSHOT, "'rollback'"),
        (f"zfs rename {DISK} {OTHER}", "'rename'"),
        (f"zfs mount {DISK}", "'mount'"),
        (f"zfs hold pve-zfsbackup {SNAPSHOT}", "'hold'"),
        (f"zfs release pve-zfsbackup {SNAPSHOT}", "'release'"),
        (f"zfs get all {DISK}", "'get'"),
        (f"zfs send {SNAPSHOT}", f"'{SNAPSHOT}'"),
        (f"zfs send -R -- {SNAPSHOT}", "'-R'"),
        (f"zfs send -- {SNAPSHOT}", "'--'"),
        (f"zfs send -L -c -p -- {SNAPSHOT}", "'-p'"),
        (f"zfs send -w -- {DISK}", f"'{DISK}'"),
        (f"zfs send -w -- {DISK}@manual", "@manual'"),
        (f"zfs send -w -- tank/backups/pve2/x@pzb:{STAMP}", "pve2"),
        (f"zfs send -w -i tank/backups/pve2/x@pzb:{STAMP} -- {SNAPSHOT}", "pve2"),
        (f"zfs send -w -I {SNAPSHOT} -- {SNAPSHOT}", "'-I'"),
        (f"zfs send -w -- {SNAPSHOT} {SNAPSHOT}", f"'{SNAPSHOT}'"),
        (f"{SEND} && {SEND}", "'send'"),
        (f"{LIST} && {SEND}", "'send'"),
        (f"zstd -dqc | {SEND}", "cannot follow"),
        (f"{SEND} | zstd -qc", "'zfs'"),
        (f"{SEND} > /etc/passwd", "is not"),
        (f"{RESUME} -w", "'-w'"),
        ("zfs send -t", "missing behind '-t'"),
        ("zfs send -t ../../x", "'../../x'"),
        (f"zfs send -t -nvP {TOKEN}", "'-nvP'"),
        (f"zfs allow everyone destroy {ROOT}", "'allow'"),
        (f"zfs receive -F -s -u -- {DISK}", "'-F'"),
        (f"zfs receive -s -u -F -- {DISK}", "'-F'"),
        (f"zfs receive -s -u {DISK}", "is not allowed"),
        (f"zfs receive -s -- {DISK}", "'--'"),
        (f"zfs receive -u -s -- {DISK}", "'-u'"),
        (f"zfs receive -s -u -- {ROOT}", f"'{ROOT}'"),
        (f"zfs receive -s -u -- {ROOT}x/disk", f"'{ROOT}x/disk'"),
        ("zfs receive -s -u -- tank/backups/pve2/x", "'tank/backups/pve2/x'"),
        (f"zfs receive -s -u -- {ROOT}/../pve2/x", "is not allowed"),
        (f"zfs receive -s -u -- {ROOT}/./x", "is not allowed"),
        (f"zfs receive -s -u -- {ROOT}//x", "is not allowed"),
        (f"zfs receive -s -u -- {ROOT}/x/", "is not allowed"),
        (f"zfs receive -s -u -- {ROOT}/x%recv", "%recv"),
        (f"zfs receive -s -u -- {ROOT}/-x", "is not allowed"),
        (f"zfs receive -s -u -- {SNAPSHOT}", "is not allowed"),
        (f"zfs receive -s -u -- {ROOT}/{'x' * 250}", "is not allowed"),
        (f"zfs receive -s -u -- {DISK} {OTHER}", f"'{OTHER}'"),
        ("zfs receive -A -- tank/backups/pve2/x", "'tank/backups/pve2/x'"),
        (LIST.replace(f"-- {ROOT}", "-- tank"), "'tank'"),
        (f"{LIST} tank/backups/pve2", "'tank/backups/pve2'"),
        (LIST.replace("type,name", "type,sharenfs"), "sharenfs"),
        (LIST.replace("type,name", "type,other:key"), "other:key"),
        (LIST.replace("-t all", "-t bookmark"), "'bookmark'"),
        (LIST.replace("-Hp", "-H"), "'-H'"),
        (LIST.replace("-r", "-d 100"), "'100'"),
        ("grep -vx SUSPENDED /etc/shadow", "'/etc/shadow'"),
        ("grep -vx SUSPENDED /proc/spl/kstat/zfs/rpool/state", "rpool"),
        (f"{GREP} /etc/shadow", "'/etc/shadow'"),
        (ZPOOL.replace("tank", "rpool"), "'rpool'"),
        ("zpool destroy tank", "'destroy'"),
        ("zpool status -v -- tank", "'-v'"),
        ("zpool status -p -- rpool", "'rpool'"),
        ("zpool status -p -- tank rpool", "'rpool'"),
        (f"{CREATE} tank/x", "'tank/x'"),
        (f"{CREATE.replace('mountpoint=none', 'mountpoint=/')} {ROOT}/x", "'mountpoint=/'"),
        (f"{CREATE.replace(' -o volmode=none', '')} {ROOT}/x", "snapdir=hidden"),
        (f"{CREATE.replace('--', '-o sharenfs=on --')} {ROOT}/x", "'-o'"),
        (f"{POINT} {ROOT}/x@manual", "@manual'"),
        (f"{POINT} {DISK}", "is not allowed"),
        (f"{POINT} {ROOT}@pzb:{STAMP}", "is not allowed"),
        (f"{POINT} tank/other@pzb:{STAMP}", "tank/other"),
        (f"{POINT} {DISK}@pzb:20261123T180000Z-ab13", "is not of point"),
        (f"{POINT} {SNAPSHOT} {OTHER}@pzb:20261123T180000Z-ab13", "is not of point"),
        (f"{POINT} pve-zfsbackup:point=101/{STAMP} {SNAPSHOT}", "twice"),
        (f"zfs set pve-zfsbackup:volume=1 {SNAPSHOT}", "without pve-zfsbackup:point"),
        (f"{POINT} readonly=off {SNAPSHOT}", "'readonly=off'"),
        (f"{POINT} mountpoint=/ {SNAPSHOT}", "'mountpoint=/'"),
        (f"{POINT} pve-zfsbackup:else=1 {SNAPSHOT}", "else=1"),
        (f"{POINT} other:point=1 {SNAPSHOT}", "other:point=1"),
        (f"{POINT} pve-zfsbackup:conf5=x {SNAPSHOT}", "conf5"),
        (f"{POINT} pve-zfsbackup:conf={'x' * 8192} {SNAPSHOT}", "conf=xxx"),
        (f"{POINT} pve-zfsbackup:volume=x {SNAPSHOT}", "volume=x"),
        (f"zfs set pve-zfsbackup:point=x/{STAMP} {SNAPSHOT}", "point=x"),
        (f"zfs set {SNAPSHOT}", "is not allowed"),
        ("zfs set", "missing behind 'set'"),
        (POINT, "missing behind"),
        (f"{RECEIVE}; sh", "is not"),
        (f"{RECEIVE} ; sh", "is not"),
        (f"{RECEIVE} || sh", "'||'"),
        (f"{RECEIVE} & sh", "is not"),
        (f"{RECEIVE} | sh", "'zfs'"),
        (f"{RECEIVE} | zstd -dqc", "'zfs'"),
        (f"{RECEIVE} &&", "a command is missing"),
        (f"&& {RECEIVE}", "a command is missing"),
        (f"{RECEIVE} && sh", "'sh'"),
        (f"{RECEIVE} && {RECEIVE} && zfs destroy x", "'destroy'"),
        (f"{RECEIVE} > /etc/passwd", "is not"),
        (f"{RECEIVE} < x", "is not"),
        (f"{RECEIVE}\nsh", "not printable"),
        (f"{RECEIVE}\0", "not printable"),
        (f"{RECEIVE} ", "is not"),
        (f" {RECEIVE}", "is not"),
        (RECEIVE.replace(" -u", "  -u"), "is not"),
        (RECEIVE.replace(" -u", "\t-u"), "not printable"),
        (f"zfs receive -s -u -- {ROOT}/$(id)", "is not"),
        (f"zfs receive -s -u -- {ROOT}/`id`", "is not"),
        (f"zfs receive -s -u -- {ROOT}/$HOME", "is not"),
        (f"zfs receive -s -u -- {ROOT}/*", "is not"),
        (f"zfs receive -s -u -- '{ROOT}/x y'", "is not allowed"),
        (f"zfs receive -s -u -- '{DISK}'", "quoted without need"),
        (f'zfs receive -s -u -- "{DISK}"', "is not"),
        (f"zfs receive -s -u -- {ROOT}/a'b'", "is not"),
        (f"zfs receive -s -u -- {ROOT}/ü", "not printable"),
        (f"zfs\\ receive -s -u -- {DISK}", "is not"),
        (f"zstd -dqc -o x | {RECEIVE}", "'-o'"),
        (f"zstd -d | {RECEIVE}", "'-d'"),
        (f"zstd -dqc | zstd -dqc | {RECEIVE}", "'zstd'"),
        (f"mbuffer -q -s 128k -m 64M | zstd -dqc | {RECEIVE}", "'zstd'"),
        (f"mbuffer -q -s 128k -m 5G | {RECEIVE}", "'5G'"),
        (f"mbuffer -q -s 128k -m 64M -o /tmp/x | {RECEIVE}", "'-o'"),
        (f"mbuffer -q -s 128k -m 64M -T /tmp/x | {RECEIVE}", "'-T'"),
        (f"cat | {RECEIVE}", "'cat'"),
        (f"zstd -dqc | {LIST}", "cannot follow"),
        (f"zstd -dqc | {ABORT}", "cannot follow"),
        (f"zstd -dqc | {RECEIVE} && {RECEIVE}", "needs braces"),
        (f"{{ {RECEIVE}; }}", "'{'"),
        (f"zstd -dqc | {{ {RECEIVE} && sh; }}", "'sh'"),
        (f"zstd -dqc | {{ {{ {RECEIVE}; }}; }}", "'{'"),
        (f"zstd -dqc | {{ {RECEIVE}; }} && sh", "'{'"),
        ("zstd -dqc | { ; }", "is not"),
        ("zstd -dqc", "'zstd'"),
        (f"zstd -dqc | {SET}", "cannot follow"),
        ("hello world", "'world'"),
        ("x" * (1 << 20), "too long"),
    ],
)
def test_all_else_is_denied_and_the_word_is_named(line: str, word: str) -> None:
    with pytest.raises(DeniedError) as denied:
        parse(line, ROOT)
    assert word in str(denied.value)
    assert len(str(denied.value)) < 500
    assert str(denied.value).isprintable()


def mutated(chance: random.Random) -> str:
    """One of the contract's lines with one to three things done to it."""
    line = chance.choice(ALLOWED)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        line = chance.choice(MUTATORS)(line, chance)
    return line


def _flip(line: str, chance: random.Random) -> str:
    at = chance.randrange(len(line)) if line else 0
    return line[:at] + chr(ord(line[at]) ^ (1 << chance.randrange(8))) + line[at + 1 :] if line else "\x01"


def _insert(line: str, chance: random.Random) -> str:
    at = chance.randrange(len(line) + 1)
    odd = chance.choice(
        [*";|$`\n&<>(){}*?[]~!#\"'\\ \t\r\0%@-./=^,", "&&", "||", "; ", " ;sh; ", "$(id)", "..", "\u202e"]
    )
    return line[:at] + odd + line[at:]


def _delete(line: str, chance: random.Random) -> str:
    at = chance.randrange(len(line) + 1)
    return line[:at] + line[at + chance.randrange(1, 9) :]


def _swap_root(line: str, chance: random.Random) -> str:
    roots = ("tank", "tank/backups", "tank/backups/pve2", "rpool/data", f"{ROOT}x", f"{ROOT}/..", "/", "", "-r")
    return line.replace(ROOT, chance.choice(roots), chance.choice((1, 9)))


def _option(line: str, chance: random.Random) -> str:
    options = ("-F", "-r", "-R", "-f", "-d", "-n", "-o", "-x", "-u", "--", "-", "-o sharenfs=on", "mountpoint=/", "-e")
    words = line.split(" ")
    words.insert(chance.randrange(len(words) + 1), chance.choice(options))
    return " ".join(words)


def _verb(line: str, chance: random.Random) -> str:
    verbs = ("destroy", "rollback", "rename", "mount", "hold", "release", "get", "send", "allow", "inherit", "promote")
    words = line.split(" ")
    if len(words) > 1:
        words[1] = chance.choice(verbs)
    return " ".join(words)


def _unicode(line: str, chance: random.Random) -> str:
    at = chance.randrange(len(line) + 1)
    return (
        line[:at]
        + chance.choice(["é", "\udcff", "\uff0f", "\u2215", "\U0001f600", "\x7f", "\x1b[2J", "\u0660"])
        + line[at:]
    )


def _long(line: str, chance: random.Random) -> str:
    at = chance.randrange(len(line) + 1)
    return line[:at] + chance.choice(string.printable) * chance.choice((300, 9000, 200_000)) + line[at:]


def _join(line: str, chance: random.Random) -> str:
    joint = chance.choice([" && ", " | ", " || ", "; ", " & ", "\n", " "])
    return line + joint + chance.choice(["sh", "id", "zfs destroy -r tank", "cat /etc/shadow", chance.choice(ALLOWED)])


def _shuffle(line: str, chance: random.Random) -> str:
    words = line.split(" ")
    one, other = chance.randrange(len(words)), chance.randrange(len(words))
    words[one], words[other] = words[other], words[one]
    return " ".join(words)


MUTATORS = (_flip, _insert, _delete, _swap_root, _option, _verb, _unicode, _long, _join, _shuffle)


def harmless(line: str) -> bool:
    """Whether a shell of a plain account would make of this line only what the contract lets a source do.

    Written apart from the receiver, by words and with `shlex`: a line that passes both is one both understand alike.
    """
    if not line.isascii() or not line.isprintable() or len(line) > 128 << 10:
        return False
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>(){}")
        lexer.whitespace_split = True
        lexer.commenters = ""
        words = list(lexer)
    except ValueError:
        return False
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|"):
            commands.append([])
        elif word not in ("{", "}", ";"):
            commands[-1].append(word)
    if any(command[:2] == ["zfs", "send"] for command in commands) and len(commands) > 1:
        return False
    return all(_harmless(command) for command in commands)


def _below(name: str) -> bool:
    parts = name.split("/")
    return name.startswith(f"{ROOT}/") and all(part not in ("", ".", "..") for part in parts) and "%" not in name


def _harmless(command: list[str]) -> bool:
    match command:
        case ["hello"] | ["zfs", "version"] | ["zstd", "-dqc"]:
            return True
        case ["mbuffer", "-q", "-s", _, "-m", _]:
            return True
        case ["grep", "-vx", "SUSPENDED", "/proc/spl/kstat/zfs/tank/state"]:
            return True
        case ["zpool", *words]:
            return " ".join(words) in ("get -Hp -o property,value all -- tank", "status -p -- tank")
        case ["zfs", "list", "-Hp", "-r", "-t", _, "-o", _, "--", *names] if names:
            return all(name == ROOT or _below(name) for name in names)
        case ["zfs", "list", "-Hp", "-d", _, "-t", _, "-o", _, "--", *names] if names:
            return all(name == ROOT or _below(name) for name in names)
        case ["zfs", "create", *_, "--", name]:
            return command[:-1] == CREATE.split(" ") and (name == ROOT or _below(name))
        case ["zfs", "receive", "-s", "-u", "--", name] | ["zfs", "receive", "-A", "--", name]:
            return _below(name) and "@" not in name
        case ["zfs", "send", "-t", token]:  # judged by what it names, when it is asked
            return set(token) <= set("0123456789abcdef-")
        case ["zfs", "send", "-w", "--", name] | ["zfs", "send", "-L", "-c", "--", name]:
            return _below(name) and "@pzb:" in name
        case ["zfs", "send", "-w", "-i", base, "--", name] | ["zfs", "send", "-L", "-c", "-i", base, "--", name]:
            return all(_below(one) and "@pzb:" in one for one in (base, name))
        case ["zfs", "set", *words]:
            pairs = [word for word in words if "=" in word]
            names = [word for word in words if "=" not in word]
            ours = all(pair.startswith("pve-zfsbackup:") for pair in pairs)
            stamps = {name.partition("@pzb:")[2] for name in names}
            points = {pair.partition("/")[2] for pair in pairs if pair.startswith("pve-zfsbackup:point=")}
            return ours and bool(names) and all(_below(name) for name in names) and stamps == points
    return False


class Started:
    """A process that succeeds, and says nothing but what a token is of, and that this is still so."""

    returncode = 0

    def __init__(self, argv: Sequence[str]) -> None:
        token = f"\ttoguid = 0x5\n\ttoname = {SNAPSHOT}\n".encode()
        self.told = token if "-nvP" in argv else b"5\n" if "guid" in argv else b""

    def wait(self) -> int:
        return 0

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        return self.told, b""


def test_ten_thousand_mutated_lines_start_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied and logged, unless what came out still is a line of the contract; and never a process for a denied one."""
    chance = random.Random(SEED)
    started: list[str] = []
    logged: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda argv, **_: started.append(str(argv)) or Started(argv))
    monkeypatch.setattr(receiver, "peeked", lambda stdin, size: started.append("stdin") or b"")
    monkeypatch.setattr(receiver, "pool_state", lambda site, pool: started.append(pool) or None)
    monkeypatch.setattr(receiver, "log", logged.append)
    monkeypatch.setattr(receiver, "say", told.append)
    monkeypatch.setattr(os, "write", lambda fd, data: len(data))
    denied = 0
    for number in range(MUTATIONS):
        line = mutated(chance)
        before = len(started), len(logged), len(told)
        status = serve(target.site, line)
        if status == DENIED:
            denied += 1
            assert (len(started), len(logged), len(told)) == (before[0], before[1] + 1, before[2] + 1), line
            assert all(text.isascii() and text.isprintable() and len(text) < 2000 for text in (logged[-1], told[-1]))
        else:
            assert harmless(line), f"number {number} was understood: {line!r}"
    assert denied > MUTATIONS * 0.9
    assert started, "not one mutation left a line of the contract: the control is missing"


def test_the_control_of_the_fuzz_knows_the_contract_and_the_attacks() -> None:
    assert [line for line in ALLOWED if not harmless(line)] == []
    for attack in (f"{RECEIVE}; sh", f"{RECEIVE} && sh", "zfs destroy x", SET.replace(ROOT, "tank"), f"{RECEIVE} -F"):
        assert not harmless(attack)
