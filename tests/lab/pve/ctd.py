#!/usr/bin/python3 -IS
"""What runs in a container of the lab, in a control group of its own: one process per file system, which writes.

usage: ctd.py VMID NAME=DIRECTORY…     (as pve-container@VMID.service, see provision.start_container)

Each round is synced before it is counted in /run/pvesim/VMID-NAME.progress, as those of the VMs' writers are.
"""

import os
import signal
import sys
import time


def write_forever(vmid: str, name: str, directory: str) -> None:
    count = os.open(f"/run/pvesim/{vmid}-{name}.progress", os.O_RDWR | os.O_CREAT, 0o644)
    number = 0
    while True:
        number += 1
        log = os.open(f"{directory}/rounds", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(log, f"{number}\n".encode())
        os.fsync(log)
        os.close(log)
        os.pwrite(count, b"%020d\n" % number, 0)
        time.sleep(0.3)


def main(vmid: str, *places: str) -> None:
    for place in places:
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            write_forever(vmid, *place.split("=", 1))
    signal.sigwait((signal.SIGTERM,))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    main(*sys.argv[1:])
