"""Which programs a host executed: the kernel's own record of every exec, by its trace events.

Process accounting writes when a process ends and knows 15 characters of its name; the trace events are written by the
exec itself and carry the whole path. The arguments come from a probe on the system call; the kernel cannot always
read them at that instant (a page not yet present), so counts rest on the path and `arguments` is None where unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tests.lab.machine import LabError

if TYPE_CHECKING:
    from tests.lab.host import Host

ARGUMENTS = 10
"""How many leading arguments are recorded."""

_START = r"""
cd /sys/kernel/tracing 2>/dev/null || { mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing; }
[ ! -d instances/lab ] || rmdir instances/lab
grep -q lab/exec kprobe_events || echo "$1" >> kprobe_events
mkdir instances/lab
cd instances/lab
echo 8192 > buffer_size_kb
echo 1 > events/sched/sched_process_exec/enable
echo 1 > events/lab/exec/enable
"""

_STOP = r"""
cd /sys/kernel/tracing/instances/lab
echo 0 > tracing_on
echo "own $$"
cat per_cpu/cpu*/stats | grep -E '^(overrun|dropped events)'
cat trace
cd ..
rmdir lab
"""

_EVENT = re.compile(r"^\s*.+-(\d+)\s+\[\d+\]\s+\S+\s+[\d.]+: (exec|sched_process_exec): (.*)$")
_PATH = re.compile(r"^filename=(.*) pid=\d+ old_pid=(\d+)$")
_ARGUMENT = re.compile(r' a\d+=(?:"(.*?)"|\(fault\))(?= a\d+=|$)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """One program image that was started."""

    path: str
    arguments: tuple[str, ...] | None
    """argv as given, its first ARGUMENTS members; None where the kernel could not read them."""

    pid: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(slots=True, kw_only=True)
class Executed:
    """The record of one `with host.executed()` block, complete after the block."""

    execs: list[Exec] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Program names in order of execution."""
        return [e.name for e in self.execs]

    def count(self, name: str) -> int:
        return self.names.count(name)

    def of(self, name: str) -> list[Exec]:
        return [e for e in self.execs if e.name == name]


def _probe() -> str:
    """Probe definition: argv is the second argument of execve, %si of the registers saved at offset 104."""
    arguments = " ".join(f"a{i}=+u0(+u{8 * i}(+104(%di))):ustring" for i in range(ARGUMENTS))
    return f"p:lab/exec __x64_sys_execve {arguments}"


@contextmanager
def recording(host: Host) -> Iterator[Executed]:
    """Record between two ssh commands; what those two execute themselves is left out."""
    record = Executed()
    host.script(_START, _probe())
    try:
        yield record
    finally:
        output = host.script(_STOP).lines
    own = next(line.split()[1] for line in output if line.startswith("own "))
    lost = [line for line in output if re.match(r"(overrun|dropped events): [1-9]", line)]
    if lost:
        raise LabError(f"{host.name}: the record of executed programs has holes: {lost}")
    record.execs = _parse(output, int(own))


def _parse(lines: list[str], own: int) -> list[Exec]:
    execs: list[Exec] = []
    pending: dict[int, tuple[str, ...] | None] = {}
    for line in lines:
        if (event := _EVENT.match(line)) is None:
            continue
        pid, kind, text = int(event[1]), event[2], event[3]
        if kind == "exec":
            pending[pid] = _arguments(text)
        elif (path := _PATH.match(text)) is not None:
            arguments = pending.pop(int(path[2]), None)
            if pid != own:
                execs.append(Exec(path=path[1], arguments=arguments, pid=pid))
    return execs


def _arguments(text: str) -> tuple[str, ...] | None:
    """argv of one probe event: ends at the first member that is no string, unless that is the very first."""
    members = [None if m[0].endswith("(fault)") else m[1] for m in _ARGUMENT.finditer(text)]
    end = members.index(None) if None in members else len(members)
    return tuple(m for m in members[:end] if m is not None) or None
