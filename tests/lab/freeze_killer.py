"""Kill the tool (SIGKILL) at each point of its freeze window, while the guest's agent does something to it, or while a
container stands still.

Runs on the node, beside killer.py: `freeze_killer.py AGENT VMID ARGUMENTS…`. The window begins where the watchdog is
armed and ends after it is disarmed. AGENT: `normal`; `slow`: the freeze takes longer than its limit (the caller sees to
that), and the tool is also killed in the midst of it; `hung` and `dead`: the agent stops or dies with the guest frozen,
and is back, as from its service in the guest, after AWAY seconds. Nobody but the watchdog helps a killed run. Prints
one JSON line per attempt: before what it was killed, after how many seconds the guest was thawed, and the longest time
that each of its writers stood still. Ends with the first attempt that nothing killed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from killer import attempt, watch

RUN = Path("/run/pvesim")
AWAY = 12
AMID = 4.0  # seconds into the freeze
LIMIT = 90.0  # seconds that are waited for a thaw: longer than it may take, to tell how long it took
MODES = {"hung": "hang", "dead": "dead"}
BACK = 'sleep "$1"; echo ok > "$2"; systemctl reload "$3"'


def main() -> None:
    agent, vmid, *arguments = sys.argv[1:]
    writers = Writers(vmid)
    try:
        for kill in itertools.count(-1 if agent == "slow" else 0):
            begun = time.monotonic()
            ended = attempt(arguments, arm=Window(agent, vmid, kill).arm)
            thawed = writers.thawed()
            told = {"kill": kill, "at": ended["at"], "code": ended["code"], "thawed": thawed}
            print(json.dumps({**told, "stalled": writers.stalled(begun)}), flush=True)
            if thawed is None or ended["code"] != -signal.SIGKILL:
                break
    finally:
        writers.end()


class Window:
    """In the child: it dies before action number `kill` of the window (0 arms the watchdog); -1: amid the freeze."""

    def __init__(self, agent: str, vmid: str, kill: int) -> None:
        self.agent, self.vmid, self.kill = agent, vmid, kill
        self.pipe = -1
        self.number = -1  # of the last action
        self.frozen = self.halted = self.disarmed = self.over = False

    def arm(self, pipe: int) -> None:
        self.pipe = pipe
        os.dup2(2, 1)  # what the tool prints is none of our lines
        watch(self.before)

    def before(self, what: str) -> None:
        if self.over or (self.number < 0 and not what.startswith("systemd-run")):
            return
        self.number += 1
        if self.frozen and not self.halted and self.agent in MODES:
            self.halted = True
            halt(self.vmid, MODES[self.agent])
        if self.number == self.kill:
            self.die(what)
        if what.endswith("/fsfreeze-freeze") or what.startswith("lxc-freeze"):
            self.frozen = True
            if self.kill < 0:
                threading.Timer(AMID, self.die, (f"amid {what}",)).start()
        self.over = self.disarmed
        self.disarmed = what.startswith("systemctl stop")

    def die(self, what: str) -> None:
        os.write(self.pipe, what.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def halt(vmid: str, mode: str) -> None:
    """Bring the guest's agent into a mode now, and back after AWAY seconds, whatever becomes of this process."""
    path, unit = RUN / f"{vmid}.agent", f"pve-guest@{vmid}"
    path.write_text(mode + "\n")
    subprocess.run(("systemctl", "reload", unit), check=True)
    null = subprocess.DEVNULL
    argv = ("sh", "-c", BACK, "sh", str(AWAY), str(path), unit)
    subprocess.Popen(argv, start_new_session=True, stdin=null, stdout=null, stderr=null)


class Writers:
    """What the guest's writers do, looked at all the time by a process of its own."""

    def __init__(self, vmid: str) -> None:
        self.vmid = vmid
        self.counts = sorted(RUN.glob(f"{vmid}-*.progress"))
        self.record = RUN / "rounds"
        self.record.write_text("")
        self.parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._look(self.parent)
            os._exit(0)

    def _look(self, parent: int) -> None:
        known: dict[Path, str] = {}
        with open(self.record, "w", buffering=1) as out:
            while os.getppid() == parent:
                for path in self.counts:
                    if known.get(path) != (text := path.read_text()):
                        known[path] = text
                        out.write(f"{time.monotonic():.3f} {path.stem.partition('-')[2]}\n")
                time.sleep(0.05)

    def _rounds(self) -> dict[str, list[float]]:
        """When each writer had a round on its disk, by disk."""
        found: dict[str, list[float]] = {path.stem.partition("-")[2]: [] for path in self.counts}
        for line in self.record.read_text().splitlines():
            at, _, disk = line.partition(" ")
            if disk in found:  # the last line may be half written
                found[disk].append(float(at))
        return found

    def stalled(self, begun: float) -> dict[str, float]:
        """The longest time without a round that ended after `begun`, for each writer."""
        now, out = time.monotonic(), {}
        for disk, rounds in self._rounds().items():
            ends = [*rounds, now]
            out[disk] = round(max(end - start for start, end in itertools.pairwise(ends) if end > begun), 1)
        return out

    def thawed(self) -> float | None:
        """Seconds until the guest says thawed and each writer goes on; None when that takes too long."""
        started = said = time.monotonic()
        argv, wanted = ("qm", "guest", "cmd", self.vmid, "fsfreeze-status"), "thawed"
        if Path(f"/etc/pve/lxc/{self.vmid}.conf").exists():
            argv, wanted = ("lxc-info", "-n", self.vmid, "-s", "-H"), "RUNNING"
        while subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() != wanted:
            if (said := time.monotonic()) > started + LIMIT:
                return None
            time.sleep(0.5)
        while any(not rounds or rounds[-1] <= said for rounds in self._rounds().values()):
            if time.monotonic() > said + LIMIT:
                return None
            time.sleep(0.1)
        return round(time.monotonic() - started, 1)

    def end(self) -> None:
        if os.getpid() != self.parent:  # a run of the tool that came to its end: it exits through here
            return
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


if __name__ == "__main__":
    main()
