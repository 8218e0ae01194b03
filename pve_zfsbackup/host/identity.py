"""Whose backups these are: one name for a cluster, or for a node that is in none.

The fingerprint of Proxmox's own certificate authority: every node has it from its installation on, the nodes of a
cluster share one, and it changes neither with names nor with addresses. A node that joins a cluster takes over the
cluster's, and with that loses its own roots on targets, until an administrator gives them to the cluster.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import PveError

MACHINE_ID: Final = Path("/etc/machine-id")


def owner_id(pve_root: Path, machine_id: Path = MACHINE_ID) -> str:
    """`pve-` and 16 hex digits. Without Proxmox's certificate authority it is of this machine: `host-…`.

    Raises `PveError` when neither can be read: a target is never used on behalf of nobody.
    """
    for kind, path in (("pve", pve_root / "pve-root-ca.pem"), ("host", machine_id)):
        try:
            content = path.read_bytes().strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise PveError(f"{path}: cannot be read: {error.strerror}", hint="is pve-cluster running?") from None
        if content:
            return f"{kind}-{hashlib.sha256(b'pve-zfsbackup owner ' + content).hexdigest()[:16]}"
    raise PveError(f"neither {pve_root}/pve-root-ca.pem nor {machine_id} exists", hint="is pve-cluster running?")
