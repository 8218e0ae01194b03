"""Plays the cases on the fake: the counterpart of remote.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pve_zfsbackup.host.pump import Flow
from pve_zfsbackup.host.runner import Completed
from tests.conformance.cases import KEY
from tests.fakes.node import FakeNode
from tests.fakes.pools import KIB, Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault
from tests.fakes.streams import Receiver, Sender
from tests.fakes.zfs import FakeZfs

ROOT = "rpool/conformance"


def play(name: str, steps: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The fake's answers to one case, in remote.py's form."""
    pools = Pools("pve1", Clock())
    pools.pool("rpool")
    pools.key_files[KEY] = bytes(range(32))
    pools.add(ROOT)
    pools.add(f"{ROOT}/{name}")
    return [answer for step in steps if (answer := _one(pools, _filled(pools, step, f"{ROOT}/{name}"))) is not None]


def _filled(pools: Pools, step: Sequence[Any], base: str) -> Sequence[Any]:
    def token(match: re.Match[str]) -> str:
        partial = pools.datasets[match[1]].partial
        assert partial is not None
        return partial.token

    def signed(match: re.Match[str]) -> str:
        guid = int(pools.get(match[1]).guid)
        return str(guid - (1 << 64) if guid >> 63 else guid)

    def fill(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(fill(item) for item in part)
        if not isinstance(part, str):
            return part
        return re.sub(r"\{signed:([^}]+)\}", signed, re.sub(r"\{token:([^}]+)\}", token, part.replace("{b}", base)))

    return tuple(fill(part) for part in step)


def _one(pools: Pools, step: Sequence[Any]) -> dict[str, Any] | None:
    if step[0] == "write":
        pools.write(step[1], step[2] * KIB)
        return None
    if step[0] == "pipe":
        sent, stream = Sender(pools, [pools]).run(step[1])
        cut = step[3] * KIB if len(step) > 3 else None
        return {
            **_answer(Receiver(pools).run(step[2], stream, cut)),
            "sent": sent.returncode,
            "sent stderr": sent.stderr,
        }
    if step[0] == "pack":
        return _pack(pools, *step[1:])
    if step[0] == "fed":
        return _answer(FakeZfs(pools).run(step[1], step[2].encode()))
    if step[1] == "send":
        return _answer(Sender(pools, [pools]).run(step)[0])
    if step[1] == "receive":
        return _answer(Receiver(pools).abort(step))
    return _answer(FakeZfs(pools).run(step))


def _pack(
    pools: Pools, producers: Sequence[Sequence[str]], consumers: Sequence[Sequence[str]], cut: Sequence[int] = ()
) -> dict[str, Any]:
    """As the runner of the other tests does it."""
    runner = FakeRunner({HERE: pools}, FakeNode(Path("/nowhere")), {})
    if cut:
        runner.faults.append(Fault(words=tuple(consumers[cut[0]]), cut=cut[1] * KIB))
    line = [word for words in consumers for word in ("&&", *words)][1:]
    done = runner.pipe(producers, [line], Flow(progress=lambda number, moved: None, stall=1))
    sent = next((end.returncode for end in done.sent if end.returncode not in (0, -13)), 0)
    return {**_answer(done.received[-1]), "sent": sent, "sent stderr": ""}


def _answer(done: Completed) -> dict[str, Any]:
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
