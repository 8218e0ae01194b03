"""A host that becomes a target: real sh, grep, awk and files in a directory; `zfs`, accounts and sshd are played.

What is played is one small program under many names, which keeps its state in a JSON file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = (
    "awk", "cat", "chmod", "cut", "dirname", "find", "grep", "head", "install", "mktemp", "mv", "sed", "sh", "sync",
    "tr", "wc",
)  # fmt: skip
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhvc3RrZXlob3N0a2V5aG9zdGtleWhvc3RrZXlob3M="
PROGRAM = r"""#!{python} -IS
import json, os, sys
place = {place!r}
path = place + "/state.json"
state = json.load(open(path))
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
DEFAULTS = dict(readonly="off", mountpoint="/x", canmount="on", volmode="default", snapdir="hidden", mounted="no")

def changed():
    state["changes"].append(" ".join([name, *args]))
    json.dump(state, open(path, "w"))

def end(text="", status=0, err=""):
    sys.stdout.write(text)
    sys.stderr.write(err)
    sys.exit(status)

def value(dataset, key):
    at = dataset
    while at:
        props = state["datasets"].get(at, {{}})
        if key in props:
            return props[key], "local" if at == dataset else "inherited from " + at
        if key == "canmount" or key == "mounted":
            break
        at = at.rpartition("/")[0]
    return (DEFAULTS[key], "default") if key in DEFAULTS else ("-", "-")

def zfs():
    verb, words = args[0], args[1:]
    if state.get("broken") == verb:
        end(status=1, err="cannot: " + verb + " is broken\n")
    if verb == "version":
        end("zfs-%s-1\nzfs-kmod-%s-1\n" % (state["zfs"], state["zfs"]))
    target = words[-1]
    if verb not in ("create",) and target not in state["datasets"]:
        end(status=1, err="cannot open '%s': dataset does not exist\n" % target)
    if verb == "list":
        below = [n for n in state["datasets"] if n.startswith(target + "/")] if "-r" in words else []
        end("".join(n + "\n" for n in [target, *below]))
    if verb == "get":
        keys = words[-3].split(",")
        columns = words[words.index("-o") + 1].split(",")
        for key in keys:
            row = dict(zip(("value", "source"), value(target, key)), property=key)
            print("\t".join(row[column] for column in columns))
        end()
    if verb == "create":
        state["datasets"][target] = dict(words[i + 1].split("=", 1) for i, w in enumerate(words) if w == "-o")
    if verb == "set":
        state["datasets"][target].update(pair.split("=", 1) for pair in words[:-1])
    if verb == "allow" and len(words) == 1:
        at = target
        while at:
            if at in state["allow"]:
                print(("---- Permissions on %s " % at).ljust(70, "-"))
                for reach in ("Local", "Local+Descendent"):
                    found = {{w: p[reach] for w, p in state["allow"][at].items() if p.get(reach)}}
                    if found:
                        print(reach + " permissions:")
                    for who, names in found.items():
                        print("\t" + who + " " + ",".join(sorted(names)))
            at = at.rpartition("/")[0]
        end()
    if verb in ("allow", "unallow"):
        user, names = "user " + words[1], set(words[2].split(","))
        if "receive:append" in names and state["zfs"] < "2.3.2":
            end(status=1, err="invalid permission 'receive:append'\n")
        reaches = state["allow"].setdefault(target, {{}}).setdefault(user, {{}})
        for reach in ("Local", "Local+Descendent") if verb == "unallow" else ("Local+Descendent",):
            had = set(reaches.get(reach, ()))
            reaches[reach] = sorted(had | names if verb == "allow" else had - names)
    changed()

if name == "zfs":
    zfs()
elif name == "zpool":
    end(status=0 if args[-1] in state["datasets"] else 1)
elif name == "id":
    end("%d\n" % state["uid"])
elif name == "getent":
    user = state["users"].get(args[1])
    if user is None:
        end(status=2)
    if args[0] == "shadow":
        end("%s:%s:1::::::\n" % (args[1], user["password"]))
    end("%s:x:%d:100::%s:%s\n" % (args[1], user["uid"], user["home"], user["shell"]))
elif name == "useradd":
    told = {{a: b for a, b in zip(args, args[1:])}}
    state["users"][args[-1]] = dict(
        uid=990, home=told["--home-dir"], shell=told["--shell"], password=told["--password"])
    changed()
elif name == "usermod":
    state["users"][args[-1]][args[0].lstrip("-")] = args[1]
    changed()
elif name == "sshd":
    keys = "authorizedkeysfile " + state["keysfile"] if "-C" in args else "hostkey " + place + "/host_key"
    end(keys + "\n")
else:
    end(state["receiver"] + "\n")
"""


@dataclass(frozen=True, slots=True)
class TargetHost:
    """The host in `place`. A pool `tank` is there, and everything that is needed; no account, no root."""

    place: Path

    def build(self) -> TargetHost:
        for name in ("bin", "tools", "home", "etc", "kstat/tank"):
            (self.place / name).mkdir(parents=True)
        (self.place / "kstat/tank/state").write_text("ONLINE\n")
        (self.place / "host_key.pub").write_text(f"{HOST_KEY} root@backup1\n")
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.place / "tools" / tool).symlink_to(found)
        python = os.path.realpath(sys.executable)
        (self.place / "tools/python3").symlink_to(python)
        program = self.place / "bin/played"
        program.write_text(PROGRAM.format(python=python, place=str(self.place)))
        program.chmod(0o755)
        for name in ("zfs", "zpool", "id", "getent", "useradd", "usermod", "sshd", "pve-zfsbackup-receiver"):
            (self.place / "bin" / name).symlink_to("played")
        self.state_file.write_text(
            json.dumps(
                {
                    "datasets": {"tank": {}}, "allow": {}, "users": {}, "zfs": "2.3.9", "receiver": "0.1.0",
                    "uid": 0, "keysfile": ".ssh/authorized_keys", "changes": [],
                }
            )
        )  # fmt: skip
        return self

    @property
    def state_file(self) -> Path:
        return self.place / "state.json"

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state_file.read_text())
        return found

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        state = self.state
        change(state)
        self.state_file.write_text(json.dumps(state))

    @property
    def changes(self) -> list[str]:
        changes: list[str] = self.state["changes"]
        return changes

    @property
    def config(self) -> Path:
        return self.place / "etc/receiver.toml"

    def home(self, user: str = "pve-zfsbackup") -> Path:
        return self.place / "home" / user

    def keys(self, user: str = "pve-zfsbackup") -> Path:
        return self.home(user) / ".ssh/authorized_keys"

    def account(self, user: str = "pve-zfsbackup", **fields: Any) -> None:
        """An account that is there already, with a home of root's."""
        entry = {"uid": 1001, "home": str(self.home(user)), "shell": "/bin/sh", "password": "*", **fields}
        self.edit(lambda state: state["users"].update({user: entry}))
        self.keys(user).parent.mkdir(parents=True)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The script as root would run it, with the directories of this host in the place of the system's."""
        for old, new in (
            ("/etc/pve-zfsbackup-receiver.toml", str(self.config)),
            ("/var/lib/pve-zfsbackup-receiver", f"{self.place}/state"),
            ("HOMES=/home", f"HOMES={self.place}/home"),
            ("/proc/spl/kstat/zfs", f"{self.place}/kstat"),
            ("-user 0", f"-user {os.geteuid()}"),
        ):
            assert old in script, old
            script = script.replace(old, new)
        path = next(line for line in script.splitlines() if line.startswith("PATH="))
        script = script.replace(path, f"PATH={self.place}/bin:{self.place}/tools")
        return subprocess.run(
            ("/bin/sh", "-s", "--", *arguments), input=script, capture_output=True, text=True, check=False, env={}
        )
