#!/usr/bin/python3 -IS
"""pve-zfsbackup-receiver: what a target lets a source do, and what it does itself.

Three programs in one file, with nothing but Python's standard library, so that it can be read at one sitting and
copied to hosts that have nothing of ours:

- as forced command of an ssh key (`--root tank/backups/pve1`) it accepts a fixed list of command lines, `FORMS`, on
  datasets at and below its root, and denies all else before anything is started (reliability S1-S3);
- `maintain`, as root from cron, does what no source may: holds, prunes, aborts interrupted receives (S4);
- `check` is a monitoring plugin that alarms when a source has gone quiet, or a pool is failing or nearly full.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pwd
import re
import select
import shlex
import stat
import struct
import subprocess
import sys
import syslog
import time
import tomllib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, tzinfo
from functools import partial
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo

VERSION: Final = "0.1.0"
PROTOCOL: Final = 1
DENIED: Final = 126
QUEUED: Final = 75  # EX_TEMPFAIL: done later, by `maintain`
NO_PROGRAM: Final = 127
LINE_LIMIT: Final = 128 << 10  # the kernel takes no longer word
STATE: Final = "/var/lib/pve-zfsbackup-receiver"
CONFIG: Final = "/etc/pve-zfsbackup-receiver.toml"
KSTAT: Final = "/proc/spl/kstat/zfs"
LOCKS: Final = "/run/pve-zfsbackup"  # of the package pve-zfsbackup, where this host has it and drills by itself
PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
ENVIRONMENT: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": ":".join(PATH), "HOME": "/"}  # mbuffer reads ~/.mbuffer.rc
POINT: Final = "pve-zfsbackup:point"
DRILL: Final = "pve-zfsbackup:drill"

STAMP: Final = r"\d{8}T\d{6}Z-[0-9a-f]{4}"
_COMPONENT = r"(?!\.{1,2}(?:/|@|\Z))[A-Za-z0-9_.:][A-Za-z0-9_.:-]*"
_DATASET: Final = re.compile(rf"[A-Za-z][A-Za-z0-9_.:-]*(?:/{_COMPONENT})*", re.ASCII)
_SNAPSHOT: Final = re.compile(rf"([^@]+)@pzb:({STAMP})", re.ASCII)
_POINT_ID: Final = re.compile(rf"([0-9]{{1,9}})/({STAMP})", re.ASCII)
_NAME_LIMIT: Final = 240  # ZFS ends at 255, with the snapshot
_COLUMN: Final = re.compile(
    "pve-zfsbackup:[a-z][a-z0-9-]{0,30}|type|name|guid|createtxg|creation|used|referenced|available|userrefs|clones|"
    "encryption|encryptionroot|keystatus|keyformat|origin|receive_resume_token|ivsetguid|written|logicalused|"
    "logicalreferenced|usedbysnapshots|usedbydataset|usedbychildren|volsize|volblocksize|recordsize|compression|"
    "compressratio|quota|refquota|reservation|refreservation|readonly|mountpoint|canmount|mounted|volmode|snapdir|"
    "xattr|acltype|defer_destroy|objsetid|snapshots_changed|(?:snapshot|filesystem)_(?:limit|count)"
)
# What each property of a point may hold. Text that people wrote is printable ASCII, as every line here is.
_TEXT, _PACKED = re.compile(r".{0,1024}"), re.compile(r"[A-Za-z0-9_=-]{1,8191}")
_VALUES: Final = {
    "point": _POINT_ID,
    "disks": re.compile(r"[A-Za-z0-9_.:/+=,#@-]{0,8191}"),
    "guest": re.compile(r"[a-z]{2,8}/[A-Za-z0-9.-]{1,255}"),
    "consistency": _TEXT,
    "window": re.compile(r"[0-9]{0,9}"),
    "volume": re.compile(r"[0-9]{0,20}"),
    "props": re.compile(r".{0,8191}"),
    **dict.fromkeys(("conf", "conf2", "conf3", "conf4"), _PACKED),
}

# The whole grammar. Words in capitals are kinds of words (`KINDS`), with "+" one or more of them. Whatever a line
# needs beyond its words being right is done by the action named behind it.
_PARENT = ("readonly=on", "mountpoint=none", "canmount=off", "volmode=none", "snapdir=hidden")
FORMS: Final = {
    "hello": "hello",
    "zfs version": "run",
    "zpool get -Hp -o property,value all -- POOL": "run",
    "zpool status -p -- POOL": "run",
    "grep -vx SUSPENDED STATE": "state",
    "zfs list -Hp -r -t TYPES -o COLUMNS -- DATASET+": "run",
    "zfs list -Hp -d DEPTH -t TYPES -o COLUMNS -- DATASET+": "run",
    f"zfs create -o {' -o '.join(_PARENT)} -- DATASET": "create",
    "zfs receive -s -u -- BELOW": "receive",
    "zfs receive -A -- BELOW": "abort",
    "zfs set PAIR+ SNAPSHOT+": "set",
    # The way back: what this source sent, and nobody else's. Encrypted disks leave as they came.
    "zfs send -w -- SNAPSHOT": "run",
    "zfs send -w -i SNAPSHOT -- SNAPSHOT": "run",
    "zfs send -L -c -- SNAPSHOT": "run",
    "zfs send -L -c -i SNAPSHOT -- SNAPSHOT": "run",
    "zfs send -t TOKEN": "resume",
}
# How a stream begins: type, length of its payload, magic, version with its kind (1: one snapshot; 2: a package) in the
# last two bits (`dmu_replay_record` in OpenZFS's zfs_ioctl.h), in this host's byte order.
STREAM_HEAD: Final = struct.Struct("=IIQQ")
STREAM_MAGIC: Final = 0x2F5BACBAC
MSG_PEEK: Final = 2  # recv(2)
FILTERS: Final = ("zstd -dqc", "mbuffer -q -s SIZE -m SIZE")  # in this order, each at most once


class DeniedError(Exception):
    """A command line that is not on the list. The message names the word."""


class TroubleError(Exception):
    """Something allowed could not be done; `status` is what to exit with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where things are on this host: all of it said by the administrator, nothing by the client."""

    root: str = ""
    bin: tuple[str, ...] = PATH
    state: str = STATE
    kstat: str = KSTAT
    locks: str = LOCKS

    @property
    def pool(self) -> str:
        return self.root.partition("/")[0]

    def program(self, name: str) -> str:
        """Absolute path of a program. Raises `TroubleError` when it is not installed."""
        for directory in self.bin:
            path = f"{directory}/{name}"
            if os.access(path, os.X_OK):
                return path
        raise TroubleError(f"{name}: not installed on this target", NO_PROGRAM)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a line: the action of its form, and its words."""

    action: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A line, understood: commands in order, all fed by what the filters make of stdin."""

    filters: tuple[Command, ...]
    commands: tuple[Command, ...]


# -- Reading a line -------------------------------------------------------------------------------------------------


def shown(text: str, limit: int = 80) -> str:
    """Hostile text for a log or a terminal: ASCII, escaped, short."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


@dataclass(frozen=True, slots=True)
class Token:
    """A word, or with `operator` one of `&&`, `|`, `{` and `; }`."""

    text: str
    operator: bool = False


_TOKEN = re.compile(
    r"""(?P<operator>&&|\||\{|;\ \}) | (?P<plain>[A-Za-z0-9@%+=:,./_-]+) | (?P<quoted>'(?:[^']|'"'"')*')""", re.VERBOSE
)


def tokens(line: str) -> list[Token]:
    """Split at single spaces, taking no other quoting than that of `shlex.quote`. Raises `DeniedError`."""
    found: list[Token] = []
    at = 0
    while True:
        match = _TOKEN.match(line, at)
        if match is None:
            raise DeniedError(f"{shown(line[at:].partition(' ')[0] or line[at:])} is not understood")
        text, at = match[0], match.end()
        if match["quoted"] is not None:
            text = text[1:-1].replace("'\"'\"'", "'")
            if shlex.quote(text) != match[0]:
                raise DeniedError(f"{shown(match[0])} is quoted without need")
        found.append(Token(text, match["operator"] is not None))
        if at == len(line):
            return found
        if line[at] == " ":
            at += 1
        elif not line.startswith("; }", at):
            raise DeniedError(f"{shown(text + line[at:].partition(' ')[0])} is not understood")


def parse(line: str, root: str) -> Request:
    """Understand a whole line, or raise `DeniedError`: nothing is started before all of it is."""
    if not line:
        raise DeniedError("no command was given, and there is no shell here")
    if len(line) > LINE_LIMIT:
        raise DeniedError(f"a line of {len(line)} characters is too long")
    if bad := re.search(r"[^ -~]", line):
        raise DeniedError(f"{shown(bad[0])} is not printable ASCII")
    *before, last = _split(tokens(line), "|")
    filters = _filters([_words(part) for part in before])
    braced = len(last) > 2 and last[0] == Token("{", True) and last[-1] == Token("; }", True)
    if braced and filters:
        last = last[1:-1]
    commands = tuple(_command(_words(part), root) for part in _split(last, "&&"))
    for command in commands if filters else ():
        if command.action != "receive":
            raise DeniedError(f"{shown(command.words[0])} cannot follow a filter")
    if filters and len(commands) > 1 and not braced:
        raise DeniedError("'&&' behind a filter needs braces")
    for command in commands:
        if command.action == "set":
            _agreeing(command.words)
        if command.words[:2] == ("zfs", "send") and len(commands) > 1:
            raise DeniedError("'send' goes alone: its stream would not be told from what another command says")
    return Request(filters, commands)


def _split(found: Sequence[Token], operator: str) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token in found:
        if token == Token(operator, True):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _words(part: Sequence[Token]) -> tuple[str, ...]:
    for token in part:
        if token.operator:
            raise DeniedError(f"{shown(token.text)} is not allowed there")
    if not part:
        raise DeniedError("a command is missing")
    return tuple(token.text for token in part)


def _command(words: tuple[str, ...], root: str) -> Command:
    return Command(FORMS[_form(tuple(FORMS), words, root)], words)


def _filters(parts: Sequence[tuple[str, ...]]) -> tuple[Command, ...]:
    forms = [_form(FILTERS, words, "") for words in parts]
    if forms != [form for form in FILTERS if form in forms]:
        raise DeniedError(f"{shown(parts[-1][0])} is not allowed there")
    return tuple(Command("run", words) for words in parts)


def _form(forms: Sequence[str], words: tuple[str, ...], root: str) -> str:
    """The form that has these words; the word it names in a denial is the first that no form goes on with."""
    furthest = 0
    for form in forms:
        reached = _reached(form.split(" "), words, root)
        if reached == len(words) + 1:
            return form
        furthest = max(furthest, reached)
    if furthest >= len(words):
        raise DeniedError(f"something is missing behind {shown(words[-1])}")
    raise DeniedError(f"{shown(words[furthest])} is not allowed here")


def _reached(form: Sequence[str], words: Sequence[str], root: str) -> int:
    """How many words fit the form; one more when the form is complete with them."""
    at = 0
    for part in form:
        kind = KINDS.get(part.removesuffix("+"))
        start = at
        while at < len(words) and (kind(words[at], root) if kind else words[at] == part):
            at += 1
            if not part.endswith("+"):
                break
        if at == start:
            return at
    return at + (at == len(words))


def _is_dataset(word: str, root: str) -> bool:
    inside = word == root or word.startswith(f"{root}/")
    return inside and len(word) <= _NAME_LIMIT and _DATASET.fullmatch(word) is not None


def _is_below(word: str, root: str) -> bool:
    return word != root and _is_dataset(word, root)


def _is_snapshot(word: str, root: str) -> bool:
    match = _SNAPSHOT.fullmatch(word)
    return match is not None and _is_below(match[1], root)


def _is_pair(word: str, root: str) -> bool:
    key, equals, value = word.partition("=")
    allowed = _VALUES.get(key.removeprefix("pve-zfsbackup:")) if key.startswith("pve-zfsbackup:") else None
    return bool(equals) and allowed is not None and allowed.fullmatch(value) is not None


def _is_columns(word: str, root: str) -> bool:
    names = word.split(",")
    return len(names) <= 64 and all(_COLUMN.fullmatch(name) for name in names)


def _is_size(word: str, root: str) -> bool:
    """A buffer of up to 4 GiB, as mbuffer writes it."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})([kMG]?)", word)
    return match is not None and int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]] <= 4 << 30


KINDS: Final[dict[str, Callable[[str, str], bool]]] = {
    "POOL": lambda word, root: word == root.partition("/")[0],
    "STATE": lambda word, root: word == f"{KSTAT}/{root.partition('/')[0]}/state",
    "TYPES": lambda word, root: word in ("all", "snapshot", "filesystem,volume"),
    "DEPTH": lambda word, root: re.fullmatch(r"[0-9]{1,2}", word) is not None,
    "COLUMNS": _is_columns,
    "DATASET": _is_dataset,
    "BELOW": _is_below,
    "SNAPSHOT": _is_snapshot,
    "PAIR": _is_pair,
    "TOKEN": lambda word, root: re.fullmatch(r"[0-9a-f]{1,4}(?:-[0-9a-f]{1,4096}){3}", word) is not None,
    "SIZE": _is_size,
}


def _agreeing(words: Sequence[str]) -> None:
    """A `set` marks one point: each key once, its point among them, and every snapshot that point's."""
    pairs = [word.partition("=") for word in words[2:] if "=" in word]
    values = {key: value for key, _, value in pairs}
    if len(values) != len(pairs):
        raise DeniedError("a property is given twice")
    point = values.get(POINT)
    if point is None:
        raise DeniedError(f"{shown(pairs[0][0])} is not allowed without {POINT}")
    for name in words[2 + len(pairs) :]:
        if name.partition("@pzb:")[2] != point.partition("/")[2]:
            raise DeniedError(f"{shown(name)} is not of point {shown(point)}")


# -- Doing what it says ---------------------------------------------------------------------------------------------


def serve(site: Site, line: str) -> int:
    """Do what a client asks, or deny it; the exit status."""
    try:
        if not _is_below(site.root, site.pool):
            raise TroubleError(f"--root {shown(site.root)}: not a dataset below a pool")
        return _perform(site, parse(line, site.root))
    except DeniedError as error:
        log(f"denied: {error}; root {shown(site.root)}, line {shown(line, 400)}")
        say(f"denied: {error}")
        return DENIED
    except TroubleError as error:
        say(str(error))
        return error.status
    except OSError as error:
        say(f"{error.filename or 'system call'}: {error.strerror}")
        return 1


def say(text: str) -> None:
    """One line on stderr."""
    os.write(2, f"pve-zfsbackup-receiver: {text}\n".encode("ascii", "backslashreplace"))


def log(text: str) -> None:
    """One line to the system's log of logins, with who it was."""
    syslog.openlog("pve-zfsbackup-receiver", syslog.LOG_PID, syslog.LOG_AUTH)
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    syslog.syslog(syslog.LOG_WARNING, f"uid {os.geteuid()} from {shown(client)}: {text}")


def _perform(site: Site, request: Request) -> int:
    """All commands on one stdin, through the filters where there are some. The first that fails ends it."""
    paths = {command.words[0] for command in (*request.filters, *request.commands)} - {"hello", "grep"}
    programs = {name: site.program(name) for name in sorted(paths)}
    stdin, running = 0, []
    for command in request.filters:
        reading, writing = os.pipe()
        running.append(spawn((programs[command.words[0]], *command.words[1:]), stdin=stdin, stdout=writing))
        os.close(writing)
        if stdin:
            os.close(stdin)
        stdin = reading
    status = 0
    for command in request.commands:
        status = status or ACTIONS[command.action](site, command.words, stdin)
    if stdin:
        os.close(stdin)
    for command, process in zip(request.filters, running, strict=True):
        ended = finished(process)
        if ended and not status:
            say(f"{command.words[0]}: exit status {ended}")
            status = ended
    return status


def spawn(argv: Sequence[str], *, stdin: int = 0, stdout: int = 1) -> subprocess.Popen[bytes]:
    """Start a program without a shell, with a clean environment; its streams are ours unless told otherwise."""
    return subprocess.Popen(argv, stdin=stdin, stdout=stdout, env=ENVIRONMENT)


def finished(process: subprocess.Popen[bytes]) -> int:
    """Wait; the exit status, 128 and more for a signal as a shell has it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


@dataclass(frozen=True, slots=True)
class Told:
    """How a `zfs` command of our own ended, and what it said."""

    status: int
    out: str
    err: str = ""


def ask(site: Site, *words: str, timeout: float | None = None, hear: bool = False, program: str = "zfs") -> Told:
    """Run `zfs` or `zpool` for ourselves; with `hear` its stderr is ours to judge, otherwise it goes on to who called.

    Raises `TroubleError` after `timeout` seconds. The command is not waited for any more then: on a
    suspended pool it cannot even be killed (reliability §1).
    """
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    argv = (site.program(program), *words)
    process = subprocess.Popen(argv, env=ENVIRONMENT, stdin=nothing, stdout=pipe, stderr=pipe if hear else None)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
        raise TroubleError(f"{program} {words[0]}: no answer within {timeout:.0f} s") from None
    return Told(process.returncode, out.decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace"))


def answer(site: Site, *words: str, program: str = "zfs", timeout: float | None = None, hear: bool = False) -> str:
    """What `zfs` prints. Raises `TroubleError` with its status, and its own words unless they went to stderr."""
    told = ask(site, *words, timeout=timeout, hear=hear, program=program)
    if told.status:
        text = shown(told.err.strip(), 300) if told.err.strip() else f"exit status {told.status}"
        raise TroubleError(f"{program} {words[0]}: {text}", told.status if told.status > 0 else 1)
    return told.out


def _run(site: Site, words: tuple[str, ...], stdin: int) -> int:
    return finished(spawn((site.program(words[0]), *words[1:]), stdin=stdin))


def _receive(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """Receive one plain stream, of one snapshot and without properties.

    A package (`zfs send -R`, `-p` or `-I`) is denied: with one `zfs receive` sets and removes properties of snapshots
    that are there already, also what was written by `set` (seen on OpenZFS 2.3.9), and packages can be nested, so only
    the first record of a stream tells. It is looked at without being taken: `zfs receive` reads all of it.
    """
    head = peeked(stdin, STREAM_HEAD.size)
    if len(head) == STREAM_HEAD.size:  # of less than that `zfs receive` itself will say what is wrong
        kind, _, magic, version = STREAM_HEAD.unpack(head)
        if (kind, magic, version & 3) != (0, STREAM_MAGIC, 1):
            raise DeniedError(f"the stream for {words[-1]} is a package or none at all: send without -R, -p and -I")
    return _run(site, words, stdin)


def peeked(stdin: int, size: int) -> bytes:
    """The next bytes without taking them; fewer at the end of the input. Waits for them."""
    poll = select.poll()
    poll.register(stdin, select.POLLIN | select.POLLRDHUP)
    kind = os.fstat(stdin).st_mode
    look = _from_socket if stat.S_ISSOCK(kind) else _from_pipe if stat.S_ISFIFO(kind) else None
    if look is None:
        raise DeniedError("standard input is neither a pipe nor a socket")
    while True:
        ended = any(events & (select.POLLHUP | select.POLLRDHUP | select.POLLERR) for _, events in poll.poll())
        found = look(stdin, size)
        if len(found) == size or ended or not found:
            return found
        time.sleep(0.01)  # part of a record: poll would come back at once


def _from_socket(stdin: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    count = _called(ctypes.CDLL(None, use_errno=True).recv(stdin, buffer, ctypes.c_size_t(size), MSG_PEEK))
    return buffer.raw[:count]


def _from_pipe(stdin: int, size: int) -> bytes:
    """By tee(2), which Python does not have."""
    reading, writing = os.pipe()
    with open(reading, "rb") as copy, open(writing, "wb"):
        count = _called(ctypes.CDLL(None, use_errno=True).tee(stdin, writing, ctypes.c_size_t(size), 0))
        return copy.read(count)


def _called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "standard input")
    return result


def _state(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """The pool's state, as `grep -vx SUSPENDED` would print it: on a suspended pool every `zfs` hangs."""
    state = pool_state(site, site.pool)
    if state is None:
        raise TroubleError(f"{words[3]}: no such file", 2)
    if state == "SUSPENDED":
        return 1
    os.write(1, f"{state}\n".encode())
    return 0


def pool_state(site: Site, pool: str) -> str | None:
    """ONLINE, DEGRADED, SUSPENDED …; None where the kernel does not tell."""
    try:
        with open(f"{site.kstat}/{pool}/state", encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _create(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """Make a parent of replicas. Below the root its properties are inherited, and the account may set none."""
    name = words[-1]
    if name == site.root:
        return _run(site, words, stdin)
    above = name.rpartition("/")[0]
    text = answer(site, "get", "-Hp", "-o", "property,value", "readonly,mountpoint,volmode,snapdir", "--", above)
    wrong = sorted({pair for pair in _PARENT if not pair.startswith("canmount")} - set(text.replace("\t", "=").split()))
    if wrong:
        raise TroubleError(f"{above} must have {' '.join(wrong)}: ask the administrator of this target to set it")
    return finished(spawn((site.program("zfs"), "create", "-u", "--", name), stdin=stdin))


def _abort(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """Ask `maintain` to abort an interrupted receive: it takes the right to destroy (reliability §0.3)."""
    name = words[-1]
    if answer(site, "get", "-Hp", "-o", "value", "receive_resume_token", "--", name).strip() in ("", "-"):
        raise TroubleError(f"'{name}' does not have any resumable receive state to abort")
    path = f"{own_directory(site)}/{spooled('abort', name)}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    log(f"queued: abort of the interrupted receive of {shown(name, 300)}")
    raise TroubleError(f"queued: `pve-zfsbackup-receiver maintain` on this target will abort {name}", QUEUED)


def _set(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """Mark a point that has just arrived. Once: whoever has the key cannot change what a good point says."""
    names = [word for word in words[2:] if "=" not in word]
    lock = os.open(f"{own_directory(site)}/{spooled('lock', site.root)}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marked = answer(site, "get", "-Hp", "-s", "local", "-o", "name,value", POINT, "--", *names)
        if marked:
            raise DeniedError(f"{shown(marked.split()[0], 300)} is marked, and a point is written once")
        return _run(site, words, stdin)
    finally:
        os.close(lock)


def _resume(site: Site, words: tuple[str, ...], stdin: int) -> int:
    """Go on with a stream that broke. The token is the client's, and names a snapshot: it must be one of this root's,
    and have the guid that the token says, which `zfs` looks for in the whole pool where that name has another. Its
    contents are printed whether or not the send would succeed (seen on OpenZFS 2.3.9)."""
    told = ask(site, "send", "-nvP", "-t", words[-1], hear=True)
    names = re.findall(r"^\s*toname = (.*)$", told.out + told.err, re.MULTILINE)
    if len(names) != 1 or not _is_snapshot(names[0], site.root):
        raise DeniedError(f"the token is of {shown(names[0], 300) if names else 'nothing that is understood'}")
    guids = re.findall(r"^\s*toguid = (.*)$", told.out + told.err, re.MULTILINE)
    guid = answer(site, "get", "-Hp", "-o", "value", "guid", "--", names[0]).strip()
    if not guid.isdecimal() or guids != [f"{int(guid):#x}"]:
        raise DeniedError(f"the token is of another snapshot than {shown(names[0], 300)} is now")
    return _run(site, words, stdin)


def _hello(site: Site, words: tuple[str, ...], stdin: int) -> int:
    told = {
        "receiver": VERSION,
        "protocol": PROTOCOL,
        "root": site.root,
        "zfs": answer(site, "version").split(),
        # For `setup target --check`, also while there is no root yet.
        "allow": ask(site, "allow", site.root, hear=True).out.splitlines(),
        "time": int(time.time()),
        "maintained": int(remembered(site).finished),
    }
    os.write(1, f"{json.dumps(told)}\n".encode("ascii"))
    return 0


ACTIONS: Final = {
    "run": _run, "receive": _receive, "state": _state, "create": _create,
    "abort": _abort, "set": _set, "resume": _resume, "hello": _hello,
}  # fmt: skip


def spooled(kind: str, dataset: str) -> str:
    """A file's name for a dataset; neither `/` nor `%` is in one that was accepted."""
    return f"{kind}:{dataset.replace('/', '%')}"


def own_directory(site: Site) -> str:
    """This account's directory in the spool, which like /tmp lets everybody make one and nobody touch another's."""
    path = f"{site.state}/spool/{os.geteuid()}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise TroubleError(f"{path}: not a directory of this account alone; its administrator must look") from None
    except FileNotFoundError:
        raise TroubleError(f"{site.state}/spool is missing: as root, install -d -m 1733 {site.state}/spool") from None
    return path


# -- Maintenance ----------------------------------------------------------------------------------------------------

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
TAG: Final = "pve-zfsbackup"
BATCH: Final = 200  # snapshots in one command
LIST_TIMEOUT: Final = 900.0
CHECK_TIMEOUT: Final = 120.0
_COLUMNS: Final = (
    "type", "name", "guid", "createtxg", "creation", "userrefs", "clones", "receive_resume_token",
    POINT, "pve-zfsbackup:disks", "pve-zfsbackup:volume", "pve-zfsbackup:verified",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One `[roots."..."]` of the configuration. What is a float here is a span of time there: "90m", "26h", "7d"."""

    name: str
    account: str = "pve-zfsbackup"  # whose requests count: the account that has the forced command
    timezone: str = ""  # of hours, days and weeks; this host's where empty
    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    minimum_age: float = 7 * DAY  # nothing younger is destroyed
    minimum_count: int = 3  # complete points of a guest that stay whatever their age
    max_share: int = 30  # percent of the points that may go in one run
    stale_partials: float = 7 * DAY
    warn_age: float = 26 * HOUR  # of the newest complete point of all
    crit_age: float = 50 * HOUR
    guest_warn_age: float = 50 * HOUR  # of the newest complete point of each guest
    guest_crit_age: float = 8 * DAY
    partial_warn_age: float = 2 * DAY
    warn_full: int = 85  # percent of the pool
    crit_full: int = 95
    ignore_guests: tuple[int, ...] = ()  # by `check`

    @property
    def pool(self) -> str:
        return self.name.partition("/")[0]

    @property
    def keeps_all(self) -> bool:
        return not any(getattr(self, name) for name, _ in _PERIODS)

    @property
    def tz(self) -> tzinfo | None:
        return ZoneInfo(self.timezone) if self.timezone else None


def load(path: str) -> list[Root]:
    """The roots of the configuration. Raises `TroubleError` with status 3 for everything that is not right."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
                raise ValueError("others may write it: chown root, chmod go-w")
            given = tomllib.load(file)
        if given.keys() - {"roots"} or not isinstance(given.get("roots", {}), dict):
            raise ValueError('expected tables such as [roots."tank/backups/pve1"] and nothing else')
        return [_root(name, table) for name, table in given.get("roots", {}).items()]
    except (OSError, ValueError, KeyError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TroubleError(f"{path}: {text}", 3) from None


def _root(name: str, table: object) -> Root:
    known = {field.name.replace("_", "-"): field for field in fields(Root) if field.name != "name"}
    if not _is_below(name, name.partition("/")[0]):
        raise ValueError(f"{shown(name)} is not a dataset below a pool")
    values: dict[str, Any] = {}
    for key, value in (table if isinstance(table, dict) else {"": table}).items():
        if key not in known:
            raise ValueError(f"{name}: {shown(key)} is not known; expected one of {', '.join(known)}")
        try:
            values[known[key].name] = _value(value, known[key].default)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from None
    root = Root(name=name, **values)
    _ = root.tz
    return root


def _value(value: object, default: object) -> object:
    if isinstance(default, float):
        match = re.fullmatch(r"([0-9]{1,6})([mhd])", value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a span of time such as "90m", "26h" or "7d"')
        return int(match[1]) * {"m": MINUTE, "h": HOUR, "d": DAY}[match[2]]
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ValueError("expected a list of whole numbers")
        return tuple(value)
    if type(value) is not type(default) or (isinstance(value, int) and value < 0):
        raise ValueError(f"expected {'text' if isinstance(default, str) else 'a whole number'}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Snap:
    """A snapshot of ours: it has our name, and a property that names this very snapshot."""

    dataset: str
    name: str  # in full
    guid: str
    origin: str  # guid of the source dataset
    creation: int
    held: bool
    clones: tuple[str, ...]
    point: str
    disks: str
    verified: str  # "files 20261126T111516Z": by a drill on this host, or ""


@dataclass(slots=True)
class Seen:
    """What one `zfs list` said about a root."""

    guids: dict[str, str]  # of datasets
    newest: dict[str, str]  # dataset -> guid of its newest snapshot, whoever made it
    tokens: dict[str, str]  # dataset -> token of an interrupted receive
    snaps: list[Snap]  # by dataset and age


def seen(site: Site, root: Root, timeout: float) -> Seen:
    """List a root. Raises `TroubleError` when its pool is suspended, as nothing that asks it would come back."""
    if pool_state(site, root.pool) == "SUSPENDED":
        raise TroubleError(f"pool {root.pool} is suspended: `zpool status -x` tells why, `zpool clear` resumes it")
    words = ("list", "-Hp", "-r", "-t", "all", "-o", ",".join(_COLUMNS), "--", root.name)
    told = answer(site, *words, timeout=timeout, hear=True)
    rows = [dict(zip(_COLUMNS, line.split("\t"), strict=True)) for line in told.splitlines()]
    found = Seen({}, {}, {}, [])
    for row in rows:
        if row["type"] in ("filesystem", "volume"):
            found.guids[row["name"]] = row["guid"]
            if row["receive_resume_token"] not in ("-", ""):
                found.tokens[row["name"]] = row["receive_resume_token"]
    for row in sorted(rows, key=lambda row: (row["name"].partition("@")[0], int(row["createtxg"]), row["name"])):
        if row["type"] == "snapshot":
            found.newest[row["name"].partition("@")[0]] = row["guid"]
            found.snaps += _snap(row, found.guids)
    return found


def _snap(row: Mapping[str, str], guids: Mapping[str, str]) -> list[Snap]:
    point, match = _POINT_ID.fullmatch(row[POINT]), _SNAPSHOT.fullmatch(row["name"])
    if point is None or match is None or point[2] != match[2] or match[1] not in guids:
        return []
    volume = row["pve-zfsbackup:volume"]
    return [
        Snap(
            dataset=match[1],
            name=row["name"],
            guid=row["guid"],
            origin=volume if volume not in ("", "-") else guids[match[1]],
            creation=int(row["creation"]),
            held=row["userrefs"] not in ("0", "-"),
            clones=tuple(row["clones"].split(",")) if row["clones"] not in ("", "-") else (),
            point=row[POINT],
            disks=row["pve-zfsbackup:disks"],
            verified=_verified(row["pve-zfsbackup:verified"]),
        )
    ]


@dataclass(slots=True)
class Point:
    """A recovery point as far as it is here; which snapshot is which disk is found as plan/points.py does it."""

    id: str
    volids: dict[str, str]  # key -> volid, of every disk it was made of
    snaps: dict[str, Snap]  # key -> snapshot
    rest: list[Snap]  # no disk has their origin: the source's dataset was made anew, as by an offline migration
    refs: dict[tuple[str, str, str], None]  # key, origin and guid of what stands for a disk that was not sent again
    texts: set[str]  # what its snapshots say of its disks: nearly always one
    borrowed: dict[str, Snap] = field(default_factory=dict)  # key -> that snapshot, which is an older point's

    @property
    def vmid(self) -> int:
        return int(self.id.partition("/")[0])

    @property
    def everything(self) -> list[Snap]:
        return [*self.snaps.values(), *self.rest]

    @property
    def creation(self) -> int:
        return min(snap.creation for snap in self.everything)

    @property
    def complete(self) -> bool:
        return bool(self.volids) and self.volids.keys() <= self.snaps.keys() | self.borrowed.keys()

    @property
    def order(self) -> tuple[int, str, str]:
        return self.creation, self.id.partition("/")[2], self.id


def points(snaps: Sequence[Snap]) -> list[Point]:
    """The points these snapshots are parts of, oldest first."""
    found: dict[str, Point] = {}
    for snap in snaps:
        point = found.setdefault(snap.point, Point(snap.point, {}, {}, [], {}, set()))
        new = snap.disks not in point.texts
        point.texts.add(snap.disks)
        own = ""
        for item in snap.disks.split(","):
            key, _, disk = item.partition("=")
            volid, _, guids = disk.rpartition("#")
            guid, _, same = guids.partition("@")
            if key and volid:
                own = own or (key if guid == snap.origin else "")
                point.volids[key] = volid if new else point.volids[key]
                if same:
                    point.refs[key, guid, same] = None
        if own and own not in point.snaps:
            point.snaps[own] = snap
        else:
            point.rest.append(snap)
    places = {(_storage(p.volids[key]), _above(snap)) for p in found.values() for key, snap in p.snaps.items()}
    lenders = {(found[snap.point].vmid, snap.origin, snap.guid): snap for snap in snaps}
    for point in found.values():
        _by_name(point, places)
        for key, origin, guid in point.refs:
            if key not in point.snaps and (point.vmid, origin, guid) in lenders:
                point.borrowed.setdefault(key, lenders[point.vmid, origin, guid])
    return sorted(found.values(), key=lambda point: point.order)


_GENERATION: Final = re.compile(r"-g[0-9a-f]{8}\Z")  # what a later generation of a replica has behind its name


def _by_name(point: Point, places: Set[tuple[str, str]]) -> None:
    """Give snapshots of unknown origin to the disks of their names: those whose storage is certain first."""
    for certain in (True, False):
        for snap in list(point.rest):
            name = snap.dataset.rpartition("/")[2]
            names = (name, _GENERATION.sub("", name))
            fitting = [
                key
                for key, volid in point.volids.items()
                if key not in point.snaps and re.split("[:/]", volid)[-1] in names
                and (not certain or (_storage(volid), _above(snap)) in places
                     or _storage(volid) == _above(snap).rpartition("/")[2])
            ]  # fmt: skip
            if len(fitting) == 1:
                point.snaps[fitting[0]] = snap
                point.rest.remove(snap)


def _storage(volid: str) -> str:
    return volid.partition(":")[0]


def _above(snap: Snap) -> str:
    return snap.dataset.rpartition("/")[0]


_LEVELS: Final = ("failed", "points", "recognised", "files", "booted")  # each says more than the one before
_VERIFIED: Final = re.compile(rf"({'|'.join(_LEVELS)}) (\d{{8}}T\d{{6}}Z)", re.ASCII)


def _verified(text: str) -> str:
    """What `verify` noted; nothing for anything else."""
    match = _VERIFIED.fullmatch(text)
    try:
        return text if match and datetime.strptime(match[2], "%Y%m%dT%H%M%SZ") else ""
    except ValueError:
        return ""


def _proof(point: Point) -> tuple[str, str] | None:
    """How far a point is proven, as its weakest snapshot says, and when that was noted last."""
    told = [snap.verified.split(" ") for snap in point.everything]
    if not told or not point.complete or any(len(words) < 2 for words in told):
        return None
    return min((level for level, _ in told), key=_LEVELS.index), max(when for _, when in told)


def _proven(whole: Sequence[Point]) -> set[str]:
    """The newest point that a drill opened or booted stays (without one, the newest it recognised), and the one that
    the last drill failed on: nothing else remembers."""
    told = [(point, proof) for point in whole if (proof := _proof(point)) and proof[0] != "points"]
    passed = [point.id for point, (level, _) in told if level != "failed"]
    opened = [point.id for point, (level, _) in told if level in ("files", "booted")]
    last = max(reversed(told), key=lambda pair: pair[1][1], default=None)
    return {*(opened or passed)[-1:], *([last[0].id] if last and last[1][0] == "failed" else [])}


_PERIODS: Final[tuple[tuple[str, Callable[[datetime, int], Hashable]], ...]] = (
    ("keep_last", lambda when, creation: creation),
    ("keep_hourly", lambda when, creation: (when.date(), when.hour)),
    ("keep_daily", lambda when, creation: when.date()),
    ("keep_weekly", lambda when, creation: when.isocalendar()[:2]),
    ("keep_monthly", lambda when, creation: (when.year, when.month)),
    ("keep_yearly", lambda when, creation: when.year),
)


def kept(creations: Sequence[int], root: Root) -> set[int]:
    """Which of these, by index, the keep rules keep: as Proxmox marks them, and as plan/retention.py does."""
    if root.keeps_all:
        return set(range(len(creations)))
    tz = root.tz
    newest_first = sorted(range(len(creations)), key=lambda index: -creations[index])
    marked: dict[int, bool] = {}  # False: its period has one, no later rule looks at it
    for name, period in _PERIODS:
        periods = {i: period(datetime.fromtimestamp(creations[i], tz), creations[i]) for i in newest_first}
        covered = {periods[index] for index in newest_first if marked.get(index)}
        new: set[Hashable] = set()
        for index in newest_first:
            if index in marked or periods[index] in covered:
                continue
            if periods[index] not in new and len(new) >= getattr(root, name):
                break
            marked[index] = periods[index] not in new
            new.add(periods[index])
    return {index for index, good in marked.items() if good}


def doomed(own: Sequence[Point], root: Root, protected: Set[str], now: float) -> list[Point]:
    """Which points of one guest go. `protected` are guids of snapshots that something else still needs."""
    whole = [point for point in sorted(own, key=lambda point: point.order) if point.complete]
    if not whole or root.keeps_all:
        return []
    stay = {whole[index].id for index in kept([point.creation for point in whole], root)}
    stay |= {point.id for point in whole[-max(1, root.minimum_count) :]}
    stay |= _proven(whole)
    going = [
        point
        for point in sorted(own, key=lambda point: point.order)
        if point.id not in stay
        and (point.complete or point.creation < whole[-1].creation)
        and now - point.creation >= root.minimum_age
        and not any(snap.clones or snap.guid in protected for snap in point.everything)
    ]
    while True:  # what a point that stays borrows from stays as well
        needed = {snap.name for point in own if point not in going for snap in point.borrowed.values()}
        lending = [point for point in going if any(snap.name in needed for snap in point.everything)]
        if not lending:
            return going
        going = [point for point in going if point not in lending]


@dataclass(slots=True)
class Report:
    """What `maintain` did about one root, or with `dry` would do."""

    root: str
    points: int = 0
    held: int = 0
    destroyed: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)  # clones of drills that were killed
    empty: list[str] = field(default_factory=list)  # replicas without a snapshot, for a person to look at
    notes: list[str] = field(default_factory=list)  # done by a later run
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Keeper:
    """One run of `maintain`. `requests` are the aborts that sources asked for: dataset -> how to strike it out."""

    site: Site
    now: float
    dry: bool
    partials: dict[str, tuple[str, float]]  # dataset -> token, and since when it is that
    requests: dict[str, Callable[[], None]] = field(default_factory=dict)

    def root(self, root: Root) -> Report:
        report = Report(root.name)
        try:
            self._collect(root, report)
            found = seen(self.site, root, LIST_TIMEOUT)
            self._hold(found, report)
            self._sweep(found, report)
            self._prune(root, found, report)
            report.empty = sorted(_empty(root, found))
            self._abort(root, found, report)  # the last: what the account put into its spool may be anything
        except Exception as error:  # also a bug is this root's alone
            report.problems.append(str(error) if isinstance(error, TroubleError | OSError) else repr(error))
        return report

    def _collect(self, root: Root, report: Report) -> None:
        """The requests of this root's account. Its directory is not trusted: only names are taken from it.

        Whatever is wrong with it is told, and stops nothing else: anybody on this host can put something there.
        """
        try:
            uid = pwd.getpwnam(root.account).pw_uid
            path = f"{self.site.state}/spool/{uid}"
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(directory).st_uid != uid:
                raise NotADirectoryError(errno.EPERM, f"not of account {root.account}", path)
            for name in os.listdir(directory):
                dataset = name.removeprefix("abort:").replace("%", "/")
                if name.startswith("abort:") and _is_below(dataset, root.name):
                    self.requests[dataset] = partial(os.unlink, name, dir_fd=directory)
        except KeyError:
            report.problems.append(f"account {shown(root.account)} does not exist on this host")
        except FileNotFoundError:
            return  # nothing was ever asked for
        except OSError as error:
            report.problems.append(f"{error.filename}: {error.strerror}; look who made it, then remove it")

    def _abort(self, root: Root, found: Seen, report: Report) -> None:
        """Throw away interrupted receives that a source asked to be rid of, or that nothing has gone on with."""
        for dataset in [name for name in self.partials if _is_dataset(name, root.name) and name not in found.tokens]:
            del self.partials[dataset]
        for dataset, token in sorted(found.tokens.items()):
            known = self.partials.get(dataset)
            if known is None or known[0] != token:
                self.partials[dataset] = known = (token, self.now)
            stale = self.now - known[1] >= root.stale_partials
            if not (stale or dataset in self.requests) or not _is_below(dataset, root.name):
                continue
            current = self._ask("get", "-Hp", "-o", "value", "receive_resume_token", "--", dataset)
            if current.out.strip() in ("", "-") or (stale and current.out.strip() != token):
                report.notes.append(f"{dataset}: its receive went on; nothing is aborted")
            elif self.dry or self._did(report, dataset, "receive", "-A", "--", dataset):
                report.aborted.append(dataset)
            else:
                self.requests.pop(dataset, None)  # once more the next time
        for dataset in [name for name in self.requests if _is_below(name, root.name)]:
            strike = self.requests.pop(dataset)
            if not self.dry:
                strike()

    def _ask(self, *words: str) -> Told:  # a pool that is suspended meanwhile keeps no other root waiting for ever
        return ask(self.site, *words, timeout=LIST_TIMEOUT, hear=True)

    def _did(self, report: Report, what: str, *words: str) -> bool:
        told = self._ask(*words)
        if told.status:
            self._failed(report, what, words[0], told)
        return told.status == 0

    def _failed(self, report: Report, what: str, verb: str, told: Told) -> None:
        """Note a failure. What met a receive under way, or is gone already, is the next run's business."""
        text = f"{what}: zfs {verb}: {shown(told.err.strip() or f'exit status {told.status}', 300)}"
        passing = re.search(r"busy|dependent clones|does not exist", told.err)
        (report.notes if passing else report.problems).append(text)

    def _hold(self, found: Seen, report: Report) -> None:
        """Hold every snapshot of a point: before OpenZFS 2.3.2 whoever may receive may destroy (`recv -F`)."""
        free = [snap.name for snap in found.snaps if not snap.held]
        for start in range(0, len(free), BATCH):
            batch = free[start : start + BATCH]
            if self.dry or self._ask("hold", TAG, *batch).status == 0:
                report.held += len(batch)
                continue
            for name in batch:  # one that is gone made the batch fail; the others may be held by now
                told = self._ask("hold", TAG, name)
                if told.status == 0 or "tag already exists" in told.err:
                    report.held += 1
                else:
                    self._failed(report, name, "hold", told)

    def _sweep(self, found: Seen, report: Report) -> None:
        """Destroy what drills and `restore --files` on this host left a day ago or longer, when they were killed.

        The next one sweeps by itself; where there never is a next one, its clones would keep their points for ever.
        """
        for kind in ("drill", "files"):
            left = [(name, snap) for snap in found.snaps for name in snap.clones if _is_clone(name, kind)]
            if not left:
                continue
            with _alone(self.site, kind) as alone:
                gone = {name for name, snap in left if alone and self._swept(name, snap, report)}
            report.swept += sorted(gone)
            found.snaps = [
                replace(snap, clones=tuple(name for name in snap.clones if name not in gone)) for snap in found.snaps
            ]

    def _swept(self, name: str, snap: Snap, report: Report) -> bool:
        """One clone, if it is of this snapshot, has our mark on itself, and is as old as it has to be."""
        told = self._ask("get", "-Hp", "-o", "property,value", f"origin,creation,{DRILL}", "--", name)
        known = dict(line.split("\t", 1) for line in told.out.splitlines() if "\t" in line)
        made = known.get("creation", "")
        ours = known.get("origin") == snap.name and known.get(DRILL) == name.rpartition("/")[2]
        if told.status or not ours or not made.isdecimal() or self.now - int(made) < DAY:
            return False
        return self.dry or self._did(report, name, "destroy", name)

    def _prune(self, root: Root, found: Seen, report: Report) -> None:
        """Destroy the points that go, oldest first; none at all where something is odd."""
        own = points(found.snaps)
        report.points = len(own)
        protected = {found.newest[dataset] for dataset in found.tokens if dataset in found.newest} | _bases(found)
        report.notes += (f"{snap.name} has clones: its point stays while it has" for snap in found.snaps if snap.clones)
        ahead = max((snap.creation for snap in found.snaps), default=0) - self.now
        going = [
            point  # no rule is asked for what no calendar has
            for vmid in (sorted({point.vmid for point in own}) if ahead < DAY else ())
            for point in doomed([point for point in own if point.vmid == vmid], root, protected, self.now)
        ]
        if ahead >= DAY or (going and ahead > 0):
            report.problems.append(
                "a point is of the future: a clock is wrong, here or there, and nothing is destroyed"
            )
        elif len(going) * 100 > len(own) * root.max_share:
            share = f"{len(going)} of {len(own)} points would go, more than max-share of {root.max_share} %"
            report.problems.append(f"{share}: nothing is destroyed; look at `maintain --dry-run`, then raise it")
            report.notes += [f"would go: {point.id}" for point in going]
        else:
            report.destroyed += [point.id for point in going if self._gone(point, report)]

    def _gone(self, point: Point, report: Report) -> bool:
        """Destroy the snapshots of one point, if each is still what was listed and nobody else holds one."""
        names = [snap.name for snap in sorted(point.everything, key=lambda snap: snap.dataset)]
        wanted = {(snap.name, "guid", snap.guid) for snap in point.everything}
        wanted |= {(name, POINT, point.id) for name in names}
        told = self._ask("get", "-Hp", "-o", "name,property,value", f"guid,{POINT}", "--", *names)
        if told.status or {tuple(line.split("\t")) for line in told.out.splitlines()} != wanted:
            report.problems.append(f"{point.id}: its snapshots changed since they were listed; it stays")
            return False
        told = self._ask("holds", "-H", *names)
        others = {line.split("\t")[1] for line in told.out.splitlines()} - {TAG}
        if told.status or others:
            report.notes.append(f"{point.id} stays: held by {shown(', '.join(sorted(others)))}")
            return False
        if self.dry:
            return True
        done = True
        for name in names:
            self._ask("release", TAG, name)  # one without it is as free
            if not self._did(report, point.id, "destroy", name):
                done = False
                self._did(report, point.id, "hold", TAG, name)
        return done


def _bases(found: Seen) -> set[str]:
    """The newest snapshot of every disk, of its latest generation: the next increment starts from it, and where only
    some points have the disk, those of the others must not outlive the last that is there of it."""
    newest: dict[str, Snap] = {}
    for snap in found.snaps:  # of a dataset by age
        usual = _GENERATION.sub("", snap.dataset)
        if usual not in newest or newest[usual].dataset == snap.dataset or newest[usual].creation < snap.creation:
            newest[usual] = snap
    return {snap.guid for snap in newest.values()}


def _is_clone(name: str, kind: str) -> bool:
    """Whether it lies and is called as clones of the package's drills are, directly below the pool."""
    return re.fullmatch(rf"[^/@]+/pve-zfsbackup-{kind}/[0-9a-f]{{8}}-[0-9]{{1,4}}", name, re.ASCII) is not None


@contextlib.contextmanager
def _alone(site: Site, kind: str) -> Iterator[bool]:
    """With the lock that such work has on this host while it goes on; False while it does."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(f"{site.locks}/{kind}.lock", "rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except FileNotFoundError:
            alone = True  # there was none since the host was started
        except BlockingIOError:
            alone = False
        yield alone


def _empty(root: Root, found: Seen) -> Iterator[str]:
    parents = {name.rpartition("/")[0] for name in found.guids}
    for name in found.guids.keys() - found.newest.keys() - found.tokens.keys() - parents:
        if name.count("/") >= root.name.count("/") + 2:
            yield name


def maintain(site: Site, config: str, *, dry: bool, as_json: bool) -> int:
    """Look after every root; 0, or 1 when something needs a person. Says nothing while all is well."""
    roots = load(config)
    with open(f"{site.state}/maintain.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TroubleError("another `maintain` is at work", QUEUED) from None
        reports = _all(site, roots, dry=dry)
    for report in reports:
        for text in report.problems:
            say(f"{report.root}: {text}")
        for name in report.swept if not dry else ():
            say(f"{report.root}: destroyed {name}, a clone that a killed drill had left")
    if as_json:
        print(json.dumps({"format": 1, "dry-run": dry, "roots": [asdict(report) for report in reports]}))
    elif dry:
        for report in reports:
            told = [*(f"destroy {point}" for point in report.destroyed), *(f"abort {name}" for name in report.aborted)]
            told += [f"destroy {name}, a clone that a killed drill left" for name in report.swept]
            told += [*report.notes, *(f"{name} has no snapshot" for name in report.empty)]
            print(f"{report.root}: {report.points} points, {report.held} snapshots to hold", *told, sep="\n  ")
    return int(any(report.problems for report in reports))


def _all(site: Site, roots: Sequence[Root], *, dry: bool) -> list[Report]:
    keeper = Keeper(site=site, now=time.time(), dry=dry, partials=remembered(site).partials)
    reports = [keeper.root(root) for root in roots]
    if not dry:
        problems = {report.root: ascii("; ".join(report.problems))[1:-1][:300] for report in reports if report.problems}
        remember(site, Memory(keeper.partials, keeper.now, problems))
    return reports


@dataclass(frozen=True, slots=True)
class Memory:
    """What runs of `maintain` leave to each other and to `check`. Losing it only lets partial receives age anew."""

    partials: dict[str, tuple[str, float]] = field(default_factory=dict)
    finished: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)  # root -> what `maintain` could not do there


def remembered(site: Site) -> Memory:
    try:
        with open(f"{site.state}/maintain.json", encoding="utf-8") as file:
            known = json.load(file)
        partials = {str(name): (str(token), float(since)) for name, (token, since) in known["partials"].items()}
        problems = {str(name): str(text) for name, text in known.get("problems", {}).items()}
        return Memory(partials, float(known["finished"]), problems)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Memory()


def remember(site: Site, memory: Memory) -> None:
    """Write it whole or not at all. For everybody to read: it has names that `zfs list` tells everybody."""
    path = f"{site.state}/maintain.json"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        json.dump(asdict(memory), file)
    os.replace(f"{path}.new", path)


# -- Monitoring -----------------------------------------------------------------------------------------------------

_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def check(site: Site, config: str, *, checkmk: bool = False) -> int:
    """One line for a monitoring system, with performance data; its exit status. Never hangs on a suspended pool."""
    now = time.time()
    found: list[tuple[int, str]] = []
    data: list[str] = []
    memory = remembered(site)
    roots = load(config)
    if not roots:
        found.append((3, f"{config} names no root"))
    elif now - memory.finished > DAY:
        since = f"for {span(now - memory.finished)}" if memory.finished else "yet"
        found.append((1, f"maintain has not finished {since}"))
    for root in roots:
        try:
            found += _judged(root, seen(site, root, CHECK_TIMEOUT), memory, now, data)
        except Exception as error:
            found.append((2, f"{root.name}: {error}"))
    for pool in sorted({root.pool for root in roots}):
        own = [root for root in roots if root.pool == pool]
        try:
            found += _pool(site, pool, min(one.warn_full for one in own), min(one.crit_full for one in own), data)
        except Exception as error:
            found.append((2, f"pool {pool}: {error}"))
    worst = max((level for level, _ in found), key=(0, 1, 3, 2).index, default=0)
    told = [text for level, text in sorted(found, key=lambda one: -one[0]) if level or worst == 0]
    return told_as(worst, "; ".join(told), data, checkmk=checkmk)


def told_as(level: int, text: str, data: Sequence[str], *, checkmk: bool) -> int:
    """Print it as a monitoring plugin does, or as a local check of Checkmk, which reads no exit status but 0."""
    text = text.replace("|", "/").replace("\n", " ")
    if not checkmk:
        print(f"RECEIVER {_WORDS[level]} - {text}{' | ' if data else ''}{' '.join(data)}")
        return level
    named = (item.removeprefix("'").partition("'=") for item in data)
    values = "|".join(f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}={value}" for name, _, value in named)
    print(f'{level} "pve-zfsbackup-receiver" {values or "-"} {text}')
    return 0


def _judged(root: Root, found: Seen, memory: Memory, now: float, data: list[str]) -> Iterator[tuple[int, str]]:
    there = points(found.snaps)
    latest = {one.vmid: one.creation for one in there if one.complete}  # oldest first; one ahead hides no silence
    newest = latest | {one.vmid: one.creation for one in there if one.complete and one.creation <= now + HOUR}
    begun = {point.vmid: point.creation for point in reversed(there)}
    watched = {vmid: at for vmid, at in (begun | newest).items() if vmid not in root.ignore_guests}
    age = now - max(newest.values(), key=lambda at: (at <= now + HOUR, at), default=0.0)
    data.append(f"'{root.name} age'={age:.0f}s;{root.warn_age:.0f};{root.crit_age:.0f};0")
    data += [f"'{root.name} guests'={len(newest)}", f"'{root.name} partials'={len(found.tokens)}"]
    told = f"{root.name}: {len(newest)} guests, newest point {span(age)} old"
    level = (age > root.warn_age) + (age > root.crit_age)
    yield level, told + (": the source has gone quiet" if level else "") if newest else f"{root.name}: no point at all"
    if max(latest.values(), default=0.0) > now + 5 * MINUTE:
        yield 1, f"{root.name}: a point is of the future, a clock is or was wrong"
    for vmid, at in sorted(watched.items()):
        data.append(f"'{root.name} guest {vmid}'={now - at:.0f}s;{root.guest_warn_age:.0f};{root.guest_crit_age:.0f};0")
        late = (now - at > root.guest_warn_age) + (now - at > root.guest_crit_age)
        if late and not level:
            what = "newest point" if vmid in newest else "no complete point, the first part of one"
            yield late, f"{root.name}: guest {vmid}: {what} {span(now - at)} old (ignore-guests if it is gone)"
    if root.name in memory.problems:
        yield 1, f"{root.name}: maintain: {memory.problems[root.name]}"
    for dataset in sorted(found.tokens):
        since = memory.partials.get(dataset, ("", now))[1]
        if now - since > root.partial_warn_age:
            yield 1, f"{dataset}: interrupted receive for {span(now - since)}"


def _pool(site: Site, pool: str, warn: int, crit: int, data: list[str]) -> Iterator[tuple[int, str]]:
    """How full a pool is, its state, its devices: it may be called ONLINE that has lost one (seen on OpenZFS 2.3.9)."""
    if pool_state(site, pool) == "SUSPENDED":
        return  # each root has said so, and of such a pool `zpool status` may never answer
    zpool = partial(answer, site, program="zpool", timeout=CHECK_TIMEOUT, hear=True)
    size, free, state = zpool("list", "-Hp", "-o", "size,free,health", "--", pool).split()
    if state != "ONLINE":
        yield (1 if state == "DEGRADED" else 2), f"pool {pool} is {state}"
    if size.isdecimal() and free.isdecimal():
        used = 100 - 100 * int(free) / max(1, int(size))
        data.append(f"'pool {pool} used'={used:.0f}%;{warn};{crit};0;100")
        if used >= min(warn, crit):
            yield (2 if used >= crit else 1), f"pool {pool} is {used:.0f} % full"
    told = zpool("status", "-p", "--", pool)
    if errors := re.search(r"^errors: (?!No known data errors$)(.*)", told, re.MULTILINE):
        yield 2, f"pool {pool}: {shown(errors[1])}"
    bad = list(_bad_devices(told))
    data.append(f"'pool {pool} bad devices'={len(bad)};1;;0")
    if bad:
        yield 1, f"pool {pool}: {', '.join(bad[:5])}{' and more' if len(bad) > 5 else ''}: see `zpool status`"


def _bad_devices(text: str) -> Iterator[str]:
    """Of `zpool status -p`: what is not ONLINE, or counted errors (read, write, checksum). Names are padded by their
    bytes; states stand below the header's STATE, there alone, so that no name passes for one."""
    head, found, rows = text.encode().partition(b"STATE     READ WRITE CKSUM\n")
    column = len(head.rpartition(b"\n")[2])
    if not found:
        raise TroubleError(f"the answer of zpool status is not understood: {shown(text)}")
    for row in rows.partition(b"\n\n")[0].split(b"\n"):
        name, told = row[:column].decode("utf-8", "replace").strip(), row[column:].decode("utf-8", "replace").rstrip()
        if not re.fullmatch(r"(?:ONLINE +0 +0 +0(?: .*)?|DEGRADED +0 +0 +0|(?:AVAIL|INUSE)(?: .*)?|)", told):
            yield shown(f"{name} {' '.join(told.split())}", 120)


def span(seconds: float) -> str:
    for name, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


# -- The program ----------------------------------------------------------------------------------------------------


class Arguments(argparse.ArgumentParser):
    """Wrong usage ends with 3: to a monitoring system 2 would be an alarm."""

    def error(self, message: str) -> NoReturn:
        self.exit(3, f"{self.format_usage()}{self.prog}: {message}\n")


def arguments() -> Arguments:
    parser = Arguments(prog="pve-zfsbackup-receiver", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "command", nargs="?", choices=("maintain", "check"), help="without one: --root, as forced command"
    )
    parser.add_argument("--root", metavar="DATASET", help="serve SSH_ORIGINAL_COMMAND on this dataset and below")
    parser.add_argument("--config", metavar="FILE", default=CONFIG, help=f"of maintain and check ({CONFIG})")
    parser.add_argument("--state", metavar="DIR", default=STATE, help=f"spool and memory ({STATE})")
    parser.add_argument("--bin", metavar="DIR", help="where zfs, zpool, zstd and mbuffer are (the usual places)")
    parser.add_argument("--dry-run", action="store_true", help="maintain: say what would be done and do nothing")
    parser.add_argument("--json", action="store_true", help="maintain: tell it all, as JSON")
    parser.add_argument("--checkmk", action="store_true", help="check: one line for Checkmk's local checks")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


DESCRIPTION: Final = "What a backup target lets sources of pve-zfsbackup do, and what it does itself."


def main(argv: Sequence[str]) -> int:
    """The exit status for the program's arguments."""
    parser = arguments()
    given = parser.parse_args(argv)
    if (given.command is None) == (given.root is None):
        parser.error("expected either --root, or one of maintain and check")
    os.umask(0o077)
    os.chdir("/")
    site = Site(root=given.root or "", bin=(given.bin,) if given.bin else PATH, state=given.state)
    if given.command is None:
        return serve(site, os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    try:
        if given.command == "check":
            return check(site, given.config, checkmk=given.checkmk)
        return maintain(site, given.config, dry=given.dry_run, as_json=given.json)
    except (TroubleError, OSError) as error:
        if given.command == "check":
            return told_as(3, str(error), (), checkmk=given.checkmk)
        say(str(error))
        return error.status if isinstance(error, TroubleError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
