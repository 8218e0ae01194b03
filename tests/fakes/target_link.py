"""A `Runner` for a node that prepares a target: its ssh leads to a played host (target_host.py), nothing else is real.

The administrator's connection runs the script there; the account's own answers as its authorized_keys say it may.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pve_zfsbackup.host.runner import DEFAULT_TIMEOUT, Completed, failure
from pve_zfsbackup.host.zfs import PARENT
from tests.fakes.pools import no, ok
from tests.fakes.target_host import HOST_KEY, TargetHost

NODE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG5vZGVrZXlub2Rla2V5bm9kZWtleW5vZGVrZXlub2Rla2V5"
NOW = 1_800_000_000
FEATURES = {"large_blocks": "active", "zstd_compress": "enabled", "encryption": "active"}


@dataclass(slots=True)
class TargetLink:
    """`host_key` is what the host's sshd shows now; `features` are of its pool, `own` of this node's."""

    host: TargetHost
    host_key: str = HOST_KEY
    clock: int = NOW
    maintained: int = NOW - 600
    state: str = "ONLINE"
    available: int = 50 << 30
    features: dict[str, str] = field(default_factory=lambda: dict(FEATURES))
    own: dict[str, str] = field(default_factory=lambda: dict(FEATURES))
    own_zfs: str = "2.3.9"
    down: str = ""
    sudo: str = ""  # what it says to the administrator instead of doing anything
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
    ) -> Completed:
        argv = tuple(argv)
        self.ran.append(argv)
        done = {"ssh": self._ssh, "ssh-keygen": self._keygen, "ssh-keyscan": self._keyscan}.get(argv[0], self._here)(
            argv, input
        )
        if check and done.returncode:
            raise failure(done)
        return done

    def pipe(self, *words: Any) -> Any:
        raise AssertionError("nothing is sent")

    def cancel(self) -> None:
        raise AssertionError("nothing is sent")

    # -- this node

    def _here(self, argv: tuple[str, ...], _: bytes | None) -> Completed:
        if argv == ("zfs", "version"):
            return ok(argv, f"zfs-{self.own_zfs}-1\nzfs-kmod-{self.own_zfs}-1\n")
        assert argv == ("zpool", "get", "-Hp", "-o", "property,value", "all"), argv
        return ok(argv, "".join(f"feature@{name}\t{value}\n" for name, value in self.own.items()))

    @staticmethod
    def _keygen(argv: tuple[str, ...], _: bytes | None) -> Completed:
        file = Path(argv[-1])
        if "-t" in argv:
            comment = argv[argv.index("-C") + 1]
            file.write_text("private\n")
            file.with_name(f"{file.name}.pub").write_text(f"{NODE_KEY} {comment}\n")
            return ok(argv)
        option = "-F" if "-F" in argv else "-R"
        name = argv[argv.index(option) + 1]
        lines = file.read_text().splitlines(keepends=True)
        own = [line for line in lines if line.split(" ")[0] == name]
        if option == "-R":
            file.write_text("".join(line for line in lines if line not in own))
            return ok(argv)
        return ok(argv, f"# Host {name} found: line 1\n{''.join(own)}") if own else no(argv, "", status=1)

    def _keyscan(self, argv: tuple[str, ...], _: bytes | None) -> Completed:
        name = argv[-1] if argv[argv.index("-p") + 1] == "22" else f"[{argv[-1]}]:{argv[argv.index('-p') + 1]}"
        if self.down:
            return no(argv, f"# {name}:22\ngetaddrinfo {name}: Name or service not known", status=1)
        return ok(argv, f"# {name}:22 SSH-2.0-OpenSSH_9.2\n{name} {self.host_key}\n")

    # -- the target

    def _ssh(self, argv: tuple[str, ...], input: bytes | None) -> Completed:
        if "-O" in argv:
            return ok(argv)
        if self.down:
            return no(argv, self.down, status=255)
        spot, line = argv[argv.index("--") + 1 :]
        if input is not None:
            assert "BatchMode=yes" not in argv, "an administrator may be asked for a passphrase"
            words = shlex.split(line)
            assert words[:2] == ["sh", "-c"], words
            if self.sudo:
                return no(argv, self.sudo, status=1)
            done = self.host.run(input.decode("ascii"), *words[4:])
            return Completed(argv=argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} <= set(argv)
        return self._account(argv, spot, line)

    def _account(self, argv: tuple[str, ...], spot: str, line: str) -> Completed:
        user, _, name = spot.partition("@")
        known = Path(next(word for word in argv if word.startswith("UserKnownHostsFile=")).partition("=")[2])
        name = name if argv[argv.index("-p") + 1] == "22" else f"[{name}]:{argv[argv.index('-p') + 1]}"
        if not known.exists() or f"{name} {self.host_key}" not in known.read_text().splitlines():
            return no(argv, "Host key verification failed.", status=255)
        keys = self.host.keys(user)
        entries = [entry for entry in keys.read_text().splitlines() if NODE_KEY in entry] if keys.exists() else []
        if not entries or user not in self.host.state["users"]:
            return no(argv, f"{spot}: Permission denied (publickey).", status=255)
        forced = re.match(r'restrict,command="\S+ --root (\S+)"', entries[0])
        if forced and not (self.host.place / "bin/pve-zfsbackup-receiver").exists():
            return no(argv, "sh: 1: /usr/bin/pve-zfsbackup-receiver: not found", status=127)
        return self._command(argv, tuple(shlex.split(line)), forced[1] if forced else "")

    def _command(self, argv: tuple[str, ...], words: tuple[str, ...], root: str) -> Completed:
        state = self.host.state
        if words == ("hello",):
            if not root:
                return no(argv, "sh: 1: hello: not found", status=127)
            allow = self._allow(root)
            told = {
                "receiver": state["receiver"], "protocol": 1, "root": root, "zfs": [], "time": self.clock,
                "maintained": self.maintained, "allow": allow,
            }  # fmt: skip
            return ok(argv, f"{json.dumps(told)}\n")
        if words[0] == "grep":
            return no(argv, "", status=1) if self.state == "SUSPENDED" else ok(argv, f"{self.state}\n")
        if words[:2] == ("zfs", "version"):
            return ok(argv, f"zfs-{state['zfs']}-1\nzfs-kmod-{state['zfs']}-1\n")
        if words[:2] == ("zpool", "get"):
            features = "".join(f"feature@{name}\t{value}\n" for name, value in self.features.items())
            return ok(argv, f"size\t{100 << 30}\n{features}")
        if words[:2] == ("zfs", "list"):
            return self._list(argv, words)
        assert not root, f"the receiver denies {words}"
        if words[:2] == ("zfs", "allow"):
            return ok(argv, "\n".join(self._allow(words[2])))
        assert words == ("date", "+%s"), words
        return ok(argv, f"{self.clock}\n")

    def _list(self, argv: tuple[str, ...], words: tuple[str, ...]) -> Completed:
        dataset = self.host.state["datasets"].get(words[-1])
        if dataset is None:
            return no(argv, f"cannot open '{words[-1]}': dataset does not exist", status=1)
        columns = words[words.index("-o") + 1].split(",")
        values = {**dict.fromkeys(PARENT, "x"), "available": str(self.available), **dataset}
        return ok(argv, "\t".join(values.get(column, "-") for column in columns) + "\n")

    def _allow(self, root: str) -> list[str]:
        lines = []
        for at, who in self.host.state["allow"].items():
            if root == at or root.startswith(f"{at}/"):
                lines.append(f"---- Permissions on {at} ".ljust(70, "-"))
                for reach in ("Local", "Local+Descendent"):
                    lines.append(f"{reach} permissions:")
                    lines += [
                        f"\t{name} {','.join(reaches[reach])}" for name, reaches in who.items() if reaches.get(reach)
                    ]
        return lines
