"""A file put into a running guest, as root on the node: by the guest agent, or into a container by `pct`.

Nothing of the guest's is overwritten: what lies there is read first, and read back afterwards. What a guest answers is
hostile: it is bounded, and only compared.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError, GuestChangedError, PveError, VerificationError
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import Guest, GuestKind, printable

TIMEOUT: Final = 60.0
SIZE: Final = 16 << 20  # of a file that is fetched: a container may show an endless one
_ABSENT: Final = re.compile(r"No such file or directory")


def put(runner: Runner, guest: Guest, path: str, text: str, *, ours: Callable[[str], bool]) -> None:
    """Write a text file into a running guest, in place of nothing, or of a file whose content is `ours`.

    Raises `GuestChangedError` when something else lies there, `PveError` when the guest, its agent or Proxmox refuses,
    and `VerificationError` when what is read back is something else.
    """
    read, write = (_agent_read, _agent_write) if guest.kind is GuestKind.VM else (_pull, _push)
    found = read(runner, guest, path)
    if found is not None and not ours(found):
        raise GuestChangedError(
            f"guest {guest.vmid}: {path} is there already, and not ours: it stays", hint="move it away, if it is yours"
        )
    write(runner, guest, path, text)
    if read(runner, guest, path) != text:
        raise VerificationError(f"guest {guest.vmid}: {path}: what was read back is not what was written")


# -- virtual machines: Agent.pm opens with fopen(3), which truncates: hence the look before


def _agent_read(runner: Runner, guest: Guest, path: str) -> str | None:
    """None where there is no such file. Raises `PveError` where that is not known."""
    try:
        answer = PveshApi(runner, timeout=TIMEOUT).get(_agent(guest, "file-read"), file=path)
    except PveError as error:
        if _ABSENT.search(error.message):
            return None
        raise
    if not isinstance(answer, dict) or not isinstance(answer.get("content"), str):
        raise PveError(f"guest {guest.vmid}: the answer to file-read has no content")
    return str(answer["content"])


def _agent_write(runner: Runner, guest: Guest, path: str, text: str) -> None:
    PveshApi(runner, timeout=TIMEOUT).post(_agent(guest, "file-write"), file=path, content=text)


def _agent(guest: Guest, command: str) -> str:
    return f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/agent/{command}"


# -- containers: pct enters their namespaces before it opens anything, so no link leads to the node. It exits 0 also
# when its task failed (pct.pm); what it prints tells.


def _pull(runner: Runner, guest: Guest, path: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="pve-zfsbackup-") as folder:
        copy = Path(folder) / "file"
        limited = ("prlimit", f"--fsize={SIZE}", "--")
        done = runner.run((*limited, "pct", "pull", str(guest.vmid), path, str(copy)), timeout=TIMEOUT, check=False)
        told = f"{done.stdout}\n{done.stderr}"
        if _ABSENT.search(told):
            return None
        try:
            data = copy.read_bytes()
        except FileNotFoundError:
            data = b""
    if done.returncode or "failed to open" in told or "TASK ERROR" in told or not data:
        raise PveError(f"guest {guest.vmid}: {path} cannot be looked at: {_last(told) or 'it is empty'}")
    return data.decode("utf-8", "surrogateescape")


def _push(runner: Runner, guest: Guest, path: str, text: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="pve-zfsbackup-") as file:
        file.write(text.encode("ascii"))
        file.flush()
        argv = ("pct", "push", str(guest.vmid), file.name, path, "--perms", "0644", "--user", "0", "--group", "0")
        try:
            runner.run(argv, timeout=TIMEOUT)
        except BackupError as error:
            raise PveError(f"guest {guest.vmid}: {path} cannot be written: {error.message}") from None


def _last(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return printable(lines[-1])[:200] if lines else ""
