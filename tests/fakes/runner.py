"""A `Runner` that runs nothing: the node's programs and, behind `ssh`, those of the targets, with faults on order."""

from __future__ import annotations

import fnmatch
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import GivenUpError
from pve_zfsbackup.host import watchdog
from pve_zfsbackup.host.pump import Flow
from pve_zfsbackup.host.runner import DEFAULT_TIMEOUT, Completed, Piped, failure
from pve_zfsbackup.model import GuestKind, Vmid
from tests.fakes.node import FakeNode
from tests.fakes.pools import Pools, no, ok
from tests.fakes.streams import Receiver, Sender, Stream
from tests.fakes.zfs import FakeZfs

HERE = "pve1"
BUFFERED = 64 << 10
TOOLS = ("lsblk", "blkid", "mount", "umount", "e2fsck", "xfs_repair", "btrfs", "pvs", "lvs", "dmsetup", "udevadm")
CHANGING = {"set", "create", "clone", "snapshot", "bookmark", "hold", "release", "destroy", "receive", "rename",
            "change-key", "promote", "inherit", "program"}  # fmt: skip


class Killed(BaseException):
    """SIGKILL: from here on nothing of this process happens any more, not even its `finally`."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command and the host it ran on."""

    host: str
    argv: tuple[str, ...]

    @property
    def changing(self) -> bool:
        if self.argv[0] == "zfs":
            return self.argv[1] in CHANGING and not (self.argv[1] == "destroy" and "-nvp" in self.argv)
        return self.argv[0] in ("systemd-run", "systemctl") or self.argv[-1] in ("fsfreeze-freeze", "fsfreeze-thaw")


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong at the `nth` command that has all `words` (on `host`, if given), and at every one after it
    with `again`. One of: `answer` instead of the command, `error` raised, `cut` a stream after so many bytes (with
    `sender`, that end dies then with `answer`), `lie`: success without the work, `slow`: what happens meanwhile."""

    words: tuple[str, ...]
    host: str = ""
    nth: int = 1
    again: bool = False
    answer: tuple[int, str] | None = None
    error: BaseException | None = None
    cut: int | None = None
    lie: bool = False
    sender: bool = False
    slow: Callable[[], None] | None = None
    seen: int = 0

    def strikes(self, ran: Ran) -> bool:
        if (self.host and ran.host != self.host) or not set(self.words) <= set(" ".join(ran.argv).split()):
            return False
        self.seen += 1
        return self.seen == self.nth or (self.again and self.seen > self.nth)


@dataclass(slots=True)
class FakeRunner:
    """`pools` by host; `HERE` is the node. `addresses` leads from what ssh is told to a host."""

    pools: dict[str, Pools]
    node: FakeNode
    addresses: dict[str, str]
    nodes: dict[str, FakeNode] = field(default_factory=dict)  # other Proxmox nodes, by host
    ran: list[Ran] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    down: dict[str, str] = field(default_factory=dict)  # host -> what ssh says
    watchers: list[Callable[[Ran], None]] = field(default_factory=list)  # called before each command
    coming: Callable[[tuple[str, ...]], None] = lambda argv: None  # told of each, by threads side by side
    timers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hooks: Callable[[tuple[str, ...]], Completed] = field(default=ok)
    tools: Callable[[tuple[str, ...]], Completed] | None = None  # programs that look into disks
    hello: str = ""  # what the receivers of all targets say of themselves; empty: plain accounts
    connections: int = 0
    lines: list[str] = field(default_factory=list)  # what ssh was given, as it was
    frozen_at: list[tuple[str, frozenset[int]]] = field(default_factory=list)  # snapshot, guests frozen then
    kill_at: int = 0  # which command is the last, from 1
    kill_when: str = "before"  # before, after, or (streams) amid
    cancelled: bool = False
    _dead: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- what tests ask

    def zfs(self, host: str = "", *verbs: str) -> list[tuple[str, ...]]:
        return [
            ran.argv
            for ran in self.ran
            if ran.argv[0] == "zfs" and (not host or ran.host == host) and (not verbs or ran.argv[1] in verbs)
        ]

    @property
    def changes(self) -> list[Ran]:
        return [ran for ran in self.ran if ran.changing]

    def revive(self) -> None:
        """A new process: nothing remembered, faults gone."""
        self._dead, self.kill_at, self.cancelled = False, 0, False
        self.ran.clear()
        self.faults.clear()

    def fire_timers(self) -> None:
        """Time goes by: what systemd was told to run, it runs; what failed, it runs again later."""
        for unit, argv in list(self.timers.items()):
            if (self._thawing(argv) if argv[0] == "sh" else self.node.lxc(argv).returncode) == 0:
                del self.timers[unit]

    def _thawing(self, argv: tuple[str, ...]) -> int:
        """What the script of `watchdog.thaw_argv` makes of qm's answer; tests/host/test_watchdog.py runs it with sh."""
        vmid, until = argv[-2:]
        assert argv == watchdog.thaw_argv(GuestKind.VM, Vmid(int(vmid)), float(until))
        done = self.node.qm(("qm", "guest", "cmd", vmid, "fsfreeze-thaw"))
        told = done.stdout.strip()
        early = told == "0" and watchdog.uptime() < float(until)
        return done.returncode or int(early or not (told.isdecimal() or "hold writes" in told))

    # -- Runner

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
    ) -> Completed:
        self.coming(tuple(argv))
        with self._lock:
            host, command, unreachable = self._place(tuple(argv))
            done = unreachable or self._all(host, command, input)
        done = Completed(argv=tuple(argv), returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
        if check and done.returncode:
            raise failure(done)
        return done

    def run_each(self, argvs: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> list[Completed]:
        return [self.run(argv, timeout=timeout, check=False) for argv in argvs]

    def pipe(self, producers: Iterable[Sequence[str]], consumers: Sequence[Sequence[str]], flow: Flow) -> Piped:
        """Streams one after another, each taken by the next `zfs receive` of the other side's command line."""
        with self._lock:
            self._alive()
            target, line, unreachable = self._place(tuple(consumers[-1]))
            commands = [] if unreachable else receivers(line)
            receives = [command for command in commands if command[1] == "receive"]
            ends: list[Completed] = []
            moved: list[int] = []
            received = unreachable or ok(line)
            begun = 0
            for number, producer in enumerate(producers):
                source, send, unsent = self._place(tuple(producer))
                if unsent:
                    self._nothing(receives[number])
                    ends.append(unsent)
                    moved.append(0)
                    received = no(receives[number], "cannot receive: failed to read from stream")
                    break
                sending = Ran(source, send)
                self._begin(sending)
                if received.returncode:  # nobody reads any more
                    ends.append(no(send, "", status=-13))
                    moved.append(0)
                    break
                begun += 1
                receiving = Ran(target, receives[number])
                self.ran.append(receiving)
                struck = (fault for ran in (sending, receiving) for fault in self.faults if fault.strikes(ran))
                fault = next(struck, None)
                if fault and fault.slow:  # there is time to look, and a part of it has arrived
                    fault.slow()
                    if why := flow.unwanted(number):
                        self._stream(sending, receiving, Fault(words=(), cut=100))
                        raise GivenUpError(f"given up: {why}")
                    fault = None
                sent, received, count = self._stream(sending, receiving, fault)
                moved.append(count)
                self._end()
                ends.append(sent)
                flow.progress(number, count)
                if sent.returncode:
                    break
            if not received.returncode and begun < len(receives):  # the end of the pipe, and still waiting
                received = no(receives[begun], "cannot receive: failed to read from stream")
            for words in commands[len(receives) :] if not received.returncode else ():
                received = self._all(target, words, None)
            filters = [ok(words) for words in consumers[:-1]]
            return Piped(sent=tuple(ends), moved=tuple(moved), received=(*filters, received))

    def _nothing(self, receive: tuple[str, ...]) -> None:
        """A receive that is given no byte."""
        self._alive()
        assert receive[1] == "receive", receive

    def cancel(self) -> None:
        self.cancelled = True

    def _stream(self, sending: Ran, receiving: Ran, fault: Fault | None) -> tuple[Completed, Completed, int]:
        if fault and fault.error:
            raise fault.error
        sent, stream = self._sender(sending.host).run(sending.argv)
        cut = fault.cut if fault else None
        if stream and self.kill_when == "amid" and len(self.counted) == self.kill_at:
            cut = stream.size // 2
        if fault and fault.answer and sending.argv[0] == "zfs" and fault.sender:
            status, text = fault.answer
            received = Receiver(self.pools[receiving.host]).run(receiving.argv, stream, cut or 0)
            return no(sending.argv, text, status=status), received, cut or 0
        if fault and fault.answer:
            status, text = fault.answer
            return self._swallowed(sending, stream), no(receiving.argv, text, status=status), 0
        if fault and fault.lie:
            return sent, ok(receiving.argv), stream.size if stream else 0
        received = Receiver(self.pools[receiving.host]).run(receiving.argv, stream, cut)
        size = stream.size if stream else 0
        if received.returncode and stream:
            sent = self._swallowed(sending, stream) if cut is None else no(sending.argv, "", status=-13)
        return sent, received, size if cut is None else min(cut, size)

    @staticmethod
    def _swallowed(sending: Ran, stream: Stream | None) -> Completed:
        """A small stream disappears in the buffers before anybody notices that nobody reads it."""
        small = stream is not None and stream.size <= BUFFERED
        return ok(sending.argv) if small else no(sending.argv, "", status=-13)

    # -- inside

    def _all(self, host: str, command: tuple[str, ...], input: bytes | None) -> Completed:
        """The commands of a line that are joined by `&&`: up to the first that fails."""
        done, said = ok(command), ""
        for words in joined(command):
            ran = Ran(host, words)
            self._begin(ran)
            done = self._faulty(ran) or self._do(ran, input)
            self._end()
            said += done.stdout
            if done.returncode:
                break
        return Completed(argv=done.argv, returncode=done.returncode, stdout=said, stderr=done.stderr)

    @property
    def counted(self) -> list[Ran]:
        """Those a kill can strike; both ends of a stream are one."""
        return [ran for ran in self.ran if ran.argv[1:2] != ("receive",) or "-A" in ran.argv]

    def _alive(self) -> None:
        if self._dead:
            raise Killed

    def _begin(self, ran: Ran) -> None:
        self._alive()
        for watcher in self.watchers:
            watcher(ran)
        self.ran.append(ran)
        if self.kill_when == "before" and len(self.counted) == self.kill_at:
            self._dead = True
            raise Killed

    def _end(self) -> None:
        if self.kill_when != "before" and len(self.counted) == self.kill_at:
            self._dead = True
            raise Killed

    def _place(self, argv: tuple[str, ...]) -> tuple[str, tuple[str, ...], Completed | None]:
        """Host and command of a command line, and ssh's own failure if there is one."""
        if argv[0] != "ssh":
            return HERE, argv, None
        self._alive()
        path = next(word for word in argv if word.startswith("ControlPath=")).partition("=")[2]
        host = self.addresses[argv[argv.index("--") + 1].partition("@")[2]]
        control = Path(path)
        if "-O" in argv:
            control.unlink(missing_ok=True)
            return host, argv, ok(argv)
        if host in self.down:
            return host, argv, no(argv, self.down[host], status=255)
        if path == "none":
            self.connections += 1
        elif not control.exists():
            control.touch()
            self.connections += 1
        (command,) = argv[argv.index("--") + 2 :]
        self.lines.append(command)
        return host, tuple(shlex.split(command)), None

    def _faulty(self, ran: Ran) -> Completed | None:
        fault = next((fault for fault in self.faults if fault.strikes(ran)), None)
        if fault is None:
            return None
        if fault.error:
            raise fault.error
        if fault.answer:
            status, text = fault.answer
            return no(ran.argv, text, status=status)
        assert fault.lie, f"{fault} is for streams"
        return ok(ran.argv)

    def _do(self, ran: Ran, input: bytes | None) -> Completed:
        program = ran.argv[0]
        if program == "zfs":
            return self._zfs(ran, input)
        if program == "hello":
            return ok(ran.argv, self.hello) if self.hello else no(ran.argv, "sh: 1: hello: not found", status=127)
        pools = self.pools[ran.host]
        if answer := {"grep": pools.state, "env": pools.status, "zpool": pools.zpool}.get(program):
            return answer(ran.argv)
        node = self.node if ran.host == HERE else self.nodes.get(ran.host)
        assert node, f"only zfs runs on a target: {ran.argv}"
        if program == "pvesh":
            return node.pvesh(ran.argv)
        if program in ("qm", "pct", "prlimit") and ran.argv[1] != "guest":
            return node.tool(ran.argv)
        if program == "qm":
            return self.node.qm(ran.argv)
        if program.startswith("lxc-"):
            return self.node.lxc(ran.argv)
        if program in TOOLS and self.tools:
            return self.tools(ran.argv)
        if program == "timeout":  # a command of the administrator
            return self.hooks(ran.argv)
        if program == "systemd-run":
            unit = next(word for word in ran.argv if word.startswith("--unit=")).removeprefix("--unit=")
            self.timers[unit] = ran.argv[ran.argv.index("--") + 1 :]
            return ok(ran.argv)
        assert program == "systemctl", f"the product never runs {ran.argv}"
        for pattern in ran.argv[2:]:
            for unit in fnmatch.filter(self.timers, pattern.removesuffix(".timer").removesuffix(".service")):
                del self.timers[unit]
        return ok(ran.argv)

    def _zfs(self, ran: Ran, input: bytes | None) -> Completed:
        pools = self.pools[ran.host]
        if ran.argv[1] == "send":
            done, stream = self._sender(ran.host).run(ran.argv)
            assert stream is None, f"a stream that nobody takes: {ran.argv}"
            return done
        if ran.argv[1] == "receive":
            assert ran.argv[2] == "-A", ran.argv
            return Receiver(pools).abort(ran.argv)
        if ran.argv[1] == "snapshot":
            frozen = frozenset(vmid for vmid, guest in self.node.guests.items() if guest.frozen)
            self.frozen_at.append((ran.argv[-1], frozen))
            for guest in self.node.guests.values():
                guest.frozen = guest.frozen and not guest.thawed_meanwhile
        return FakeZfs(pools).run(ran.argv, input)

    def _sender(self, host: str) -> Sender:
        return Sender(self.pools[host], list(self.pools.values()))


def joined(line: Sequence[str]) -> list[tuple[str, ...]]:
    """`a && b && c` as three commands."""
    commands: list[list[str]] = [[]]
    for word in line:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    return [tuple(words) for words in commands]


def receivers(line: Sequence[str]) -> list[tuple[str, ...]]:
    """The receives of a command line, behind filters or not."""
    words = list(line)
    if "{" in words:
        inner = words[words.index("{") + 1 : words.index("}")]
        words = [*inner[:-1], inner[-1].removesuffix(";")]
    return joined(words)


__all__ = ["FakeRunner", "Fault", "Killed", "Ran", "Stream"]
