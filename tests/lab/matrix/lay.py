"""Stands in for one `zfs send` or `zfs receive` on a lab host: `lay.py MODE ARGUMENT ONCE zfs-arguments…`.

send:     gate N   pass N bytes, say so in /run/matrix/reached, wait for /run/matrix/go (or the reader's end)
          flip N   turn a bit at byte N        cut N    stop after N bytes, with status 0
          fail N   pass N bytes, end with 3    slow N   N bytes per second
          gone X   destroy X, then send
receive:  swallow  read all, receive nothing, status 0
          lost     receive, then kill our own connection before the status gets back
          refuse   end with 1 at once
Standard library only, no shell; started by a two-line script that stands before the real zfs in PATH.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

REAL = "/usr/sbin/zfs"
RUN = Path("/run/matrix")
CHUNK = 65536


def main() -> int:
    mode, argument, once = sys.argv[1:4]
    argv = (REAL, *sys.argv[4:])
    if once == "1" and not first():
        os.execv(REAL, argv)
    if mode == "swallow":
        while os.read(0, CHUNK):
            pass
        return 0
    if mode == "refuse":
        sys.stderr.write("matrix: refused\n")
        return 1
    if mode == "lost":
        done = subprocess.run(argv, check=False)
        if done.returncode == 0:
            cut_off()
        return done.returncode
    if mode == "gone":
        subprocess.run((REAL, "destroy", argument), check=True)
        os.execv(REAL, argv)
    return pass_on(mode, int(argument or 0), argv)


def first() -> bool:
    """Whether this is the first stream since the layer was laid."""
    try:
        os.close(os.open(RUN / "used", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def cut_off() -> None:
    """Kill the sshd process that we run under: the receive is done, nobody hears of it."""
    pid = os.getppid()
    while pid > 1:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        if status["Name"].startswith("sshd"):
            os.kill(pid, signal.SIGKILL)
            return
        pid = int(status["PPid"])
    raise SystemExit("matrix: no sshd above us")


def pass_on(mode: str, number: int, argv: tuple[str, ...]) -> int:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as real:
        assert real.stdout is not None
        done = 0
        while True:
            wanted = number - done if mode in ("gate", "cut", "fail") and done < number else CHUNK
            data = bytearray(os.read(real.stdout.fileno(), min(CHUNK, wanted)))
            if not data:
                break
            if mode == "flip" and done <= number < done + len(data):
                data[number - done] ^= 0x10
            write(bytes(data))
            done += len(data)
            if mode == "slow":
                time.sleep(len(data) / number)
            if mode in ("cut", "fail") and done >= number:
                real.kill()
                return 0 if mode == "cut" else 3
            if mode == "gate" and done == number and not waited():
                real.kill()
                return 1
        return real.wait()


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def waited() -> bool:
    """Wait for the word to go on; False when nobody reads any more."""
    (RUN / "reached").touch()
    poll = select.poll()
    poll.register(1, 0)
    while not (RUN / "go").exists():
        if poll.poll(100):
            return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
