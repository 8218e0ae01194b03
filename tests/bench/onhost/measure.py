"""Run one command on a lab host and print as JSON what it took. Standard library only: the host's own Python runs it.

usage: measure.py LIMIT COMMAND...     LIMIT in seconds; the command and its children are killed then
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time

EVERY = 0.3  # seconds between looks at the memory; each look costs milliseconds under emulation
PAGE = resource.getpagesize()


def tree(pid: int) -> list[int]:
    """The process and all its descendants; those of every thread, as any of them may have started one."""
    found = [pid]
    for parent in found:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as file:
                    found += [int(child) for child in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def resident(pid: int) -> int:
    """Bytes of the process's resident set; pages it shares with others are counted for each."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def main(limit: float, command: list[str]) -> None:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        ended, peak = os.pidfd_open(child.pid), 0
        while not select.select([ended], [], [], EVERY)[0]:
            peak = max(peak, sum(map(resident, tree(child.pid))))
            if time.monotonic() - started > limit:
                os.killpg(child.pid, signal.SIGKILL)
        seconds = time.monotonic() - started
        status = child.wait()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        tails = []
        for stream in (out, err):
            stream.seek(0)
            tails.append(stream.read().decode(errors="replace")[-4000:])
    result = {
        "pid": os.getpid(), "seconds": seconds, "status": status, "cpu": used.ru_utime + used.ru_stime,
        "tree": max(peak, used.ru_maxrss * 1024), "largest": used.ru_maxrss * 1024, "out": tails[0], "err": tails[1],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
