"""From nothing installed to the first protected guest: `python -m tests.bench.first_use [NAME…]`, in the lab.

Each program is used as its own documents say (`documents`), by one who can log in on backup1 as root already. Counted
are the commands that are typed and the lines that are written into files; measured are the seconds of the commands.
Guest 100 has its disks in two pools; it is protected when a snapshot of each lies on backup1 with the guid it has here.
What makes it go on by itself from then on is counted apart, and not executed.

What is fetched or built counts as a command, but its time does not: the lab has no network, so packages are copied in,
and the peers are in its image (sanoid) or unpacked by the benchmark (PyPI). Installing is measured for ours alone, and
told apart. pve-zsync is not in Debian: its commands are counted, and it is not run. Results go to build/first-use.json.

PZB_LAB_ATTACH: the run of a lab that is up already; what was installed and set up there is so again afterwards.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.bench import setting
from tests.lab import product as installed_product
from tests.lab import setup
from tests.lab.host import Host
from tests.lab.lab import TREE, Lab, borrowed
from tests.lab.machine import LabError
from tests.lab.matrix.__main__ import installed
from tests.lab.product import ROOT, forget_root

RESULT = TREE / "build" / "first-use.json"
PLACE = "/root/first-use"  # where the packages lie below build/deb, as in a clone of the project
DISKS = ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0")
ACCOUNT = "pve-zfsbackup"


class Part(StrEnum):
    INSTALL = "install"
    USE = "use"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class Typed:
    """A command line, as the documents have it but for the names. Where `here` is false it cannot be run in the lab."""

    line: str
    part: Part = Part.USE
    here: bool = True

    @property
    def commands(self) -> int:
        return len(self.line.split(" && "))

    @property
    def lines(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Edited:
    """A file that somebody writes."""

    path: str
    text: str
    part: Part = Part.USE
    here: bool = True

    @property
    def commands(self) -> int:
        return 0

    @property
    def lines(self) -> int:
        return len([line for line in self.text.splitlines() if line.strip()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How one program is used for the first time. `replicas` are the disks' datasets on backup1."""

    name: str
    documents: str
    steps: tuple[Typed | Edited, ...]
    replicas: tuple[str, ...]
    account: str = "root"  # what the node may do on backup1 from then on

    def count(self, *parts: Part) -> tuple[int, int]:
        """Commands typed and lines written."""
        chosen = [step for step in self.steps if step.part in parts]
        return sum(step.commands for step in chosen), sum(step.lines for step in chosen)


_SANOID_CONF = (
    "".join(f"[{disk}]\n\tuse_template = production\n" for disk in DISKS)
    + """\
[template_production]
\tfrequently = 0
\thourly = 36
\tdaily = 30
\tmonthly = 3
\tyearly = 0
\tautosnap = yes
\tautoprune = yes
"""
)
_PAIRS = f"{DISKS[0]} root@backup1:tank/vm-100-disk-0 {DISKS[1]} root@backup1:tank/vm-100-disk-0-fast"
_PLAN = "{'prod':{'onsite':{'hourly':36,'daily':31}}}"
OURS = Way(
    name="pve-zfsbackup",
    documents="README.md of this project: the first screen, and `A target`; one guest is named, as for the others",
    steps=(
        Typed("git clone … && cd pve-zfsbackup && make deb", Part.INSTALL, here=False),
        Typed("apt install ./build/deb/pve-zfsbackup_*.deb", Part.INSTALL),
        Typed(
            "scp build/deb/pve-zfsbackup-receiver_*.deb root@backup1: && "
            "ssh root@backup1 apt install ./pve-zfsbackup-receiver_*.deb",
            Part.INSTALL,
        ),
        Typed("pve-zfsbackup setup"),
        Typed(f"pve-zfsbackup setup target backup1 --host backup1 --root {ROOT} --admin root@backup1"),
        Typed("pve-zfsbackup run -v 100"),
    ),
    replicas=(f"{ROOT}/local-zfs/vm-100-disk-0", f"{ROOT}/fast/vm-100-disk-0"),
    account="may add points, and nothing else",
)
WAYS: tuple[Way, ...] = (
    Way(
        name="sanoid + syncoid",
        documents="jimsalterjrs/sanoid 8e1d11e: README.md (sanoid.conf, `sanoid --cron`, `syncoid … "
        "root@remotehost:…`), INSTALL.md (sanoid.timer); installed from Debian instead of built as INSTALL.md has it",
        steps=(
            Typed("apt install sanoid", Part.INSTALL, here=False),
            Edited("/etc/sanoid/sanoid.conf", _SANOID_CONF),
            Typed("sanoid --cron"),
            Typed(f"syncoid {DISKS[0]} root@backup1:tank/vm-100-disk-0"),
            Typed(f"syncoid {DISKS[1]} root@backup1:tank/vm-100-disk-0-fast"),
            Typed("systemctl enable --now sanoid.timer", Part.SCHEDULE, here=False),
            Edited(
                "/etc/cron.d/syncoid",
                f"7 * * * * root syncoid --quiet {DISKS[0]} root@backup1:tank/vm-100-disk-0\n"
                f"7 * * * * root syncoid --quiet {DISKS[1]} root@backup1:tank/vm-100-disk-0-fast\n",
                Part.SCHEDULE,
                here=False,
            ),
        ),
        replicas=("tank/vm-100-disk-0", "tank/vm-100-disk-0-fast"),
    ),
    Way(
        name="zfs-autobackup",
        documents="psy0rz/zfs_autobackup, wiki `Getting started` (README.md leads there): pipx, because Debian's pip "
        "refuses to install into the system; selecting by property, push by --ssh-target, a line of cron",
        steps=(
            Typed("apt install pipx && pipx install zfs-autobackup", Part.INSTALL, here=False),
            Typed(f"zfs set autobackup:offsite1=true {' '.join(DISKS)}"),
            Typed("zfs-autobackup -v --clear-mountpoint --ssh-target root@backup1 offsite1 tank"),
            Edited(
                "/etc/cron.d/zfs-autobackup",
                "22 * * * * root flock -n /var/backups.lock zfs-autobackup --ssh-target root@backup1 offsite1 tank\n",
                Part.SCHEDULE,
                here=False,
            ),
        ),
        replicas=tuple(f"tank/{disk}" for disk in DISKS),
    ),
    Way(
        name="bzfs",
        documents="whoschek/bzfs 35c4e58: README.md (Installation by git and a link, because Debian's pip refuses to "
        "install into the system; Quickstart: adhoc snapshots, push mode; periodic ones by cron)",
        steps=(
            Typed("git clone https://github.com/whoschek/bzfs.git && cd bzfs/bzfs_main", Part.INSTALL, here=False),
            Typed("sudo ln -sf $(pwd)/bzfs /usr/local/bin/bzfs", Part.INSTALL, here=False),
            Typed(
                f"bzfs {DISKS[0]} dummy {DISKS[1]} dummy --recursive --skip-replication --create-src-snapshots "
                "--create-src-snapshots-plan \"{'test':{'':{'adhoc':1}}}\""
            ),
            Typed(f"bzfs {_PAIRS}"),
            Edited(
                "/etc/cron.d/bzfs",
                f"0 * * * * root bzfs {DISKS[0]} dummy {DISKS[1]} dummy --recursive --skip-replication "
                f'--create-src-snapshots --create-src-snapshots-plan "{_PLAN}"\n'
                f"5 * * * * root bzfs {_PAIRS}\n",
                Part.SCHEDULE,
                here=False,
            ),
        ),
        replicas=("tank/vm-100-disk-0", "tank/vm-100-disk-0-fast"),
    ),
    Way(
        name="pve-zsync",
        documents="proxmox/pve-zsync 235f034: the EXAMPLES of its manual page; `create` sends at once, and writes its "
        "line of cron",
        steps=(
            Typed("apt install pve-zsync", Part.INSTALL, here=False),
            Typed("pve-zsync create --source=100 -dest=10.77.0.2:tank", here=False),
        ),
        replicas=(),
    ),
    OURS,  # the last: the lab is as it was afterwards
)
# Nothing of ours on either host; $1 is the account.
_NOTHING_HERE = r"""
export DEBIAN_FRONTEND=noninteractive
dpkg -P pve-zfsbackup
rm -rf /etc/pve-zfsbackup/config.yaml /etc/pve-zfsbackup/known_hosts /etc/pve-zfsbackup/id_ed25519*
! command -v pve-zfsbackup
"""
_NOTHING_THERE = r"""
export DEBIAN_FRONTEND=noninteractive
! dpkg -s pve-zfsbackup-receiver > /dev/null 2>&1 || dpkg -P pve-zfsbackup-receiver
for i in $(seq 20); do pgrep -u "$1" > /dev/null 2>&1 || break; pkill -u "$1" || :; sleep 0.5; done
userdel "$1" 2> /dev/null || :
rm -rf "/home/$1" /etc/pve-zfsbackup-receiver.toml /root/pve-zfsbackup*.deb
"""
_APT = """
printf 'APT::Install-Recommends "false";\\nAPT::Get::Assume-Yes "true";\\n' > /etc/apt/apt.conf.d/99first-use
"""
# Snapshots, bookmarks and datasets that were not there before, whoever holds them; $1 has the names of those to keep.
_BACK = r"""
keep=$1; shift
zfs list -H -o name -t snapshot,bookmark -r "$@" | grep -vxF -f "$keep" | while read -r name; do
  case $name in
    *@*) zfs holds -H "$name" | cut -f2 | while read -r tag; do zfs release "$tag" "$name"; done ;;
  esac
  zfs destroy "$name"
done
zfs list -H -o name -t filesystem,volume -r "$@" | grep -vxF -f "$keep" | sort -r | while read -r name; do
  for i in $(seq 50); do zfs destroy "$name" 2> /dev/null && break; sleep 0.2; done
done
"""


@dataclass(slots=True, kw_only=True)
class Walked:
    """What a way took: seconds by command line, and whether the guest was protected then."""

    way: Way
    seconds: dict[str, float] = field(default_factory=dict)
    protected: bool | None = None  # not looked at where nothing was run

    def took(self, part: Part) -> float | None:
        """Seconds of a part; None where a step of it was not run here."""
        steps = [step for step in self.way.steps if step.part is part and isinstance(step, Typed)]
        measured = [self.seconds[step.line] for step in steps if step.line in self.seconds]
        return sum(measured) if measured else None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.way.name,
            "documents": self.way.documents,
            "account": self.way.account,
            "protected": self.protected,
            "counts": {part: dict(zip(("commands", "lines"), self.way.count(part), strict=True)) for part in Part},
            "seconds": {part: self.took(part) for part in Part},
            "steps": [
                {
                    "part": step.part,
                    "typed" if isinstance(step, Typed) else "edited": (
                        step.line if isinstance(step, Typed) else step.path
                    ),
                    "lines": step.lines,
                    "seconds": self.seconds.get(step.line) if isinstance(step, Typed) else None,
                }
                for step in self.way.steps
            ],
        }


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when every guest was protected by what was typed."""
    chosen = [way for way in WAYS if not arguments or way.name in arguments]
    with borrowed() as lab:
        product = installed(lab)
        installed_product.forget(product)
        setup.trust(lab.pve1, lab.backup1)
        setting.programs(lab.pve1)
        try:
            walks = [walked(lab, way) for way in chosen]
        finally:
            lab.pve1.script(f"rm -rf {PLACE} /etc/apt/apt.conf.d/99first-use")
            lab.backup1.script("rm -f /etc/apt/apt.conf.d/99first-use /etc/pve-zfsbackup-receiver.toml")
            installed_product.forget(installed(lab))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps([walk.as_json() for walk in walks], indent=1) + "\n")
    print("\n".join(table(walks)))
    return 0 if all(walk.protected is not False for walk in walks) else 1


def walked(lab: Lab, way: Way) -> Walked:
    """One way from its first command to its last, and everything taken back."""
    walk = Walked(way=way)
    if not any(step.here for step in way.steps):
        return walk
    if way is OURS:
        nothing_installed(lab)
    before = {host.name: names(host) for host in (lab.pve1, lab.backup1)}
    lab.pve1.script("mkdir -p /etc/sanoid; rm -rf /etc/sanoid/sanoid.conf /var/cache/sanoid/* /run/sanoid")
    try:
        for step in way.steps:
            if not step.here:
                continue
            if isinstance(step, Edited):
                lab.pve1.write(step.path, step.text)
                continue
            begun = time.monotonic()
            text = f"export DEBIAN_FRONTEND=noninteractive; cd {PLACE} 2> /dev/null || cd /root; {step.line}"
            lab.pve1.run(("sh", "-c", text), timeout=1800)
            walk.seconds[step.line] = time.monotonic() - begun
        walk.protected = protected(guids(lab.pve1, DISKS), guids(lab.backup1, way.replicas))
        if way is OURS:
            listed = json.loads(lab.pve1.run(("pve-zfsbackup", "list", "100", "--json")).stdout)["points"]
            walk.protected &= any(point["complete"] and point["host"] == "backup1" for point in listed)
    finally:
        lab.pve1.script(f"rm -f /etc/sanoid/sanoid.conf; zfs inherit autobackup:offsite1 {' '.join(DISKS)}")
        back(lab.pve1, before["pve1"], "rpool", "fast")
        back(lab.backup1, before["backup1"], "tank")
    return walk


def nothing_installed(lab: Lab) -> None:
    """Our packages lie in their directory, and nothing of ours is anywhere else."""
    lab.pve1.script(_NOTHING_HERE, timeout=600)
    forget_root(lab.backup1, ROOT)
    lab.backup1.script(_NOTHING_THERE, ACCOUNT, timeout=600)
    lab.pve1.script(f"rm -rf {PLACE}; mkdir -p {PLACE}/build/deb")
    for deb in sorted((TREE / "build" / "deb").glob("pve-zfsbackup*.deb")):
        lab.pve1.put(deb, f"{PLACE}/build/deb/{deb.name}")
    for host in (lab.pve1, lab.backup1):
        host.script(_APT)


def names(host: Host) -> list[str]:
    return host.run(("zfs", "list", "-H", "-o", "name", "-t", "all")).lines


def back(host: Host, kept: Sequence[str], *pools: str) -> None:
    """Destroy what came since, and nothing else."""
    host.write("/run/first-use.kept", "".join(f"{name}\n" for name in kept))
    host.script(_BACK, "/run/first-use.kept", *pools, timeout=600)
    if left := set(names(host)) - set(kept):
        raise LabError(f"{host.name}: {', '.join(sorted(left))} cannot be taken back")


def guids(host: Host, datasets: Sequence[str]) -> dict[str, set[str]]:
    """The guids of each dataset's snapshots; none where there is no such dataset."""
    found = {}
    for dataset in datasets:
        listing = ("zfs", "list", "-H", "-d", "1", "-t", "snapshot", "-o", "guid", dataset)
        found[dataset] = set(host.run(listing, check=False).lines)
    return found


def protected(here: Mapping[str, set[str]], there: Mapping[str, set[str]]) -> bool:
    """Whether every disk has a snapshot that its replica has as well."""
    pairs = list(zip(here.values(), there.values(), strict=True))
    return bool(pairs) and all(ours & theirs for ours, theirs in pairs)


def table(walks: Sequence[Walked]) -> Iterator[str]:
    yield "| | install | to the first replica | seconds | to go on by itself | the node on backup1 |"
    yield "|---|---|---|---|---|---|"
    for walk in walks:
        parts = [_counted(*walk.way.count(part)) for part in Part]
        seconds, took = walk.took(Part.USE), walk.took(Part.INSTALL)
        told = "not measured" if seconds is None else f"{seconds:.0f}"
        told += f" (installing: {took:.0f})" if took is not None else ""
        told += "" if walk.protected is not False else " NOT PROTECTED"
        yield f"| {walk.way.name} | {parts[0]} | {parts[1]} | {told} | {parts[2]} | {walk.way.account} |"


def _counted(commands: int, lines: int) -> str:
    told = [f"{commands} command{'s' * (commands != 1)}"] if commands else []
    told += [f"{lines} line{'s' * (lines != 1)}"] if lines else []
    return ", ".join(told) or "nothing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
