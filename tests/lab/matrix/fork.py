"""The product on pve1 without the seconds its modules take to load under emulation: each run is a fork.

`fork.py serve` loads the program once; `fork.py ARGUMENTS…` is one run of it, with its own streams, directory, process
id (in /run/matrix/product.pid), environment and exit status. Where nobody serves, the installed program itself is
started.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import sys

SOCKET = "/run/matrix/fork.sock"
PROGRAM = "/usr/bin/pve-zfsbackup"
PID = "/run/matrix/product.pid"
CANARY = "/run/matrix/canary"


def serve() -> None:
    from pve_zfsbackup import cli  # noqa: PLC0415 - the asking side must not load it
    from pve_zfsbackup.cli.commands import MODULES  # noqa: PLC0415

    for modules in MODULES.values():
        for name in modules:
            importlib.import_module(f"pve_zfsbackup.cli.{name}")
    for stage in ("snapshot", "replicate", "archive", "prune"):  # else loaded by each fork when its turn comes
        importlib.import_module(f"pve_zfsbackup.app.{stage}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            one(connection, cli.main)
        connection.close()


def one(connection: socket.socket, main) -> None:  # type: ignore[no-untyped-def]
    """One run: told its arguments and given its streams; its end is told back."""
    data, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for stream in streams:
            os.close(stream)
        place, *arguments = json.loads(data)
        os.chdir(place)
        with open(CANARY) as file:
            os.environ["PZB_MATRIX"] = file.read()
        with open(PID, "w") as file:
            file.write(f"{os.getpid()}\n")
        sys.argv = [PROGRAM, *arguments]
        main()
        os._exit(99)  # main never returns
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def ask(arguments: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(SOCKET)
    except OSError:
        with open(CANARY) as file:
            os.environ["PZB_MATRIX"] = file.read()
        with open(PID, "w") as file:
            file.write(f"{os.getpid()}\n")
        os.execv(PROGRAM, (PROGRAM, *arguments))
    socket.send_fds(connection, [json.dumps([os.getcwd(), *arguments]).encode()], [0, 1, 2])
    answer = connection.recv(4)
    code = struct.unpack("i", answer)[0] if len(answer) == 4 else 99
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    sys.exit(ask(sys.argv[1:]))
