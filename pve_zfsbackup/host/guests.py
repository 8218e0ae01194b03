"""The guests and storages of a node as the API tells them, unjudged, and their configuration files.

One call per guest: `/pending` gives for every key what runs now and what the next start changes, and the
digest among the keys (pve-facts §a).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import logging
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pve_zfsbackup.errors import GuestChangedError, GuestMissingError, PveError, VerificationError
from pve_zfsbackup.host.api import Api
from pve_zfsbackup.model import Guest, GuestKind, RawGuest, Storage, Vmid

_log: Final = logging.getLogger(__name__)
CHUNK: Final = 8000  # a user property's value ends at 8,192 bytes
MAX_CHUNKS: Final = 4
MAX_UNPACKED: Final = 4 << 20  # pmxcfs has no file above 1 MiB
Note = Callable[[str], None]


def node_name(configured: str = "", *, root: Path = Path("/etc/pve")) -> str:
    """The node's name: as configured, else where `/etc/pve/local` points, else the host's short name."""
    if configured:
        return configured
    try:
        return os.readlink(root / "local").rpartition("/")[2]
    except OSError:  # pmxcfs is not mounted, or this is no Proxmox node
        return socket.gethostname().partition(".")[0]


def read_version(api: Api) -> tuple[int, str]:
    """Major version and version of Proxmox VE: `(9, "9.2.11")`."""
    version = str(api.get("/version")["version"])
    return int(version.partition(".")[0]), version


def read_guests(
    api: Api, node: str, *, only: Vmid | None = None, concurrency: int = 8, note: Note = _log.warning,
    doubt: Note = _log.warning,
) -> tuple[RawGuest, ...]:  # fmt: skip
    """Every guest the node owns now, by vmid; `only` reads one. `note` is told of guests that vanished meanwhile
    or cannot be read: those come with their `trouble`, and are nobody else's. `doubt` is told why there may be more.

    Proxmox leaves out of its lists what a token may not see (pve-observed 4). Raises `PveError` when that is all,
    and when the API is gone altogether.
    """
    troubles: list[PveError] = []
    most = max(1, min(concurrency, api.parallel))
    with ThreadPoolExecutor(min(most, 4)) as threads:
        lists = [
            threads.submit(api.get, f"/nodes/{node}/qemu", full=1),  # full: tells a paused VM from a running one
            threads.submit(api.get, f"/nodes/{node}/lxc"),
            threads.submit(api.get, "/cluster/resources", type="vm"),
            threads.submit(api.get, "/access/permissions"),
        ]
        vms, containers, resources, permissions = (future.result() or [] for future in lists)
    _check_permissions(api, dict(permissions), doubt)
    pools = {int(entry["vmid"]): str(entry.get("pool") or "") for entry in resources if entry.get("vmid")}
    entries = [(GuestKind.VM, entry) for entry in vms] + [(GuestKind.CT, entry) for entry in containers]
    entries = [(kind, entry) for kind, entry in entries if only in (None, int(entry["vmid"]))]
    # The connections of the lists are used again; another one costs as much as some ten guests.
    with ThreadPoolExecutor(min(most, max(4, len(entries) // 10))) as threads:
        items = [threads.submit(_pending, api, f"/nodes/{node}/{kind}/{int(entry['vmid'])}") for kind, entry in entries]
        guests = []
        for (kind, entry), item in zip(entries, items, strict=True):
            try:
                guest = _guest(kind, node, entry, item.result(), pools)
            except GuestMissingError:
                note(f"{kind} {int(entry['vmid'])}: left the node while its guests were read")
                continue
            except PveError as error:
                note(f"{kind} {int(entry['vmid'])}: its configuration cannot be read: {error.message}")
                troubles.append(error)
                guest = replace(_guest(kind, node, entry, _listed(entry), pools), trouble=error.message)
            guests.append(guest)
    if len(troubles) > 1 and len(troubles) == len(guests):
        raise troubles[0]  # not the guests' trouble
    return tuple(sorted(guests, key=lambda guest: guest.vmid))


def is_running(api: Api, guest: Guest) -> bool:
    """Whether the guest runs now; a paused one does, a hibernated one does not. Raises `PveError`."""
    state = api.get(f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/status/current")
    return bool(state["status"] != "stopped")


def _listed(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the list of guests tells of a configuration that cannot be read."""
    return [{"key": key, "value": entry[key]} for key in ("tags", "template") if entry.get(key)]


def read_lock(api: Api, guest: Guest) -> str:
    """The lock the guest's configuration has now; empty when it has none. Raises `PveError`."""
    config = api.get(f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/config", current=1)
    return str(config.get("lock") or "")


def read_snapshots(api: Api, guest: Guest) -> tuple[str, ...]:
    """Names of Proxmox's own snapshots of the guest, oldest first. Raises `PveError`."""
    found = api.get(f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/snapshot")
    named = [entry for entry in found if entry.get("name") != "current"]  # what runs, listed among them
    return tuple(str(entry["name"]) for entry in sorted(named, key=lambda entry: int(entry.get("snaptime") or 0)))


def read_replications(api: Api) -> dict[Vmid, tuple[str, ...]]:
    """Where Proxmox's own replication (pvesr) sends guests: nodes by vmid. Raises `PveError`."""
    found: dict[Vmid, list[str]] = {}
    for entry in api.get("/cluster/replication") or []:
        if not int(entry.get("disable") or 0):
            found.setdefault(Vmid(int(entry["guest"])), []).append(str(entry.get("target") or ""))
    return {vmid: tuple(sorted(nodes)) for vmid, nodes in found.items()}


def _check_permissions(api: Api, permissions: Mapping[str, Mapping[str, Any]], doubt: Note) -> None:
    if not permissions:
        raise PveError(
            f"{api.describe()}: has no permissions at all, so no guest can be seen", hint="run pve-zfsbackup setup"
        )
    if not permissions.get("/vms", permissions.get("/", {})).get("VM.Audit"):
        doubt(f"{api.describe()}: lacks VM.Audit on /vms, so there may be guests that it does not see")


def _pending(api: Api, guest: str) -> Sequence[Mapping[str, Any]]:
    keys: list[Mapping[str, Any]] = list(api.get(f"{guest}/pending"))
    if not any(item.get("key") == "digest" for item in keys):
        config = api.get(f"{guest}/config", current=1)
        keys.append({"key": "digest", "value": config.get("digest", "")})
    return keys


def _guest(
    kind: GuestKind,
    node: str,
    entry: Mapping[str, Any],
    keys: Sequence[Mapping[str, Any]],
    pools: Mapping[int, str],
) -> RawGuest:
    vmid = int(entry["vmid"])
    config = {str(item["key"]): str(item["value"]) for item in keys if item.get("value") is not None}
    pending: dict[str, str | None] = {}
    for item in keys:
        if item.get("delete"):
            pending[str(item["key"])] = None
        elif item.get("pending") is not None:
            pending[str(item["key"])] = str(item["pending"])
    digest = config.pop("digest", "")
    return RawGuest(
        vmid=Vmid(vmid),
        kind=kind,
        node=node,
        name=config.get("name") or config.get("hostname") or str(entry.get("name") or ""),
        status=str(entry.get("status") or "unknown"),
        config=config,
        pending=pending,
        tags=split_tags(config.get("tags", "")),
        pool=pools.get(vmid, ""),
        lock=config.get("lock") or str(entry.get("lock") or ""),
        template=config.get("template") == "1",
        qmp_status=str(entry.get("qmpstatus") or ""),
        digest=digest,
    )


def split_tags(text: str) -> tuple[str, ...]:
    """The tags in one of Proxmox's lists of them."""
    return tuple(tag for tag in re.split("[;, ]", text) if tag)


def read_storages(api: Api) -> dict[str, Storage]:
    """The storages by id. `/storage/{id}` needs more privileges than the list (pve-facts §a)."""
    return storages_of(api.get("/storage"))


def storages_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Storage]:
    """The same from an answer somebody else got."""
    return {str(entry["storage"]): _storage(entry) for entry in entries}


def _storage(entry: Mapping[str, Any]) -> Storage:
    return Storage(
        id=str(entry["storage"]),
        type=str(entry["type"]),
        pool=str(entry.get("pool") or "") if entry["type"] == "zfspool" else "",
        nodes=frozenset(_words(entry.get("nodes"))),
        disabled=bool(int(entry.get("disable") or 0)),
        mountpoint=str(entry.get("mountpoint") or ""),
        content=frozenset(_words(entry.get("content"))),
    )


def _words(text: Any) -> list[str]:
    return [word.strip() for word in str(text or "").split(",") if word.strip()]


# The configuration file, and how a point carries it


def read_config_file(vmid: Vmid, kind: GuestKind, *, digest: str = "", root: Path = Path("/etc/pve")) -> dict[str, str]:
    """The guest's configuration and firewall file: `conf` the section that counts now, `firewall` where there is one.

    Snapshot sections and pending changes stay out: a restore strips them anyway (pve-facts §i), and they make the
    largest part. Bytes that are not UTF-8 come as surrogate escapes.
    Raises as `config_bytes`, and `PveError` when the firewall file cannot be read.
    """
    raw = config_bytes(vmid, kind, root, digest)
    texts = {"conf": current_section(raw.decode("utf-8", "surrogateescape"))}
    firewall = root / f"firewall/{vmid}.fw"
    try:
        texts["firewall"] = firewall.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return texts
    except OSError as error:
        raise PveError(f"{firewall}: cannot be read: {error.strerror}", hint="is pve-cluster running?") from None
    return texts


def guest_kind(vmid: Vmid, *, root: Path = Path("/etc/pve")) -> GuestKind:
    """What kind of guest of this node it is. Raises `GuestMissingError` when it is none."""
    for kind, folder in ((GuestKind.VM, "qemu-server"), (GuestKind.CT, "lxc")):
        if (root / f"{folder}/{vmid}.conf").exists():
            return kind
    raise GuestMissingError(f"guest {vmid}: this node has no such guest")


def config_bytes(vmid: Vmid, kind: GuestKind, root: Path, digest: str = "") -> bytes:
    """The guest's configuration file. Raises `GuestMissingError` when it has none, `PveError` when nobody can tell, and
    `GuestChangedError` when it is not the one with this `digest` of Proxmox's."""
    path = root / f"{'qemu-server' if kind is GuestKind.VM else 'lxc'}/{vmid}.conf"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if not os.path.islink(root / "local"):  # an ordinary, empty directory (pve-facts §h)
            raise PveError(f"{root}: is not mounted", hint="is pve-cluster running?") from None
        raise GuestMissingError(f"{path}: does not exist") from None
    except OSError as error:
        raise PveError(f"{path}: cannot be read: {error.strerror}", hint="is pve-cluster running?") from None
    found = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    if digest and found != digest:
        raise GuestChangedError(f"guest {vmid}: its configuration changed since it was read: {found}, before {digest}")
    return raw


def current_section(text: str) -> str:
    """The file up to its first section: no key and no line of the description starts with a bracket (pve-facts §b)."""
    lines = itertools.takewhile(lambda line: not line.startswith("["), text.split("\n"))
    return "\n".join(lines).rstrip("\n") + "\n"


def fitting(texts: Mapping[str, str]) -> dict[str, str]:
    """What of the texts `pack_config` takes: where all is too much, without `firewall`, and `left-out` says so."""
    if "firewall" not in texts or len(_pack(texts)) <= MAX_CHUNKS:
        return dict(texts)
    return {**{key: text for key, text in texts.items() if key != "firewall"}, "left-out": "firewall"}


def pack_config(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Texts as values of ZFS user properties (`conf`, `conf2`, …), each within the limit of 8,192 bytes.

    JSON, deflated, in URL-safe base64. Raises `PveError` when it is too much.
    """
    chunks = _pack(texts)
    if len(chunks) > MAX_CHUNKS:
        raise PveError(f"the guest's configuration is too large for a snapshot's properties: {len(chunks)} of them")
    return chunks


def _pack(texts: Mapping[str, str]) -> tuple[str, ...]:
    text = json.dumps(dict(texts), separators=(",", ":"), sort_keys=True)
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
    return tuple(packed[start : start + CHUNK] for start in range(0, len(packed), CHUNK))


def unpack_config(chunks: Sequence[str]) -> dict[str, str]:
    """The texts of `pack_config`. Raises `VerificationError` when they are not whole: a target is not trusted."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode("".join(chunks), altchars=b"-_", validate=True), MAX_UNPACKED)
        texts = json.loads(data) if inflate.eof else None
    except (ValueError, RecursionError, zlib.error):
        texts = None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise VerificationError("the guest's configuration in the point is damaged")
    return texts
