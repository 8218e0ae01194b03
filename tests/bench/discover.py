"""200 guests over HTTPS from a fake Proxmox VE that takes 20 ms for each request: `python -m tests.bench.discover`.

The fake is a process of its own; measured is what `discover` and each run do with the API, from the first connection to
the last guest. Results go to build/discover.json; exit status 1 when the median is over the limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fakepve import FakePve

from pve_zfsbackup.host.guests import read_guests
from pve_zfsbackup.host.pve import HttpsApi
from tests.host.pve.conftest import SECRET, TOKEN, Certificates, make_certificates
from tests.lab.lab import TREE

RESULT = TREE / "build" / "discover.json"
GUESTS = 200
LATENCY = 0.02  # seconds, of each request
LIMIT = 2.0  # seconds
TIMES = 5


def serve(certificates: Certificates, pipe: int) -> None:
    """The fake node, until this process is ended; its address goes into the pipe."""

    async def forever() -> None:
        pve = FakePve(host="127.0.0.1", port=0)
        pve.apitokens[str(TOKEN)] = SECRET
        pve.network["latency"] = LATENCY
        for vmid in range(1000, 1000 + GUESTS):
            pve.add_vm(vmid, f"vm{vmid}", config={"scsi0": f"local-zfs:vm-{vmid}-disk-0,size=32G", "agent": "1"})
        await pve.start(str(certificates.chain), str(certificates.key))
        os.write(pipe, pve.url.encode())
        os.close(pipe)
        await asyncio.Event().wait()

    asyncio.run(forever())


def measure(url: str, certificates: Certificates) -> float:
    """Seconds for all guests, a new session each time."""
    begun = time.monotonic()
    with HttpsApi(url, TOKEN, ca_file=certificates.ca) as api:
        found = read_guests(api, "pve1")
    taken = time.monotonic() - begun
    if [guest.vmid for guest in found] != list(range(1000, 1000 + GUESTS)) or not all(g.digest for g in found):
        raise SystemExit(f"{len(found)} of {GUESTS} guests were found")
    return taken


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        certificates = make_certificates(Path(place))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            serve(certificates, write)
        os.close(write)
        try:
            with open(read) as pipe:
                url = pipe.read()
            runs = [measure(url, certificates) for _ in range(TIMES)]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    median = statistics.median(runs)
    told = {"format": 1, "guests": GUESTS, "latency": LATENCY, "median": median, "limit": LIMIT, "runs": runs}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{'reached' if median <= LIMIT else 'MISSED'}: {GUESTS} guests in {median:.2f} s "
          f"({min(runs):.2f} to {max(runs):.2f}), the limit is {LIMIT:g} s")  # fmt: skip
    return 0 if median <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
