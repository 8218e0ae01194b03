"""A fake Proxmox node: its configuration files, what `pvesh` and `qm` answer from them, its guests' agents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pve_zfsbackup.errors import CommandTimeoutError
from pve_zfsbackup.host.runner import Completed
from tests.fakes.pools import no, ok

REFUSAL = {"error": {"class": "GenericError", "desc": "Command guest-fsfreeze-freeze has been disabled"}}
GRUMBLE = {"error": {"class": "GenericError", "desc": "failed to thaw /: 5 of 12 file systems"}}

NOT_HELD = {
    "error": {"class": "GenericError", "desc": "couldn't hold writes: fsfreeze is limited up to 10 seconds: 0x1"}
}


@dataclass(slots=True)
class GuestState:
    """A guest at run time. `agent`: ok, refuse, dead, hang, vss (Windows, whose freeze was over too
    soon); `lost`: the freeze works, its answer never comes."""

    running: bool = True
    frozen: bool = False
    filesystems: int = 2  # that can be frozen
    agent: str = "ok"
    lost: bool = False
    deaf: int = 0  # so many thaws are not answered
    grumbles: int = 0  # so many thaws are answered by the guest's own error: printed, exit status 0
    thawed_meanwhile: bool = False  # somebody else thaws as soon as a snapshot is taken
    stubborn: bool = False  # does not stop
    crashes: bool = False  # while it boots
    files: dict[str, str] = field(default_factory=dict)  # inside of it
    forgets: bool = False  # what is written there is not kept


@dataclass(slots=True)
class FakeNode:
    """`etc` is what /etc/pve is on a real node."""

    etc: Path
    name: str = "pve1"
    storages: list[dict[str, Any]] = field(default_factory=list)
    guests: dict[int, GuestState] = field(default_factory=dict)
    replications: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    pools: list[tuple[str, str]] = field(default_factory=list)  # guests that were put into one
    members: dict[int, str] = field(default_factory=dict)  # the pools of guests
    rescanned: list[str] = field(default_factory=list)
    cluster: dict[str, str] = field(default_factory=dict)  # the other nodes, with their status
    owned: dict[int, str] = field(default_factory=dict)  # guests of other nodes
    options: dict[int, dict[str, str]] = field(default_factory=dict)  # set by `qm set`
    started: dict[int, str] = field(default_factory=dict)  # configurations by `qm start`
    hidden: set[int] = field(default_factory=set)  # guests that the token may not see
    api: str = "ok"  # or the stderr of a pvesh that fails

    def __post_init__(self) -> None:
        self.etc.mkdir(parents=True, exist_ok=True)
        if not (self.etc / "local").is_symlink():  # what tells that pmxcfs is mounted
            (self.etc / "local").symlink_to(f"nodes/{self.name}")

    def define(self, vmid: int, text: str, *, running: bool = True) -> GuestState:
        """Give the node a guest: `cores` makes a VM's file, `rootfs` a container's."""
        folder = self.etc / ("lxc" if "rootfs:" in text else "qemu-server")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{vmid}.conf").write_text(text)
        self.guests[vmid] = GuestState(running=running)
        return self.guests[vmid]

    def remove(self, vmid: int) -> None:
        self._file(vmid).unlink()
        del self.guests[vmid]

    def lock(self, vmid: int, word: str) -> None:
        """Proxmox's lock in the guest's configuration; an empty word takes it off."""
        path = self._file(vmid)
        kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("lock:")]
        path.write_text("".join([f"lock: {word}\n"] * bool(word) + kept))

    def locked(self, vmid: int) -> str:
        return self._config(vmid).get("lock", "")

    def _state(self, vmid: int) -> GuestState:
        """A guest whose configuration somebody wrote is there, and stopped."""
        return self.guests.setdefault(vmid, GuestState(running=False))

    def _file(self, vmid: int) -> Path:
        return next(self.etc.glob(f"*/{vmid}.conf"))

    def _config(self, vmid: int) -> dict[str, str]:
        pairs = (line.split(": ", 1) for line in self._file(vmid).read_text().splitlines() if ": " in line)
        return dict(pairs)

    def _entries(self, kind: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.etc / ("lxc" if kind == "lxc" else "qemu-server")).glob("*.conf")):
            if int(path.stem) in self.hidden:
                continue
            config = self._config(int(path.stem))
            status = "running" if self._state(int(path.stem)).running else "stopped"
            entry: dict[str, Any] = {"vmid": int(path.stem), "status": status}
            entry.update({"pool": self.members[int(path.stem)]} if int(path.stem) in self.members else {})
            entry["name"] = config.get("name") or config.get("hostname", "")
            entry.update({key: config[key] for key in ("lock", "tags") if key in config})
            if kind == "qemu":
                entry["qmpstatus"] = status
            found.append(entry)
        return found

    def pvesh(self, argv: Sequence[str]) -> Completed:
        if argv[1:3] == ("set", "/pools"):
            self.pools.append((argv[argv.index("--poolid") + 1], argv[argv.index("--vms") + 1]))
            return ok(argv, "")
        if argv[2].endswith(("/agent/file-read", "/agent/file-write")):
            return self._agent_file(argv)
        assert argv[1] == "get", f"a backup never changes Proxmox's configuration: {argv}"
        if self.api == "hang":
            raise CommandTimeoutError("pvesh: no end after 120 s")
        if self.api != "ok":
            return no(argv, self.api, status=2)
        return self._got(argv)

    def _got(self, argv: Sequence[str]) -> Completed:
        parts = argv[2].strip("/").split("/")
        fixed = {"/storage": self.storages, "/cluster/replication": self.replications}
        if len(parts) > 4 and parts[2] in ("qemu", "lxc") and not [*self.etc.glob(f"*/{parts[3]}.conf")]:
            folder = "lxc" if parts[2] == "lxc" else "qemu-server"
            return no(argv, f"Configuration file 'nodes/{self.name}/{folder}/{parts[3]}.conf' does not exist", status=2)
        if argv[2] in fixed:
            answer: Any = fixed[argv[2]]
        elif parts[4:] == ["snapshot"]:
            answer = [*self.snapshots.get(int(parts[3]), []), {"name": "current", "digest": "x", "running": 1}]
        elif argv[2] == "/version":
            answer = {"version": "9.2.11", "release": "9.2", "repoid": "0"}
        elif argv[2] == "/access/permissions":
            answer = {"/vms/101" if self.hidden else "/": {"VM.Audit": 1, "VM.GuestAgent.FileSystemMgmt": 1}}
        elif argv[2] == "/cluster/resources":
            kinds = ("qemu", "lxc")
            answer = [{**entry, "node": self.name, "type": kind} for kind in kinds for entry in self._entries(kind)]
            answer += [{"vmid": vmid, "node": node, "type": "qemu"} for vmid, node in self.owned.items()]
        elif argv[2] == "/nodes":
            nodes = {self.name: "online", **self.cluster}
            answer = [{"node": name, "status": status, "type": "node"} for name, status in nodes.items()]
        elif len(parts) == 3:
            assert parts[1] == self.name
            answer = self._entries(parts[2])
        elif parts[4:] == ["status", "current"]:
            answer = next(entry for entry in self._entries(parts[2]) if entry["vmid"] == int(parts[3]))
        elif parts[4:] == ["pending"]:
            answer = [{"key": key, "value": value} for key, value in self._config(int(parts[3])).items()]
        else:
            assert parts[4:] == ["config"], argv
            digest = hashlib.sha1(self._file(int(parts[3])).read_bytes()).hexdigest()
            answer = {**self._config(int(parts[3])), "digest": digest}
        return ok(argv, json.dumps(answer) + "\n")

    def _agent_file(self, argv: Sequence[str]) -> Completed:
        """PVE/API2/Qemu/Agent.pm, and the texts of qemu-ga's qmp_guest_file_open."""
        guest = self.guests[int(argv[2].split("/")[4])]
        path = argv[argv.index("--file") + 1]
        if guest.agent == "dead":
            return no(argv, "QEMU guest agent is not running", status=255)
        if guest.agent == "refuse":
            return no(argv, "Agent error: Command guest-file-open has been disabled", status=255)
        if argv[1] == "create":
            guest.files[path] = "" if guest.forgets else argv[argv.index("--content") + 1]
            return ok(argv)
        if path not in guest.files:
            told = f"Agent error: failed to open file '{path}' (mode: 'r'): No such file or directory"
            return no(argv, told, status=255)
        text = guest.files[path]
        return ok(argv, json.dumps({"bytes-read": len(text), "content": text}) + "\n")

    def _copied(self, argv: Sequence[str]) -> Completed:
        """`pct pull` and `pct push`: tasks, whose failure is told and is no exit status (PVE/CLI/pct.pm)."""
        guest = self.guests[int(argv[2])]
        if not guest.running:
            return no(argv, "can only pull files from a running VM", status=255)
        if argv[1] == "push":
            guest.files[argv[4]] = "" if guest.forgets else Path(argv[3]).read_text()
            return ok(argv)
        Path(argv[4]).write_text(guest.files.get(argv[3], ""))
        if argv[3] not in guest.files:
            return ok(argv, f"failed to open {argv[3]}: No such file or directory\n", "")
        return ok(argv)

    def lxc(self, argv: Sequence[str]) -> Completed:
        """`lxc-info -s -H`, `lxc-freeze`, `lxc-unfreeze`, each `-n VMID`."""
        if int(argv[2]) not in self.guests:
            return no(argv, f"{argv[2]} doesn't exist")
        guest = self.guests[int(argv[2])]
        if argv[0] == "lxc-info":
            state = "FROZEN" if guest.frozen else "RUNNING"
            return ok(argv, (state if guest.running else "STOPPED") + "\n")
        if guest.agent == "hang":
            raise CommandTimeoutError(f"{argv[0]}: no end after 10 s")
        if not guest.running or guest.agent == "refuse":
            return no(argv, f"{argv[0]}: {argv[2]}: Failed to freeze {argv[2]}")
        guest.frozen = argv[0] == "lxc-freeze"
        return ok(argv)

    def _refused(self, argv: Sequence[str], vmid: int) -> Completed | None:
        return no(argv, f"VM is locked ({lock})", status=255) if (lock := self.locked(vmid)) else None

    def _set(self, vmid: int, argv: Sequence[str]) -> Completed:
        """`unlock VMID`, and `set VMID --OPTION VALUE`, which a locked guest refuses."""
        if argv[1] == "set" and (locked := self._refused(argv, vmid)):
            return locked
        if argv[1] == "unlock" or argv[3] == "--lock":
            self.lock(vmid, argv[4] if argv[1] == "set" else "")
        else:
            self.options.setdefault(vmid, {})[argv[3].removeprefix("--")] = argv[4]
        return ok(argv)

    def tool(self, argv: Sequence[str]) -> Completed:
        """What `qm` and `pct` do to a guest."""
        if argv[0] == "prlimit":  # what it starts is bound by it
            assert tuple(argv[1:3]) == ("--fsize=16777216", "--"), argv
            argv = argv[3:]
        if argv[1] in ("pull", "push"):
            return self._copied(argv)
        if "rescan" in argv:
            self.rescanned += [] if (locked := self._refused(argv, int(argv[-1]))) else [argv[-1]]
            return locked or ok(argv)
        vmid = int(argv[2])
        if not list(self.etc.glob(f"*/{vmid}.conf")):
            return no(argv, f"Configuration file 'nodes/{self.name}/qemu-server/{vmid}.conf' does not exist", status=2)
        guest = self._state(vmid)
        if argv[1] == "status":
            return ok(argv, f"status: {'running' if guest.running else 'stopped'}\n")
        if argv[1] == "config":
            return ok(argv, "".join(f"{key}: {value}\n" for key, value in self._config(vmid).items()))
        if argv[1] in ("set", "unlock"):
            return self._set(vmid, argv)
        if argv[1] == "stop":
            guest.running = guest.running and guest.stubborn
            return ok(argv)
        if argv[1] == "shutdown":
            if guest.agent == "deaf":
                return no(argv, "VM quit/powerdown failed - got timeout", status=255)
            guest.running = False
            return ok(argv)
        assert argv[1] == "start", argv
        if locked := self._refused(argv, vmid):
            return locked
        if "template" in self._config(vmid):
            return no(argv, "you can't start a vm if it's a template", status=255)
        guest.running = True
        self.started[vmid] = self._file(vmid).read_text()
        return ok(argv)

    def qm(self, argv: Sequence[str]) -> Completed:
        assert argv[1:3] == ("guest", "cmd"), argv
        vmid, command = int(argv[3]), argv[4]
        guest = self.guests.get(vmid)
        if guest is None:
            return no(argv, f"Configuration file 'nodes/{self.name}/qemu-server/{vmid}.conf' does not exist", status=2)
        if not guest.running:
            return no(argv, f"VM {vmid} is not running", status=2)
        if guest.agent == "dead":
            return no(argv, "QEMU guest agent is not running", status=255)
        if guest.agent == "hang":
            raise CommandTimeoutError("qm: no end after 15 s")
        if guest.deaf and command == "get-osinfo":  # it is on its way up, or down again
            guest.deaf -= 1
            guest.running = guest.running and not guest.crashes
            return no(argv, "QEMU guest agent is not running", status=255)
        if command == "get-osinfo":
            return ok(argv, json.dumps({"id": "debian", "pretty-name": "Debian \x1b[2J12"}, indent=3) + "\n")
        if command == "fsfreeze-status":
            return ok(argv, "frozen\n" if guest.frozen else "thawed\n")
        if command == "fsfreeze-thaw":
            return self._thawed(argv, guest)
        assert command == "fsfreeze-freeze", argv
        if guest.agent == "refuse":
            return ok(argv, json.dumps(REFUSAL, indent=3) + "\n")
        guest.frozen = guest.filesystems > 0
        if guest.lost:
            raise CommandTimeoutError("qm: no end after 10 s")
        return ok(argv, f"{guest.filesystems}\n")

    @staticmethod
    def _thawed(argv: Sequence[str], guest: GuestState) -> Completed:
        if guest.deaf:
            guest.deaf -= 1
            return no(argv, "QEMU guest agent is not running", status=255)
        if guest.grumbles:
            guest.grumbles -= 1
            return ok(argv, json.dumps(GRUMBLE, indent=3) + "\n")
        if guest.agent == "vss" and guest.frozen:
            guest.frozen = False
            return ok(argv, json.dumps(NOT_HELD) + "\n")
        count, guest.frozen = int(guest.frozen) * guest.filesystems, False
        return ok(argv, f"{count}\n")
