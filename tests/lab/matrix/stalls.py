"""How long the writers of a running guest stand still: `stalls.py VMID FILE`, on the node, beside the guest.

FILE has a line per writer, `disk seconds`: the longest time without a round of it so far, the current one included.
Standard library only.
"""

import os
import sys
import time
from pathlib import Path

RUN = Path("/run/pvesim")
PAUSE = 0.2


def main() -> None:
    vmid, file = sys.argv[1], Path(sys.argv[2])
    last: dict[str, bytes] = {}
    since: dict[str, float] = {}
    longest: dict[str, float] = {}
    fresh = file.with_name(f"{file.name}.new")
    while True:
        now = time.monotonic()
        for path in RUN.glob(f"{vmid}-*.progress"):
            disk, count = path.stem.partition("-")[2], path.read_bytes()
            if last.get(disk) != count:
                last[disk] = count
                since[disk] = now
            longest[disk] = max(longest.get(disk, 0.0), now - since[disk])
        fresh.write_text("".join(f"{disk} {seconds:.1f}\n" for disk, seconds in sorted(longest.items())))
        os.replace(fresh, file)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
