#!/usr/bin/python3 -IS
"""pve-zfsbackup-receiver: what a target lets a source do, and what it does itself.

Three programs in one file, with nothing but Python's standard library, so that it can be read at one sitting and
copied to hosts that have nothing of ours:

- as forced command of an ssh key (`--root tank/backups/pve1`) it accepts a fixed list of command lines, `FORMS`, on
  datasets at and below its root, and denies all else before anything is started (reliability S1-S3);
- `maintain`, as root from cron, does what no source may: holds, prunes, aborts interrupted receives (S4);
- `check` is a monitoring plugin that alarms when a source has gone quiet.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import stat
import sys
import syslog
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

VERSION: Final = "0.1.0"
PROTOCOL: Final = 1
DENIED: Final = 126
QUEUED: Final = 75  # EX_TEMPFAIL: done later, by `maintain`
NO_PROGRAM: Final = 127
LINE_LIMIT: Final = 128 << 10  # the kernel takes no longer word
STATE: Final = "/var/lib/pve-zfsbackup-receiver"
CONFIG: Final = "/etc/pve-zfsbackup-receiver.toml"
KSTAT: Final = "/proc/spl/kstat/zfs"
PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": ":".join(PATH), "HOME": "/"}  # mbuffer reads ~/.mbuffer.rc
POINT: Final = "pve-zfsbackup:point"

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
    "xattr|acltype|defer_destroy|objsetid|snapshots_changed|snapshot_limit|snapshot_count"
)
# What each property of a point may hold. Text that people wrote is printable ASCII, as every line here is.
_TEXT, _PACKED = re.compile(r".{0,1024}"), re.compile(r"[A-Za-z0-9_=-]{1,8191}")
_VALUES: Final = {
    "point": _POINT_ID,
    "disks": re.compile(r"[A-Za-z0-9_.:/+=,#@-]{0,8191}"),
    "guest": re.compile(r"[a-z]{2,8}/[A-Za-z0-9.-]{1,255}"),
    "consistency": _TEXT,
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
    "grep -vx SUSPENDED STATE": "state",
    "zfs list -Hp -r -t TYPES -o COLUMNS -- DATASET+": "run",
    "zfs list -Hp -d DEPTH -t TYPES -o COLUMNS -- DATASET+": "run",
    f"zfs create -o {' -o '.join(_PARENT)} -- DATASET": "create",
    "zfs receive -s -u -- BELOW": "run",
    "zfs receive -A -- BELOW": "abort",
    "zfs set PAIR+ SNAPSHOT+": "set",
}
RECEIVE: Final = "zfs receive -s -u -- BELOW"
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


def quoted(word: str) -> str:
    """As `shlex.quote` does it, without loading shlex for every small command."""
    if re.fullmatch(r"[A-Za-z0-9@%+=:,./_-]+", word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


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
            if quoted(text) != match[0]:
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
        if command.words[:3] != ("zfs", "receive", "-s"):
            raise DeniedError(f"{shown(command.words[0])} cannot follow a filter")
    if filters and len(commands) > 1 and not braced:
        raise DeniedError("'&&' behind a filter needs braces")
    _ = [_agreeing(command.words) for command in commands if command.action == "set"]
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
    """A buffer of up to 1 GiB, as mbuffer writes it."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})([kMG]?)", word)
    return match is not None and int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]] <= 1 << 30


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
    for command, pid in zip(request.filters, running, strict=True):
        ended = finished(pid)
        if ended and not status:
            say(f"{command.words[0]}: exit status {ended}")
            status = ended
    return status


def spawn(argv: Sequence[str], *, stdin: int = 0, stdout: int = 1) -> int:
    """Start a program without a shell, with a clean environment; its process id."""
    streams = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    # Python ignores SIGPIPE, and a filter must end when nobody reads it any more.
    return os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=streams, setsigdef=[signal.SIGPIPE])


def finished(pid: int) -> int:
    """Wait; the exit status, 128 and more for a signal as a shell has it."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def answer(site: Site, *words: str) -> str:
    """What `zfs` prints. Raises `TroubleError` with its status; its own words went to stderr."""
    reading, writing = os.pipe()
    with open(os.devnull, "rb") as nothing, open(reading, "rb") as output:
        pid = spawn((site.program("zfs"), *words), stdin=nothing.fileno(), stdout=writing)
        os.close(writing)
        text = output.read()
    if status := finished(pid):
        raise TroubleError(f"zfs {words[0]}: exit status {status}", status)
    return text.decode("utf-8", "replace")


def _run(site: Site, words: tuple[str, ...], stdin: int) -> int:
    return finished(spawn((site.program(words[0]), *words[1:]), stdin=stdin))


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


def _hello(site: Site, words: tuple[str, ...], stdin: int) -> int:
    told = {"receiver": VERSION, "protocol": PROTOCOL, "root": site.root, "zfs": answer(site, "version").split()}
    os.write(1, f"{json.dumps(told)}\n".encode("ascii"))
    return 0


ACTIONS: Final = {"run": _run, "state": _state, "create": _create, "abort": _abort, "set": _set, "hello": _hello}


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


USAGE: Final = """\
usage: pve-zfsbackup-receiver --root DATASET [--state DIR] [--bin DIR]    as command= of a key in authorized_keys
       pve-zfsbackup-receiver maintain [--config FILE] [--state DIR] [--bin DIR] [--dry-run] [--json]
       pve-zfsbackup-receiver check [--config FILE] [--state DIR] [--bin DIR]
       pve-zfsbackup-receiver --version
"""


def main(argv: Sequence[str]) -> int:
    """The exit status for the program's arguments."""
    words = list(argv)
    if words == ["--version"]:
        print(VERSION)
        return 0
    options: dict[str, str] = {}
    while len(words) >= 2 and words[0] in ("--root", "--state", "--bin"):
        options[words[0][2:]] = words[1]
        del words[:2]
    if words or "root" not in options:
        sys.stderr.write(USAGE)
        return 3
    os.umask(0o077)
    os.chdir("/")
    path = (options["bin"],) if "bin" in options else PATH
    site = Site(root=options["root"], bin=path, state=options.get("state", STATE))
    return serve(site, os.environ.get("SSH_ORIGINAL_COMMAND", ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
