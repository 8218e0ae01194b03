"""Recordings of the real Proxmox VE 9.2.11, and the node they were made on, rebuilt in a directory."""

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "recordings"
TOKENS = ("root@pam!t1", "root@pam!t2", "audit@pve!a1", "bk@pve!b1")
VOLATILE = frozenset(("cpu", "mem", "memhost", "disk", "maxdisk", "maxmem", "maxcpu", "cpus", "uptime", "pid", "netin",
                      "netout", "nics", "ssl_fingerprint", "used", "avail", "total", "used_fraction", "ip"))
"""What depends on the machine and the moment, not on how Proxmox answers."""


def secret(token: str) -> str:
    """The secret a token has in the rebuilt node."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, token))


@dataclass(frozen=True)
class Exchange:
    """One recorded HTTPS request and what the real pveproxy answered; `body` is None when there was none."""

    method: str
    path: str
    authorization: str | None
    content_type: str | None
    payload: str | None
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: str | None

    @property
    def json(self) -> Any:
        """The body as JSON, None when it is none."""
        return json.loads(self.body) if self.body and self.body.startswith("{") else None


def https(name: str) -> Exchange:
    """Read one file of recordings/https."""
    raw = (HERE / "https" / f"{name}.txt").read_bytes().decode().replace("\r\n", "\n")
    command, _, rest = raw.partition("\n")
    head, _, tail = rest.partition("\n\n")
    body = tail.rpartition("\n--- wall_s=")[0].strip("\n") or None
    status_line, *lines = head.split("\n")
    _, status, reason = status_line.split(" ", 2)
    form = re.match(r"\$ curl -ski -X (\w+) (?:-H '(.*?)')? ?(/\S*) ?(?:-H Content-Type: (\S+) )?(?:-d (.*))?$",
                    command)
    assert form is not None, command
    authorization = form[2].partition(": ")[2] if form[2] else None
    if authorization:
        token = authorization.removeprefix("PVEAPIToken=").removesuffix("=<secret>")
        value = secret(token) if name != "bad-secret" else "00000000-0000-0000-0000-000000000000"
        authorization = authorization.replace("<secret>", value)
    headers = tuple((key, value) for key, _, value in (line.partition(": ") for line in lines))
    payload = form[5] and form[5].replace(" -d ", "&")
    return Exchange(form[1], form[3], authorization, form[4], payload, int(status), reason, headers, body)


@dataclass(frozen=True)
class CommandLine:
    """One recorded command line with its exit code and output."""

    argv: list[str]
    code: int
    out: str
    err: str


def cli(name: str) -> CommandLine:
    """Read one file of recordings/cli."""
    text = (HERE / "cli" / f"{name}.txt").read_text()
    form = re.fullmatch(r"\$ (.*)\nrc=(\d+)\nwall_s=.*\n--- stdout\n(.*?)\n?--- stderr\n(.*)", text, re.DOTALL)
    assert form is not None, name
    out = form[3] if not form[3] or form[3].endswith("\n") else form[3] + "\n"
    return CommandLine(form[1].split(), int(form[2]), out, form[4])


def plain(value: Any, drop: frozenset[str] = VOLATILE) -> Any:
    """A comparable form: volatile fields, pressure and hash order left out."""
    if isinstance(value, dict):
        return {k: _unordered(k, plain(v, drop)) for k, v in value.items()
                if k not in drop and not k.startswith("pressure")}
    if isinstance(value, list):
        return sorted((plain(item, drop) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _unordered(key: str, value: Any) -> Any:
    return ",".join(sorted(value.split(","))) if key == "content" and isinstance(value, str) else value


def snapshotted(base: str, name: str, snaptime: int) -> str:
    """VM 100's file with a snapshot, as Proxmox wrote it: its sha1 is the digest of the recorded answers."""
    head = base.replace("ostype: l26\n", f"ostype: l26\nparent: {name}\n")
    mark = "vmgenid: "
    return head + f"\n[{name}]\n" + base.replace(mark, f"snaptime: {snaptime}\n{mark}")


ZFS = {
    "rpool/data/vm-100-disk-0": 2**30, "rpool/data/vm-100-disk-7": 2**29, "rpool/data/vm-101-disk-0": 2**20,
    "rpool/data/vm-101-disk-1": 2**22, "rpool/data/vm-101-disk-2": 2**30, "rpool/data/vm-102-cloudinit": 2**22,
    "rpool/data/vm-102-disk-0": 2**30, "rpool/data/vm-102-disk-1": 2**30, "rpool/data/vm-102-disk-2": 2**31,
}
"""Zvols of the recorded node, and further down its subvols, as `zfs list` showed them."""


def zfs_list() -> str:
    """`zfs list -o name,volsize,origin,type,refquota -t volume,filesystem -d1 -Hp rpool/data` of that node."""
    rows = ["rpool/data\t-\t-\tfilesystem\t0"]
    rows += [f"rpool/data/subvol-200-disk-{n}\t-\t-\tfilesystem\t{2**30}" for n in range(3)]
    rows += [f"{name}\t{size}\t-\tvolume\t-" for name, size in ZFS.items()]
    return "".join(row + "\n" for row in rows)


def rebuild(etc: Path) -> None:
    """Put the recorded node's files into an empty /etc/pve: VMs 100, 101, 102 and container 200."""
    source = HERE / "etc"
    (etc / "storage.cfg").write_bytes((source / "storage.cfg").read_bytes())
    users = (source / "user.cfg").read_text().rstrip("\n")
    (etc / "user.cfg").write_text(users + "\nacl:1:/vms/100:bk@pve:PVEVMUser:\n")
    (etc / "priv").mkdir(exist_ok=True)
    (etc / "priv" / "token.cfg").write_text("".join(f"{token} {secret(token)}\n" for token in TOKENS))
    base = (source / "100-plain.conf").read_text()
    (etc / "qemu-server" / "100.conf").write_text(snapshotted(base, "snap1", 1795391634))
    for name in ("101.conf", "102.conf"):
        (etc / "qemu-server" / name).write_bytes((source / name).read_bytes())
    (etc / "lxc" / "200.conf").write_bytes((source / "200.conf").read_bytes())
