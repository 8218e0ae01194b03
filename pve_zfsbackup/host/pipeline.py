"""Streams to another host: one ssh session takes those of many disks, one after another.

The other side runs `zfs receive a && zfs receive b && …`: each takes its stream from the common pipe exactly to the
record (seen on OpenZFS 2.3.9). When one fails the session ends, and buffers on the way may have swallowed streams
behind it: only what is read back tells which arrived. Those before the failing one did, and those after it were not
begun; they go again in another session. A session in which all went well says at its end what is there.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from pve_zfsbackup.errors import BackupError, CommandError, GivenUpError, StreamBrokenError, VerificationError
from pve_zfsbackup.host import listing, zfs
from pve_zfsbackup.host.filters import filters
from pve_zfsbackup.host.pump import Flow
from pve_zfsbackup.host.runner import Completed, Piped
from pve_zfsbackup.host.ssh import SSH_FAILED, Host, uncrowded
from pve_zfsbackup.host.zfs_errors import classified, resumed
from pve_zfsbackup.model import Dataset, Guid, Resume, Send

ALONE_BYTES = 64 << 20  # from here a connection of its own is worth its handshake
MOST = 200  # streams of one disk in one command line, which may have 128 KiB


class Fate(Enum):
    """What became of a chain. AGAIN: it was not its turn, another one broke the session."""

    ARRIVED = auto()
    FAILED = auto()
    AGAIN = auto()


@dataclass(slots=True, kw_only=True)
class Chain:
    """The streams of one disk, in order. `prepare` is called before the first is sent; its errors are the disk's.

    `size` is what is expected of them, for choosing a connection, `compress` whether that pays on the wire, `buffer`
    the bytes of one on this side, 0 for none. `lost`: the `seconds` of its session that one would have saved at most.
    `unwanted` tells why it is not to be sent after all, also while it is. `begun`: something of it was sent.
    """

    streams: tuple[Send | Resume, ...]
    prepare: Callable[[], None] = lambda: None
    unwanted: Callable[[], str] = lambda: ""
    size: int = 0
    compress: bool = False
    buffer: int = 0
    moved: int = field(default=0, init=False)
    lost: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    begun: bool = field(default=False, init=False)
    fate: Fate = field(default=Fate.AGAIN, init=False)
    error: BackupError | None = field(default=None, init=False)
    read: frozenset[Guid] | None = field(default=None, init=False)  # what its session saw there, where it was asked

    def fail(self, error: BackupError) -> None:
        self.fate, self.error = Fate.FAILED, error

    @property
    def guids(self) -> frozenset[Guid]:
        """All that will be on the replica."""
        return frozenset(guid for stream in self.streams for guid in sent_guids(stream))

    @property
    def dataset(self) -> Dataset:
        return self.streams[0].dataset


class Meter(Protocol):
    """Who wants to know how streams get on. `moved` is called from another thread."""

    def begin(self, stream: Send | Resume) -> None: ...
    def moved(self, stream: Send | Resume, count: int) -> None: ...
    def end(self, stream: Send | Resume) -> None: ...


def sent_guids(stream: Send | Resume) -> tuple[Guid, ...]:
    """The snapshots one stream brings."""
    through = stream.through if isinstance(stream, Send) else ()
    return tuple(snapshot.guid for snapshot in (*through, stream.snapshot))


def carry(source: Host, target: Host, chains: Sequence[Chain], meter: Meter) -> None:
    """Send the chains in one session and note in each what became of it. What arrived is to be verified by the caller.

    Raises nothing that belongs to a single chain; a fault of the target (unreachable, silent) is all of theirs, as
    which of them arrived will be seen in its next listing. A chain too long for one command line comes alone.
    """
    if len(chains) != 1 or len(chains[0].streams) <= MOST:
        _session(source, target, chains, meter)
        return
    whole = chains[0]
    for start in range(0, len(whole.streams), MOST):
        streams = whole.streams[start : start + MOST]
        part = replace(whole, streams=streams, prepare=_nothing if start else whole.prepare)
        _session(source, target, [part], meter)
        whole.moved += part.moved
        whole.lost, whole.seconds = whole.lost + part.lost, whole.seconds + part.seconds
        whole.begun = whole.begun or part.begun
        whole.fate, whole.error, whole.read = part.fate, part.error, part.read
        if part.fate is not Fate.ARRIVED:
            return


def _nothing() -> None:
    """What is left to do before the second part of a chain."""


def _session(source: Host, target: Host, chains: Sequence[Chain], meter: Meter) -> None:
    turn = _Turn(source, chains, meter)
    flow = Flow(
        progress=lambda number, moved: meter.moved(turn.streams[number][1], moved),
        stall=target.link.stall,
        pace=target.link.pace,
        unwanted=lambda number: turn.streams[number][0].unwanted(),
    )
    try:
        done = source.runner.pipe(turn.producers(), _consumers(target, chains), flow)
    except GivenUpError as given_up:
        fault: BackupError = given_up
        _judge(target, chains, next((c for c in chains if c.unwanted()), None), lambda chain: fault)
        return
    except BackupError as error:
        _fail_all(chains, error)
        return
    finally:
        turn.end()
    for (chain, _), moved in zip(turn.streams, done.moved, strict=False):
        chain.moved += moved
    chains[0].lost, chains[0].seconds = chains[0].lost + done.lost, chains[0].seconds + done.seconds
    last = uncrowded(done.received[-1])
    done = replace(done, received=(*done.received[:-1], last))
    if target.destination and last.returncode == SSH_FAILED:
        _fail_all(chains, target.unreachable(last))
    elif any(end.returncode for end in (*done.sent, *done.received)) or turn.error:
        _judge(target, chains, None, lambda chain: _cause(target, chain, turn, done))
    else:
        found = _said(last)
        for chain in chains:
            chain.fate, chain.read = Fate.ARRIVED, found.get(chain.dataset)


def _said(last: Completed) -> Mapping[Dataset, frozenset[Guid]]:
    """What the session read back, where it was asked; an account that says something else is asked again."""
    try:
        return listing.told_guids(last.stdout)
    except ValueError:
        return {}


def _fail_all(chains: Sequence[Chain], error: BackupError) -> None:
    for chain in chains:
        chain.fail(error)


class _Turn:
    """Whose turn it is: prepares a disk right before its first stream, while the other side is busy with the last."""

    def __init__(self, source: Host, chains: Sequence[Chain], meter: Meter) -> None:
        self._source, self._chains, self._meter = source, chains, meter
        self._under_way: Send | Resume | None = None
        self.streams: list[tuple[Chain, Send | Resume]] = []
        self.error: BackupError | None = None  # of the preparation of what came after the last of `streams`

    def producers(self) -> Iterator[tuple[str, ...]]:
        for chain in self._chains:
            try:
                if why := chain.unwanted():
                    raise GivenUpError(f"not begun: {why}")
                chain.prepare()
                for stream in chain.streams:
                    self._meter.begin(stream)
                    self.streams.append((chain, stream))
                    self._under_way = stream
                    chain.begun = True
                    yield self._source.argv(zfs.send_argv(stream))
                    self.end()
            except BackupError as error:
                self.error = error
                return  # nothing may follow: it would be taken for this disk's stream

    def end(self) -> None:
        """The stream under way is over, whatever became of it."""
        if self._under_way is not None:
            self._meter.end(self._under_way)
            self._under_way = None


def _judge(
    target: Host, chains: Sequence[Chain], culprit: Chain | None, cause: Callable[[Chain], BackupError]
) -> None:
    """What is there tells which arrived. Where nobody is known to have failed, it is the first that did not."""
    try:
        found = listing.read_guids(target, [chain.dataset for chain in chains])
    except BackupError as error:
        _fail_all(chains, error)
        return
    culprit = culprit or next((chain for chain in chains if not _arrived(chain, found)), None)
    for chain in chains:
        if _arrived(chain, found):
            chain.fate, chain.read = Fate.ARRIVED, found.get(chain.dataset)
        elif chain is culprit:
            chain.fail(cause(chain))
        else:
            chain.fate = Fate.AGAIN


def _arrived(chain: Chain, found: Mapping[Dataset, frozenset[Guid]]) -> bool:
    return chain.guids <= found.get(chain.dataset, frozenset())


def _cause(target: Host, chain: Chain, turn: _Turn, done: Piped) -> BackupError:
    """Why this chain failed.

    When both ends fail, the end that failed first by cause is reported: a receiver that refuses breaks the sender's
    pipe, a sender that dies leaves the receiver an incomplete stream.
    """
    begun = [number for number, (owner, _) in enumerate(turn.streams) if owner is chain]
    received = done.received[-1]
    for number in begun:
        if number < len(done.sent) and (sent := done.sent[number]).returncode:
            broken = sent.returncode == -signal.SIGPIPE or "Broken pipe" in sent.stderr
            if not (broken and received.returncode):
                return _died(sent) if sent.returncode < 0 and not sent.stderr.strip() else classified(sent)
    if turn.error and len(begun) < len(chain.streams):
        return turn.error
    for program in ("zstd", "mbuffer"):
        if re.search(rf"\b{program}: (?:command )?not found", received.stderr):
            return CommandError(
                f"{target.name}: {program} is not installed there",
                hint=f"install {program} on the target, or turn it off in the configuration",
                stderr=received.stderr,
                returncode=received.returncode,
            )
    for filtering in done.received[:-1]:
        if filtering.returncode not in (0, -signal.SIGPIPE) and not received.returncode:
            return classified(filtering)
    if not received.returncode:
        return VerificationError(
            f"{target.name}: {chain.dataset} lacks what was sent, although the receive succeeded",
            hint="the next run plans anew from what is there",
        )
    argv = ("zfs", "receive", chain.dataset)
    text = _own_words(received.stderr)
    first = chain.streams[0]
    judge = resumed if isinstance(first, Resume) else classified
    error = judge(Completed(argv=argv, returncode=received.returncode, stdout=received.stdout, stderr=text))
    if "has been modified" in text and isinstance(first, Send) and first.base:
        _show_written(error, target, f"{chain.dataset}@{first.base.name}")
    return error


def _show_written(error: CommandError, target: Host, base: str) -> None:
    """What was written to a replica, as far as it says, and the command that would throw it away."""
    count = listing.read_written(target, Dataset(base.partition("@")[0]))
    found = f", {count} bytes" if count is not None else ""
    error.message += f" ({base} is what both sides have; something was written since{found})"
    place, snapshot = shlex.quote(base.partition("@")[0]), shlex.quote(base)
    error.hint = f"on {target.name}, see what it is in a clone of {place}; to throw it away: zfs rollback {snapshot}"


def _died(sent: Completed) -> StreamBrokenError:
    return StreamBrokenError(
        f"zfs send: killed by signal {-sent.returncode}",
        hint="what arrived is kept; the next attempt goes on from there",
        returncode=sent.returncode,
    )


def _own_words(stderr: str) -> str:
    """What the last receive said: those before it succeeded."""
    start = stderr.rfind("\ncannot receive")
    return stderr if start < 0 or "cannot receive" not in stderr[:start] else stderr[start + 1 :]


def _consumers(target: Host, chains: Sequence[Chain]) -> tuple[tuple[str, ...], ...]:
    """The local filters, then what takes the streams: the other side's command line, or `zfs receive` here."""
    receives = [zfs.receive_argv(stream) for chain in chains for stream in chain.streams]
    if target.destination is None:
        assert len(receives) == 1, "without a shell there is one receive"
        return (receives[0],)
    alone = sum(chain.size for chain in chains) >= ALONE_BYTES
    size = target.link.mbuffer or (max(chain.buffer for chain in chains) if alone else 0)
    here, there = filters(size, target.link.mbuffer, compress=all(chain.compress for chain in chains))
    line = " && ".join(shlex.join(receive) for receive in receives)
    if there:
        line = " | ".join([*(shlex.join(words) for words in there), f"{{ {line}; }}"])
    else:
        line += f" && {shlex.join(listing.guids_argv(chain.dataset for chain in chains))}"
    return (*here, target.destination.argv(line, alone=alone))
