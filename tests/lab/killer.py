"""Run pve-zfsbackup again and again, killing it (SIGKILL) before its first, second, third … outer action.

Runs on the node: `killer.py FIRST LAST STRIDE VMID ARGUMENTS…` kills at each action from FIRST to LAST, then at one in
STRIDE. An outer action is a program it starts, a stream it joins, or a call of the Proxmox API. After each kill: waits
until the guest is thawed (VMID 0: there is none to look at), and then runs the command to its end. Prints one JSON line
per kill; ends at the first kill that was not reached. Each attempt is a fork: Python starts once.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from pve_zfsbackup import cli
from pve_zfsbackup.app import archive, prune, replicate, snapshot  # noqa: F401 - once, and not in each fork
from pve_zfsbackup.cli import work  # noqa: F401 - the same
from pve_zfsbackup.host import pve, runner

THAW_LIMIT = 30.0


def main() -> None:
    first, last, stride = (int(text) for text in sys.argv[1:4])
    vmid, arguments = sys.argv[4], sys.argv[5:]
    for number in itertools.chain(range(first, last + 1), itertools.count(last + stride, stride)):
        reached = attempt(arguments, kill_at=number)
        if reached["code"] != -signal.SIGKILL:
            print(json.dumps({"kill": number, "unreached": True, **reached}), flush=True)
            return
        frozen = thawed_after(vmid) if vmid != "0" else 0.0
        again = attempt(arguments, kill_at=0)
        told = {"kill": number, "at": reached["at"], "thawed": frozen, "again": again["code"], "rss": again["rss"]}
        print(json.dumps(told), flush=True)
        if again["code"] or frozen is None:
            sys.exit(1)


def walk(arguments: list[str], first: int, stride: int) -> None:
    """Kill before ever later actions, each attempt going on from what the last one left, until one comes to its end.
    Prints one JSON line per attempt to standard error; `left` are the datasets of unfinished restores after it."""
    for number in itertools.count(first, stride):
        told = attempt(arguments, kill_at=number)
        listed = subprocess.run(("zfs", "list", "-H", "-o", "name"), capture_output=True, text=True, check=True)
        left = [name for name in listed.stdout.split("\n") if "/pzb-restore/" in name]
        print(json.dumps({"kill": number, "left": left, **told}), file=sys.stderr, flush=True)
        if told["code"] != -signal.SIGKILL:
            return


def attempt(arguments: list[str], *, kill_at: int = 0, arm: Callable[[int], None] | None = None) -> dict[str, Any]:
    """One run in a child; how it ended and before what it was killed. `arm` gets the pipe for telling that."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        arm(write) if arm else count(kill_at, write)
        sys.argv = ["pve-zfsbackup", *arguments]
        cli.main()
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    _, status, used = os.wait4(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "at": told, "rss": used.ru_maxrss}


def count(kill_at: int, pipe: int) -> None:
    number = 0

    def before(what: str) -> None:
        nonlocal number
        number += 1
        if number == kill_at:
            os.write(pipe, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    watch(before)


def watch(before: Callable[[str], None]) -> None:
    """Have `before` called with each outer action of this process, right before it."""

    def watched(method: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            before(name(*args))
            return method(self, *args, **kwargs)

        return call

    process, https = runner.ProcessRunner, pve.HttpsApi
    process.run = watched(process.run, words)  # type: ignore[method-assign]
    process.run_each = watched(process.run_each, lambda argvs: words(argvs[0]))  # type: ignore[method-assign]
    poured = process.pipe

    def streams(self: Any, producers: Any, consumers: Any, flow: Any) -> Any:
        """Each stream of a session is an action, and so is what is done right before it."""

        def counted() -> Any:
            for argv in producers:
                before(words(argv))
                yield argv

        return poured(self, counted(), consumers, flow)

    process.pipe = streams  # type: ignore[method-assign]
    https.request = watched(https.request, lambda method, path, *rest: f"{method} {path}")  # type: ignore[method-assign]


def words(argv: Any) -> str:
    """A command, without its middle when it is long."""
    text = " ".join(argv)
    return text if len(text) <= 120 else f"{text[:40]} ... {text[-76:]}"


def thawed_after(vmid: str) -> float | None:
    """Seconds until the guest says thawed, nobody helping but the watchdog; None when it takes too long."""
    started = time.monotonic()
    while True:
        done = subprocess.run(
            ("qm", "guest", "cmd", vmid, "fsfreeze-status"), capture_output=True, text=True, check=False
        )
        passed = time.monotonic() - started
        if done.stdout.strip() == "thawed":
            return round(passed, 1)
        if passed > THAW_LIMIT:
            return None
        time.sleep(0.5)


if __name__ == "__main__":
    main()
