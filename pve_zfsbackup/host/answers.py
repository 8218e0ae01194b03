"""Whether a host gives any sign of life. Its absence proves nothing: the way there may be cut, and not the host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final

from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.runner import Runner

PORTS: Final = {22: "ssh", 8006: "the Proxmox API"}
Connect = Callable[[tuple[str, int], float], object]


def signs_of_life(
    runner: Runner, host: str, ports: Sequence[int], timeout: float, connect: Connect | None = None
) -> tuple[str, ...]:
    """What the host answered, in words; nothing when it was silent. Waits `timeout` seconds for each.

    A refused connection is an answer: somebody is there who refuses. An address that cannot be found is none.
    """
    connect = connect or _connect
    found = []
    for port in ports:
        name = PORTS.get(port, f"port {port}")
        try:
            connect((host, port), timeout)
        except ConnectionRefusedError:
            found.append(f"{host} refuses connections to {name} (port {port}): it is up")
        except OSError:
            continue
        else:
            found.append(f"{host} answers on {name} (port {port})")
    try:
        wait = str(max(1, round(timeout)))
        ping = ("ping", "-n", "-q", "-c", "2", "-w", wait, "--", host)
        if runner.run(ping, timeout=timeout + 10, check=False).returncode == 0:
            found.append(f"{host} answers ping")
    except CommandError:
        return tuple(found)  # no ping here, or it hangs: the others have told what there is
    return tuple(found)


def _connect(address: tuple[str, int], timeout: float) -> None:
    socket.create_connection(address, timeout).close()
