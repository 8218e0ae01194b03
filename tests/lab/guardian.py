"""Keeps one child alive exactly as long as the lab that wants it: `python3 guardian.py program argument...`.

Standard input is the lifeline: when every writer of it is gone (closed on purpose, or the lab's process killed by any
signal), the child is killed. When the guardian itself is killed, the kernel kills the child (`setpriv --pdeathsig`).
PR_SET_PDEATHSIG alone would not do: it follows the thread that spawned, not the process.

Leaves with the child's exit status, or 128 + signal. Standard library only, run by path.
"""

import os
import select
import subprocess
import sys


def main(argv: list[str]) -> int:
    with subprocess.Popen(("setpriv", "--pdeathsig", "KILL", "--", *argv), stdin=subprocess.DEVNULL) as child:
        ended = os.pidfd_open(child.pid)
        ready = select.select([0, ended], [], [])[0]
        if ended not in ready:
            child.kill()
        status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
