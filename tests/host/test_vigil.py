"""Who sees when Proxmox takes a disk away."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from pve_zfsbackup.host import vigil
from pve_zfsbackup.host.vigil import Vigil, removals
from pve_zfsbackup.model import Dataset, Disk, Guest, GuestKind, Vmid

DISK = Dataset("rpool/data/vm-100-disk-0")
WEB = Guest(
    vmid=Vmid(100),
    kind=GuestKind.VM,
    node="pve1",
    name="web",
    running=True,
    disks=(Disk(key="scsi0", volid="local-zfs:vm-100-disk-0", storage="local-zfs", dataset=DISK),),
)
CONF = "cores: 1\nscsi0: local-zfs:vm-100-disk-0,size=1G\n"


@dataclasses.dataclass
class Place:
    root: Path
    tasks: Path
    conf: Path

    def task(self, kind: str, id_: str, *, pid: int = 0, start: int | None = None, end: str = "") -> None:
        """A task under way, of this very process where nothing else is said."""
        pid = pid or os.getpid()
        begun = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
        upid = f"UPID:pve1:{pid:08X}:{begun if start is None else start:08X}:6925F0A1:{kind}:{id_}:root@pam!x:"
        with self.tasks.open("a") as file:
            file.write(f"{upid} {'1' if end else '0'}{end}\n")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = tmp_path / "etc-pve"
    (root / "qemu-server").mkdir(parents=True)
    (root / "local").symlink_to("nodes/pve1")
    conf = root / "qemu-server/100.conf"
    conf.write_text(CONF)
    return Place(root, tmp_path / "active", conf)


@pytest.fixture
def watching(place: Place) -> Vigil:
    made = Vigil([WEB], root=place.root, tasks=place.tasks)
    assert not made.gone(DISK)
    return made


def seen(watching: Vigil) -> str:
    watching.look()
    return watching.gone(DISK)


def test_a_guest_that_is_there_is_let_alone(watching: Vigil, place: Place) -> None:
    assert seen(watching) == ""
    place.task("qmdestroy", "101")
    place.task("vzdump", "100")
    place.task("qmdestroy", "100", end=" 6925F0B0 OK")  # an earlier one under the same vmid
    place.conf.write_text(CONF + "name: renamed\n")
    assert seen(watching) == ""


@pytest.mark.parametrize(
    ("kind", "id_"), [("qmdestroy", "100"), ("vzdestroy", "100"), ("imgdel", "100@local-zfs")]
)
def test_a_removal_under_way_is_seen_while_the_configuration_is_still_there(
    watching: Vigil, place: Place, kind: str, id_: str
) -> None:
    """Proxmox frees the disks first, and gives up after six tries."""
    place.task(kind, id_)
    assert f"(task {kind})" in seen(watching)


def test_a_removal_of_something_else_is_not_meant(watching: Vigil, place: Place) -> None:
    place.task("imgdel", "100@fast")
    place.task("imgdel", "1000@local-zfs")
    assert seen(watching) == ""


def test_a_worker_that_is_dead_removes_nothing(watching: Vigil, place: Place) -> None:
    place.task("qmdestroy", "100", pid=4_000_000)
    place.task("qmdestroy", "100", start=7)  # the number has a new owner
    assert seen(watching) == ""


def test_a_configuration_that_is_gone_or_names_another_disk(watching: Vigil, place: Place) -> None:
    place.conf.write_text(CONF.replace("disk-0", "disk-1"))
    assert seen(watching) == "guest 100 does not have local-zfs:vm-100-disk-0 any more"
    other = Vigil([WEB], root=place.root, tasks=place.tasks)
    other.gone(DISK)
    place.conf.unlink()
    assert seen(other) == "guest 100 was removed from this node"


def test_where_nothing_is_known_nothing_is_given_up(watching: Vigil, place: Place) -> None:
    """pmxcfs is gone for a moment: /etc/pve is an ordinary, empty directory then."""
    place.conf.unlink()
    (place.root / "local").unlink()
    place.tasks.write_text("garbage\nUPID:::\n\x00 0\n")
    assert seen(watching) == ""
    assert removals(place.root, place.root) == {}, "a directory is no file"


def test_it_looks_by_itself_and_only_after_what_is_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "LOOK", 0.01)
    monkeypatch.setattr(vigil, "FRESH", 0.05)
    place.conf.unlink()
    with Vigil([WEB], root=place.root, tasks=place.tasks) as made:
        time.sleep(0.1)
        assert not made.gone(DISK), "nobody had asked"
        deadline = time.monotonic() + 30
        while not made.gone(DISK):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not made.gone(Dataset("rpool/other"))
