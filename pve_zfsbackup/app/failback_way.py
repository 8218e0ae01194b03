"""Both ends of a way home: what is here, what is on the source, and whether the guest may go."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pve_zfsbackup.app.failover import list_replicas, root_of
from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import ConfigError, RoleError
from pve_zfsbackup.host.guests import storages_of
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.host.ssh import Destination, Host, connected
from pve_zfsbackup.model import SOURCE, Dataset, Guest, Listing, Vmid
from pve_zfsbackup.model.restore import ASIDE, STAGING
from pve_zfsbackup.plan.failback import PREFIX, Failback, There, plan_failback, tool
from pve_zfsbackup.plan.guest_config import settings
from pve_zfsbackup.plan.takeover import Takeover, takeovers

DEPTH: Final = 2  # <pool of the storage>/<volume>, and its snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Both ends, for one guest. `there` is the session as if the source were this host. `home`: it was given back, and
    the try that did so was cut off while it cleaned up."""

    session: Session
    there: Session
    guest: Guest
    taken: Takeover
    plan: Failback
    replicas: Listing
    home: bool = False


@contextlib.contextmanager
def source_host(session: Session, source: str = "") -> Iterator[Host]:
    """The source, by the ssh key that `failback` has. Raises `ConfigError` without its name."""
    own = session.config.failover
    name = source or own.source
    if not name:
        raise ConfigError(["nobody says whose guest it is"], hint="--source HOST, or failover: {source: HOST}")
    destination = Destination(
        host=name,
        user=own.user,
        port=own.port,
        identity=own.identity_file,
        known_hosts=own.known_hosts_file,
        control=session.config.runtime_dir / f"failback.{os.getpid()}",
        connect_timeout=int(own.timeout),
    )
    with connected(Host(name=name, runner=session.runner, destination=destination)) as host:
        yield host


def prepare(session: Session, host: Host, vmid: Vmid, root: str = "") -> Way:
    """Look at both ends. Raises `RoleError` when the guest is not to go home: not taken over here, or running there."""
    replicas = list_replicas(session, root_of(session, root))
    found = inventory(session)
    guest = next((guest for guest in found.guests if guest.vmid == vmid), None)
    taken = takeovers(replicas).get(vmid)
    home = taken is None
    if home and guest and not guest.running:
        taken = _was_taken(guest, found.listing, session.node)
    if taken is None or taken.host != session.node:
        who = f"{taken.host} took it over" if taken else "nobody took it over"
        raise RoleError(f"guest {vmid}: is not this node's to give back: {who}")
    if guest is None:
        raise RoleError(f"guest {vmid}: was taken over at {taken.since}, and is not here", hint="see `failover`")
    there = replace(session, hosts={SOURCE: host})
    state = _there(host, guest, may_run=home)
    return Way(
        session=session,
        there=there,
        guest=guest,
        taken=taken,
        plan=plan_failback(guest, taken, found.listing, replicas, state, _config(session.hosts[SOURCE], guest)),
        replicas=replicas,
        home=home,
    )


def _was_taken(guest: Guest, listing: Listing, node: str) -> Takeover | None:
    """What the mark said that is gone: from the disks, as long as they have snapshots that a failback made."""
    for disk in guest.disks:
        volume = listing.volumes.get(disk.dataset) if disk.dataset else None
        if volume and volume.restored and any(snapshot.name.startswith(PREFIX) for snapshot in volume.snapshots):
            point = volume.restored.partition(",")[0]
            return Takeover(vmid=guest.vmid, since="", host=node, point=point, reason="")
    return None


def look_there(host: Host, guest: Guest, *, may_run: bool = False) -> bool:
    """Whether the guest runs on the source. Raises `RoleError` when it is not there, or runs and may not."""
    told = host.run((tool(guest), "status", str(guest.vmid)), check=False)
    if told.returncode:
        raise RoleError(
            f"guest {guest.vmid}: {host.name} does not have it (any more): {told.stderr.strip()}",
            hint="make a point of it here, replicate it, and `restore` it there",
        )
    runs = told.stdout.strip() != "status: stopped"
    if runs and not may_run:
        raise RoleError(
            f"guest {guest.vmid}: runs on {host.name} as well ({told.stdout.strip()})",
            hint="stop it there, and think about which of the two was used: what is written there is put aside; "
            "then run this again, and it goes on",
        )
    return runs


def _there(host: Host, guest: Guest, *, may_run: bool) -> There:
    look_there(host, guest, may_run=may_run)
    storages = storages_of(_told(host, "/storage"))
    pools = sorted({Dataset(storage.pool) for storage in storages.values() if storage.pool})
    listing = list_host(host, pools, depth=DEPTH, columns=SOURCE_COLUMNS)
    work = list_host(
        host, [Dataset(f"{pool}/{name}") for pool in pools for name in (STAGING, ASIDE)], columns=SOURCE_COLUMNS
    )
    everything, config = replace(listing, volumes={**listing.volumes, **work.volumes}), _config(host, guest)
    return There(
        host=host.name,
        config=config,
        storages=storages,
        listing=everything,
        snapshots=_snapshots(host, guest),
        lock="" if may_run else config.get("lock", ""),  # at home again it is locked for itself
    )


def _snapshots(host: Host, guest: Guest) -> tuple[str, ...]:
    """Names of Proxmox's own snapshots of the guest there."""
    everyone = _told(host, "/cluster/resources", "--type", "vm")
    nodes = (str(entry["node"]) for entry in everyone if int(entry.get("vmid") or 0) == guest.vmid)
    node = next(nodes, "localhost")  # what pvesh takes for the node it runs on
    told = _told(host, f"/nodes/{node}/{guest.kind}/{guest.vmid}/snapshot")
    return tuple(str(entry["name"]) for entry in told if entry["name"] != "current")


def _told(host: Host, path: str, *options: str) -> list[Mapping[str, Any]]:
    """What the API of a host's Proxmox answers."""
    done = host.run(("pvesh", "get", path, *options, "--output-format", "json"))
    told: list[Mapping[str, Any]] = json.loads(done.stdout)
    return told


def _config(host: Host, guest: Guest) -> dict[str, str]:
    """The guest's configuration as a host's Proxmox tells it, what waits for the next start included."""
    return settings(host.run((tool(guest), "config", str(guest.vmid))).stdout)
