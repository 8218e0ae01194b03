"""A storage box for a row: an account on backup1 that gets SFTP in a chroot, keys of the row's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.matrix.context import STAGES, Context, Done
from tests.lab.setup import authorize

NAME = "box1"
ALL = (*STAGES, "--stage", "archive")
_BOX = """\
boxes:
  box1:
    host: backup1
    user: box
    path: {path}
    identity-file: {keys}/id
    known-hosts-file: /root/.ssh/known_hosts
    recipients-file: {keys}/recipients
    catalog-key-file: {keys}/catalog.key
    signing-key-file: {keys}/signing
    signers-file: {keys}/signers
    spool-dir: {keys}/spool
    segment-mib: 1
    connections: 2
    retry-hours: 0.05
    every-hours: 0
    full-percent: 10000
    keep: {keep}
"""
# A program on pve1 that stands before one of the same name and does something to it first.
_BEFORE = "/usr/local/bin"
# Kills the product when it gives sftp a matching command for the n-th time, after all before it and not that one was
# done. Line by line: a connection that is kept for the next batch has no end of its input.
_CUT = """\
#!/usr/bin/python3
import os, re, signal, subprocess, sys, threading
sftp = subprocess.Popen(["/usr/bin/sftp", *sys.argv[1:]], stdin=subprocess.PIPE)

def give():
    for line in sys.stdin.buffer:
        if re.search({what!r}, line.decode().rstrip("\\n")):
            with open("/run/matrix/cuts", "a") as cuts:
                cuts.write("x")
                cuts.flush()
                found = cuts.tell()
            if found == {number}:
                sftp.stdin.close()
                sftp.wait()
                open("/run/matrix/used", "w").close()
                os.kill(int(open("/run/matrix/product.pid").read()), signal.SIGKILL)
                os._exit(1)
        try:
            sftp.stdin.write(line)
            sftp.stdin.flush()
        except BrokenPipeError:  # it ended at a command that failed
            return
    sftp.stdin.close()

giving = threading.Thread(target=give, daemon=True)
giving.start()
status = sftp.wait()
if sftp.stdin.closed:
    giving.join()
os._exit(status if status >= 0 else 255)
"""


@dataclass
class Box:
    """The box of one row. From then on every run of the row archives as well."""

    ctx: Context
    keep: str = "{keep-last: 100}"
    keys: str = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        ctx = self.ctx
        self.keys = f"/root/matrix-{ctx.row.number}-keys"
        self.path = f"uploads/matrix-{ctx.row.number}"
        ctx.stages = ALL
        ctx.stack.callback(ctx.backup1.script, 'rm -rf "$1"', self.place)
        ctx.stack.callback(ctx.pve1.script, 'rm -rf "$1" /usr/local/bin/sftp /usr/local/bin/age', self.keys)
        ctx.pve1.script('rm -rf "$1"; mkdir -m 700 "$1"', self.keys)
        ctx.backup1.script('rm -rf "$1"', self.place)
        self.configure()
        made = ctx.pve1.run(("pve-zfsbackup", "setup", "box", NAME, "--json", "--config", ctx.config), check=False)
        identity = json.loads(made.stdout)["identity"]
        ctx.pve1.write(f"{self.keys}/identity", identity + "\n", mode=0o600)
        ctx.before["secrets"] = [*ctx.before.get("secrets", []), identity]
        authorize(ctx.backup1, ctx.pve1.read(f"{self.keys}/id.pub").strip(), "box")

    def configure(self, **changes: str) -> None:
        """Write the row's configuration anew; `changes` are keys of the box."""
        text = self.ctx.pve1.read(self.ctx.config)
        text = text.split("boxes:\n  box1:")[0].replace("    boxes: [box1]\n", "")
        text = text.replace("    targets: [backup1]\n", "    targets: [backup1]\n    boxes: [box1]\n")
        box = _BOX.format(path=self.path, keys=self.keys, keep=self.keep)
        for key, value in changes.items():
            name = key.replace("_", "-")
            box = re.sub(rf"    {name}: .*\n", "", box) + f"    {name}: {value}\n"
        self.ctx.product.configure(text + box, self.ctx.config)

    @property
    def place(self) -> str:
        return f"/srv/box/{self.path}"

    def archive(self, **options: Any) -> Done:
        return self.ctx.run("archive", **options)

    def said(self, done: Done) -> str:
        """What the archive stage told."""
        return "; ".join(f"{r['outcome']}: {r['message']}" for r in done.report["results"] if r["stage"] == "archive")

    def files(self, pattern: str = "seg-") -> list[str]:
        text = '[ ! -d "$1" ] || find "$1" -type f -name "$2*" | sort'
        return self.ctx.backup1.script(text, self.place, pattern).lines

    def points(self) -> list[dict[str, Any]]:
        done = self.ctx.run("list", "--where", NAME)
        return list(done.report.get("archived", ()))

    def verify(self, level: str = "opened") -> dict[str, Any]:
        identity = ("--identity", f"{self.keys}/identity") if level == "opened" else ()
        return dict(self.ctx.run("verify", "archive", NAME, "--level", level, *identity).report)

    def whole(self, count: int) -> None:
        """So many points are there, and every one opens to what was sent."""
        found = self.verify()
        good = [point for point in found.get("points", ()) if not point["problems"]]
        self.ctx.expect(found.get("good") is True and len(good) == count, f"{len(good)} of {count} are whole: {found}")

    @contextmanager
    def cut(self, what: str, number: int = 1) -> Iterator[None]:
        """The product dies right before sftp gets a command with this in it, for the n-th time."""
        self.ctx.pve1.script("rm -f /run/matrix/cuts /run/matrix/used")
        text = _CUT.format(what=what, number=number)
        with self.before("sftp", text):
            yield

    @contextmanager
    def before(self, program: str, text: str) -> Iterator[None]:
        self.ctx.pve1.write(f"{_BEFORE}/{program}", text, mode=0o755)
        try:
            yield
        finally:
            self.ctx.pve1.run(("rm", "-f", f"{_BEFORE}/{program}"))

    def reached(self) -> bool:
        return self.ctx.pve1.run(("test", "-e", "/run/matrix/used"), check=False).returncode == 0
