"""What a row works with: guests and a replica root of its own, the product, and what must not get lost."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.host import Host
from tests.lab.machine import LabError
from tests.lab.matrix import guests, inject, state
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.state import State
from tests.lab.matrix.table import Outcome, Row, split
from tests.lab.product import ACCOUNT, Product, hashes
from tests.lab.pve.provision import wait_ready
from tests.lab.setup import trust

TARGET = "backup1"
STAGES = ("--stage", "snapshot", "--stage", "replicate")
_CONFIG = """\
targets:
  backup1:
    host: backup1
    root: {root}
    keep: {keep}
    retries: 2
    retry-wait: 2
jobs:
  matrix:
    guests: [{low}-{high}]
    targets: [backup1]
    keep: {keep}
{job}runtime-dir: {run}
state-dir: {state}
journal-dir: {journal}
{more}"""
_CLEAN = r"""
root=$1
zfs list "$root" > /dev/null 2>&1 || exit 0
for i in $(seq 20); do
  zfs list -H -r -t snapshot -o name "$root" | xargs -r zfs holds -H | cut -f 1,2 | while read -r name tag; do
    zfs release "$tag" "$name" || :
  done
  zfs destroy -R "$root" && exit 0
  sleep 0.5
done
exit 1
"""


# The block is found by its content: what the guest wrote is random, and stands on the disk as it is.
_DAMAGE = r"""
cat > /run/matrix/find.py <<'CODE'
import sys
pool, dataset, at = sys.argv[1:4]
with open(f"/dev/zvol/{dataset}", "rb") as disk:
    disk.seek(int(at) << 20)
    block = disk.read(4096)
with open(f"/dev/mapper/{pool}", "r+b", buffering=0) as device:
    position = place = 0
    while not place and (data := device.read(1 << 20)):
        found = data.find(block)
        while found >= 0:
            if (position + found) % 4096 == 0:  # in the intent log it stands anywhere
                place = position + found
            found = data.find(block, found + 1)
        position += len(data)
    if not place:
        sys.exit("the block is not on the device")
    device.seek(place)
    device.write(bytes(4096))
open("/run/matrix/block", "wb").write(block)
print(place // 4096)
CODE
python3 -I /run/matrix/find.py "$@"
sync
"""


def _within(dataset: str, names: set[str]) -> bool:
    return dataset in names or any(dataset.startswith(f"{name}/") for name in names)


class UnexpectedError(Exception):
    """What was seen is not what was expected: the row has failed, and its criteria are looked at all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One run of the product."""

    code: int
    report: dict[str, Any]
    stderr: str
    seconds: float

    @property
    def sent(self) -> int:
        """Bytes that were streamed to the target."""
        return sum(result["bytes"] for result in self.report.get("results", ()))

    @property
    def told(self) -> str:
        """Everything that was said, in one line."""
        results = self.report.get("results", ())
        parts = [f"{r['outcome']}: {r['message']} ({r['hint']})" for r in results if r["stage"] == "replicate"]
        return " | ".join([*parts, *self.report.get("notes", ()), *self.stderr.split("\n")]).strip(" |")

    @property
    def advice(self) -> list[str]:
        """What to do, as far as it failed."""
        return [r["hint"] for r in self.report.get("results", ()) if r["outcome"] == "failed" and r["hint"]]

    @property
    def short(self) -> str:
        failed = [f"{r['message']} ({r['hint']})" for r in self.report.get("results", ()) if r["outcome"] == "failed"]
        return f"exit {self.code}{': ' if failed or self.code else ''}{'; '.join(failed) or self.stderr.strip()}"[:400]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A point that was complete on the target: the guid of each disk's snapshot, and what it holds."""

    point: str
    contents: dict[str, str]  # guid -> hash


@dataclass(slots=True, kw_only=True)
class Running:
    """The product at work in the background on pve1."""

    process: subprocess.Popen[bytes]
    context: Context
    started: float

    def signal(self, name: str) -> None:
        self.context.pve1.script('kill "-$1" "$(cat /run/matrix/product.pid)"', name)

    def end(self, timeout: float = 300) -> Done:
        """Wait for its end. LabError when it takes longer: a run that hangs is a finding of the row."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.signal("KILL")
            self.process.communicate()
            raise UnexpectedError(f"the product did not end within {timeout:.0f} s and was killed") from None
        return self.context.done(self.process.returncode, out.decode(), err.decode(), time.monotonic() - self.started)


@dataclass(slots=True, kw_only=True)
class Context:
    """One row's world. What the lab does by hand it names, so that N6 can tell it from the product's doing."""

    product: Product
    row: Row
    outcome: Outcome
    root: str = ""
    target_pool: str = "tank"
    keep: str = "{}"  # the policy on both sides: everything
    job: tuple[str, ...] = ()  # lines of the row's job beside the usual ones
    more: tuple[str, ...] = ()  # lines of the configuration beside the usual ones
    stages: tuple[str, ...] = STAGES  # of a run that names none
    guests: list[Guest] = field(default_factory=list)
    ledger: dict[str, Published] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # points or dataset guids that a row took away itself
    apart: bool = False  # the row left no common guid on purpose
    by_hand: set[tuple[str, str]] = field(default_factory=set)  # verb (or *), dataset
    outputs: list[str] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    lost_by_advice: set[str] = field(default_factory=set)  # points that go when the advice is followed
    judge: list[Callable[[Done], None]] = field(default_factory=list)  # what must hold for the run after the fault
    key: str = ""  # base64 of the key of encrypted guests
    stack: ExitStack = field(default_factory=ExitStack)

    # -- the world --------------------------------------------------------------------------------------------

    @property
    def pve1(self) -> Host:
        return self.product.pve1

    @property
    def backup1(self) -> Host:
        return self.product.backup1

    @property
    def base_vmid(self) -> int:
        number, letter = split(self.row.number)
        return 3000 + 1000 * (ord(letter) - 96 if letter else 0) + 10 * number

    @property
    def directory(self) -> str:
        return f"/run/pzb-matrix-{self.row.number}"

    @property
    def config(self) -> str:
        return f"/root/matrix-{self.row.number}.yaml"

    def prepare(self, *, pool: str = "tank") -> None:
        """Root, account, configuration. Again with another pool: the row's replicas go there."""
        self.target_pool = pool
        self.root = f"{pool}/matrix/r{self.row.number}"
        self.backup1.script('zfs list "$1" > /dev/null 2>&1 || zfs create -o mountpoint=none "$1"', f"{pool}/matrix")
        self.backup1.script(ACCOUNT, self.pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), self.root)
        self.configure()
        if "since" not in self.before:
            self.before["since"] = self.pve1.run(("date", "+%s")).stdout.strip()
        self.mark_history()

    def configure(self, *, root: str = "") -> None:
        text = _CONFIG.format(
            root=root or self.root, low=self.base_vmid, high=self.base_vmid + 9, run=self.directory,
            state=f"{self.directory}/state", journal=f"{self.directory}/journal", keep=self.keep,
            job="".join(f"    {line}\n" for line in self.job), more="".join(f"{line}\n" for line in self.more),
        )  # fmt: skip
        self.product.configure(text, self.config)

    def guest(self, **options: Any) -> Guest:
        """A new guest of this row (guests.make has the options)."""
        made = guests.make(self.pve1, self.base_vmid + len(self.guests), **options)
        return self.own(made)

    def running(self, **options: Any) -> Guest:
        """A new guest of this row that runs, with an agent (guests.make_running has the options)."""
        return self.own(guests.make_running(self.pve1, self.base_vmid + len(self.guests), **options))

    def own(self, made: Guest) -> Guest:
        self.guests.append(made)
        self.by_hand |= {("create", disk) for disk in made.disks}
        self.patch(*made.disks)
        return made

    def write(self, guest: Guest, mib: int = 8, *, at: int = 8) -> None:
        """The guest writes on every disk."""
        if guest.running:
            guests.write_inside(self.pve1, guest, mib, at=at)
        else:
            for dataset in guest.disks:
                guests.write(self.pve1, dataset, mib, at=at)
        if "contents" in self.before:
            self._look(guest.disks)

    def hand(self, host: Host, *arguments: str) -> None:
        """`zfs …` by the administrator's hand, known as such."""
        verb, *rest = arguments
        names = [text for text in rest if "/" in text and not text.startswith("-") and "=" not in text]
        self.by_hand |= {(verb, re.split("[@#]", name)[0]) for name in names}
        host.run(("zfs", *arguments))
        self.patch(*names)

    # -- the product ------------------------------------------------------------------------------------------

    def watched(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """How the product is started: with a secret in its environment, and its process id told (fork.py)."""
        fork = ("python3", "-IS", f"{inject.LIBRARY}/fork.py")
        return (*fork, *(arguments or ("run", *self.stages)), "--json", "--config", self.config)

    def run(self, *arguments: str, timeout: float = 300) -> Done:
        """`pve-zfsbackup run` of snapshot and replicate, or another command, to its end."""
        started = time.monotonic()
        try:
            done = self.pve1.run(self.watched(arguments), check=False, timeout=timeout)
        except LabError as error:
            raise UnexpectedError(f"the product did not come back within {timeout:.0f} s: {error}") from error
        return self.done(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def done(self, code: int, out: str, err: str, seconds: float) -> Done:
        self.outputs += [out, err]
        try:
            report = json.loads(out) if out.strip() else {}
        except ValueError:
            report = {}
        return Done(code=code, report=report, stderr=err, seconds=seconds)

    def start(self, *arguments: str) -> Running:
        """The same in the background."""
        process = self.pve1.spawn(self.watched(arguments))
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        return Running(process=process, context=self, started=time.monotonic())

    @contextmanager
    def held_at(self, mib: float, *arguments: str) -> Iterator[Running]:
        """The product with its first stream stopped after so many MiB; the row goes on from there."""
        inject.lay(self.pve1, "send", "gate", int(mib * 2**20), once=True)
        running = self.start(*arguments)
        try:
            inject.reached(self.pve1)
            yield running
        finally:
            if running.process.poll() is None and self.pve1.machine.running:
                inject.go(self.pve1)

    def baseline(self, *made: Guest) -> Done:
        """A first run that must be right, so that there is something to lose."""
        done = self.run()
        self.expect(done.code == 0, f"the run before the fault failed: {done.short} {done.told[:300]}")
        self.publish()
        return done

    # -- what must not get lost -------------------------------------------------------------------------------

    def states(self) -> tuple[State, State]:
        """Source and target as they are."""
        columns = ",".join(state.COLUMNS)
        found = []
        for host, pools in ((self.pve1, self.source_pools), (self.backup1, self.target_pools)):
            lines = host.run(("zfs", "list", "-Hp", "-r", "-t", "all", "-o", columns, *pools), timeout=120).lines
            found.append(state.parse(lines))
        return found[0], found[1]

    @property
    def source_pools(self) -> tuple[str, ...]:
        return tuple(sorted({"rpool", "fast"} | {disk.split("/")[0] for guest in self.guests for disk in guest.disks}))

    @property
    def target_pools(self) -> tuple[str, ...]:
        return tuple(sorted({"tank", self.target_pool}))

    def publish(self) -> None:
        """Remember every point that is complete on the target, with what it must hold for ever."""
        source, target = self.states()
        disks = max(len(guest.disks) for guest in self.guests)
        here = {entry.guid: entry.name for entry in source.values() if entry.type == "snapshot"}
        for point, entries in state.points(target, self.root, disks).items():
            if point not in self.ledger and all(entry.guid in here for entry in entries):
                found = hashes(self.pve1, [here[entry.guid] for entry in entries])
                contents = {entry.guid: found[here[entry.guid]] for entry in entries}
                self.ledger[point] = Published(point=point, contents=contents)
        self.before.setdefault("replicas", {e.guid: e.name for e in state.below(target, self.root)})
        if "source" not in self.before:
            self.before |= {"source": source, "target": target, "properties": [], "contents": {}}
            self._look(self.disks)

    def patch(self, *names: str) -> None:
        """The lab changed these datasets itself: how they are now is right. All else must be as it was."""
        if "source" not in self.before:
            return
        mine = {re.split("[@#]", name)[0] for name in names}
        for side, now in zip(("source", "target"), self.states(), strict=True):
            kept = {key: entry for key, entry in self.before[side].items() if not _within(entry.dataset, mine)}
            self.before[side] = kept | {key: entry for key, entry in now.items() if _within(entry.dataset, mine)}
        self._look(tuple(disk for disk in self.disks if disk in mine))

    def _look(self, disks: tuple[str, ...]) -> None:
        """Properties and content of disks as they are now."""
        present = tuple(disk for disk in disks if disk in self.before["source"])
        kept = [line for line in self.before["properties"] if line.split("\t")[0] not in disks]
        self.before["properties"] = sorted(kept + self.properties(present))
        self.before["contents"] |= self.contents(present)

    def contents(self, datasets: tuple[str, ...]) -> dict[str, str]:
        """What the guests would read now, of disks that can be read; of a running one, what its writers leave alone."""
        found: dict[str, str] = {}
        for guest in (guest for guest in self.guests if guest.running and set(guest.disks) & set(datasets)):
            found |= guests.inside(self.pve1, guest)
        left = self.readable(tuple(disk for disk in datasets if disk not in found))
        return {**found, **(guests.contents(self.pve1, left) if left else {})}

    @property
    def disks(self) -> tuple[str, ...]:
        return tuple(disk for guest in self.guests for disk in guest.disks)

    def properties(self, datasets: tuple[str, ...]) -> list[str]:
        if not datasets:
            return []
        command = ("zfs", "get", "-Hp", "-s", "local,received", "-o", "name,property,value", "all")
        return sorted(self.pve1.run((*command, *datasets)).lines)

    def readable(self, datasets: tuple[str, ...]) -> tuple[str, ...]:
        """Those whose key is loaded, or that need none."""
        if not datasets:
            return ()
        lines = self.pve1.run(("zfs", "get", "-H", "-o", "name,value", "keystatus", *datasets)).lines
        return tuple(line.split("\t")[0] for line in lines if line.split("\t")[1] != "unavailable")

    def mark_history(self) -> None:
        for host, pools in ((self.pve1, self.source_pools), (self.backup1, self.target_pools)):
            for pool in pools:
                lines = host.script('zpool history -i "$1" | wc -l', pool).stdout.strip()
                self.before.setdefault("history", {}).setdefault((host.name, pool), int(lines))

    def replica(self, guest: Guest, number: int = 0) -> str:
        return guest.replica(self.root, number)

    def token(self, guest: Guest, number: int = 0) -> str:
        """The replica's resume token; empty when there is none."""
        argv = ("zfs", "get", "-H", "-o", "value", "receive_resume_token", self.replica(guest, number))
        value = self.backup1.run(argv, check=False).stdout.strip()
        return "" if value == "-" else value

    def points(self) -> list[str]:
        """Complete points on the target, oldest first."""
        return list(state.points(self.states()[1], self.root, max(len(guest.disks) for guest in self.guests)))

    def newest(self, guest: Guest, host: Host) -> str:
        """Full name of the newest snapshot of ours of a guest's first disk, here or there."""
        dataset = guest.disk if host is self.pve1 else self.replica(guest)
        index = 0 if host is self.pve1 else 1
        return [entry.name for entry in state.snapshots(self.states()[index], dataset) if "@pzb:" in entry.name][-1]

    def received(self, guest: Guest) -> int:
        """Bytes an interrupted receive has kept so far, by its token; 0 without one."""
        token = self.token(guest)
        if not token:
            return 0
        told = self.pve1.run(("/usr/sbin/zfs", "send", "-nvP", "-t", token), check=False)
        match = re.search(r"bytes = (0x[0-9a-f]+)", told.stdout + told.stderr)
        return int(match[1], 16) if match else 0

    def arrived(self, guest: Guest, mib: int = 1) -> None:
        """Wait until so much of a stream to a replica lies on the target's disk."""
        names = (f"{self.replica(guest)}/%recv", self.replica(guest))

        def enough() -> bool:
            self.backup1.run(("zpool", "sync", self.target_pool))
            for name in names:
                done = self.backup1.run(("zfs", "get", "-Hp", "-o", "value", "written", name), check=False)
                if done.returncode == 0:
                    return int(done.stdout) >= mib << 20
            return False

        inject.poll(f"{mib} MiB in {names[0]}", enough, timeout=60)

    def wait_token(self, guest: Guest) -> None:
        """Wait until the cut receive has ended and left its token."""
        inject.poll("a resume token", lambda: self.token(guest), timeout=60)

    def resumes(self, mib: int) -> None:
        """The run after the fault must send clearly less than all of the increment."""
        self.sends_less_than(mib - 0.5, f"of {mib} MiB, as a resumed stream would")

    def sends_less_than(self, mib: float, why: str) -> None:
        def judge(done: Done) -> None:
            self.expect(done.sent < mib * 2**20, f"the next run sent {done.sent} bytes, not less than {mib} MiB {why}")

        self.judge.append(judge)

    def moving(self, count: int) -> bool:
        """Whether a connection to the target has carried so many bytes."""
        argv = ("ss", "-tinH", "state", "established", "dst", self.backup1.address, "dport", "=", ":22")
        sent = re.findall(r"bytes_sent:(\d+)", self.pve1.run(argv).stdout)
        return any(int(number) >= count for number in sent)

    def crypt_key(self) -> str:
        """Base64 of the key of the storage `crypt`."""
        location = self.pve1.run(("zfs", "get", "-H", "-o", "value", "keylocation", "rpool/crypt")).stdout.strip()
        return self.pve1.run(("base64", "-w0", location.removeprefix("file://"))).stdout

    def pipe(self, here: str, there: str) -> None:
        """A shell pipe from pve1 to root on backup1, as an administrator types it; its status does not count."""
        trust(self.pve1, self.backup1)
        self.pve1.script(f"{here} | ssh -o BatchMode=yes root@backup1 {shlex.quote(there)} || :")

    # -- pools of the row's own -------------------------------------------------------------------------------

    def on_pool(self, name: str, mib: int, *options: str) -> None:
        """The row's replicas go to a pool of its own, on a device that can fail."""
        self.stack.enter_context(inject.pool(self.backup1, name, mib, *options))
        self.prepare(pool=name)

    def source_pool(self, name: str, mib: int) -> None:
        """A pool on pve1 that is a storage of that name."""
        config = self.pve1.read("/etc/pve/storage.cfg")
        self.stack.callback(self.pve1.write, "/etc/pve/storage.cfg", config, mode=0o640)
        self.stack.enter_context(inject.pool(self.pve1, name, mib))
        text = f"zfspool: {name}\n\tpool {name}\n\tcontent images,rootdir\n\tmountpoint /{name}\n\tsparse 1\n\n"
        self.pve1.write("/etc/pve/storage.cfg", config.rstrip("\n") + "\n\n" + text, mode=0o640)

    def damage(self, guest: Guest, pool: str, *, at: int) -> str:
        """Overwrite the block that lies at a MiB of the guest's disk, behind the pool's back; where it was."""
        done = self.pve1.script(_DAMAGE, pool, guest.disk, str(at), timeout=120)
        self._reimport(pool)
        return done.stdout.strip()

    def repair(self, pool: str, place: str) -> None:
        self.pve1.script('dd if=/run/matrix/block of="/dev/mapper/$1" bs=4k seek="$2" conv=notrunc,fsync status=none',
                         pool, place)  # fmt: skip
        self._reimport(pool)
        self.pve1.run(("zpool", "clear", pool))

    def _reimport(self, pool: str) -> None:
        """What was in memory is read from the disk again."""
        self.pve1.script('udevadm settle; zpool export "$1"; zpool import -d /dev/mapper "$1"', pool)
        for guest in self.guests:
            self.pve1.wait_for(("test", "-b", f"/dev/zvol/{guest.disk}"))

    def expect(self, condition: object, text: str) -> None:
        if not condition:
            raise UnexpectedError(text)

    # -- power ------------------------------------------------------------------------------------------------

    def power_cut(self, host: Host) -> None:
        """Pull the plug, and switch on again. The lab's own files are safe on the disk, the pools as they are."""
        host.run(("sync", "-f", "/root"))
        host.power_off()
        self.boot(host)

    def boot(self, host: Host) -> None:
        host.boot()
        inject.prepare(host)
        if host is self.pve1:
            wait_ready(host)
            disks = [disk for guest in self.guests for disk in guest.disks if disk in self.before["source"]]
            for disk in disks:
                host.wait_for(("sh", "-c", '[ -b "/dev/zvol/$1" ] || [ -d "/$1" ]', "sh", disk))

    # -- the end ----------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Leave nothing of the row behind."""
        inject.unlay(self.pve1, self.backup1)
        for guest in self.guests:
            guests.remove(self.pve1, guest.vmid)
        self.backup1.script(_CLEAN, f"tank/matrix/r{self.row.number}")
        self.pve1.run(("rm", "-rf", self.directory, self.config))
        self.stack.close()
