"""The lab keeps its own promises; without that no other lab test means anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import setup
from tests.lab.host import CommandError, Host
from tests.lab.lab import TREE, Lab
from tests.lab.machine import LabError


def pools(host: Host) -> set[str]:
    return set(host.run(("zpool", "list", "-H", "-o", "name")).lines)


def test_pools_are_there(pve1: Host, backup1: Host) -> None:
    assert pools(pve1) == {"rpool", "fast"}
    assert pools(backup1) == {"tank"}
    assert pve1.run(("zfs", "list", "-H", "-o", "name", "rpool/data")).lines == ["rpool/data"]


def test_zfs_is_the_real_thing(pve1: Host) -> None:
    userland, module = pve1.run(("zfs", "version")).lines
    assert userland.startswith("zfs-2.")
    assert module.startswith("zfs-kmod-2.")


def test_hosts_reach_each_other_by_name(pve1: Host, backup1: Host) -> None:
    assert "10.77.0.2" in pve1.run(("ping", "-c", "1", "-W", "10", "backup1")).stdout
    assert "10.77.0.1" in backup1.run(("ping", "-c", "1", "-W", "10", "pve1")).stdout
    assert pve1.run(("hostname",)).stdout == "pve1\n"
    assert backup1.run(("hostname",)).stdout == "backup1\n"


def test_arguments_and_input_arrive_unchanged(pve1: Host) -> None:
    hostile = ("a b", "$(id)", "`id`", "'", '"', "*", "ü\n;", "")
    assert pve1.run(("printf", "%s|", *hostile)).stdout == "".join(f"{word}|" for word in hostile)
    assert pve1.run(("sha256sum",), input=bytes(range(256))).stdout.startswith("40aff2e9d2d8922e47afd4648e696749")


def test_a_failing_command_says_what_failed(pve1: Host) -> None:
    with pytest.raises(CommandError, match=r"pve1: zfs list nopool: status 1\n.*nopool.*does not exist"):
        pve1.run(("zfs", "list", "nopool"))
    assert pve1.run(("false",), check=False).returncode == 1


def test_a_command_without_end_is_given_up(pve1: Host) -> None:
    with pytest.raises(LabError, match="no end within 1 s"):
        pve1.run(("sleep", "60"), timeout=1)
    assert pve1.run(("echo", "still here")).stdout == "still here\n"


def test_files_go_both_ways(pve1: Host, tmp_path: Path) -> None:
    pve1.write("/root/lab test/secret", "line\n", mode=0o600)
    assert pve1.run(("stat", "-c", "%a", "/root/lab test/secret")).stdout == "600\n"
    pve1.get("/root/lab test/secret", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "line\n"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"\0\xff")
    pve1.put(tmp_path / "tree", "/root/tree")
    assert pve1.run(("od", "-An", "-tx1", "/root/tree/file")).stdout.split() == ["00", "ff"]


def test_root_of_one_host_logs_in_on_the_other(pve1: Host, backup1: Host) -> None:
    setup.trust(pve1, backup1)
    setup.trust(pve1, backup1)
    for name in ("backup1", "backup1.lab.test", "10.77.0.2"):
        assert pve1.run(("ssh", "-o", "BatchMode=yes", name, "hostname")).stdout == "backup1\n"
    keys = backup1.read("/root/.ssh/authorized_keys").splitlines()
    assert keys.count(setup.public_key(pve1)) == 1


def test_box_takes_files_and_gives_no_shell(pve1: Host, backup1: Host) -> None:
    setup.trust(pve1, backup1, "box")
    pve1.write("/root/parcel", "for the box\n")
    sftp = ("sftp", "-q", "-o", "BatchMode=yes", "-b", "-", "box@backup1")
    listing = pve1.run(sftp, input="put /root/parcel uploads/parcel\nls -1 /\nls -1 uploads\n")
    assert "uploads/parcel" in listing.stdout
    assert backup1.read("/srv/box/uploads/parcel") == "for the box\n"
    assert pve1.run(sftp, input="put /root/parcel /elsewhere\n", check=False).returncode != 0
    assert pve1.run(sftp, input="get /etc/passwd /root/stolen\n", check=False).returncode != 0
    shell = pve1.run(("ssh", "-o", "BatchMode=yes", "box@backup1", "echo a shell"), check=False)
    assert shell.returncode != 0
    assert "a shell" not in shell.stdout


def test_every_executed_program_is_counted(pve1: Host, backup1: Host) -> None:
    setup.trust(pve1, backup1)
    twice = "zfs list -H -o name; ssh -o BatchMode=yes backup1 true; exec zfs get -H -o value used rpool"
    with pve1.executed() as here, backup1.executed() as there:
        pve1.run(("sh", "-c", twice))
    assert here.count("zfs") == 2
    assert here.count("ssh") == 1
    assert [e.arguments for e in here.of("zfs")] == [
        ("zfs", "list", "-H", "-o", "name"),
        ("zfs", "get", "-H", "-o", "value", "used", "rpool"),
    ]
    assert there.count("sshd-session") == 1
    assert there.count("zfs") == 0


def test_many_short_programs_are_all_counted(pve1: Host) -> None:
    with pve1.executed() as record:
        pve1.script("i=0; while [ $i -lt 150 ]; do /bin/true; i=$((i+1)); done")
    assert record.count("true") == 150
    with pve1.executed() as again:
        pass
    assert again.count("true") == 0


@pytest.mark.long
def test_a_host_that_dies_says_its_last_words(backup1: Host) -> None:
    with pytest.raises(LabError, match=r"(?s)the connection broke.*backup1 died by itself, status 0:.*sysrq.*panic"):
        backup1.run(("sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60"))


def test_a_host_that_died_is_on_again(backup1: Host) -> None:
    assert backup1.run(("hostname",)).stdout == "backup1\n"


def test_power_cut_keeps_what_was_synced(lab: Lab, pve1: Host, backup1: Host) -> None:
    backup1.script("zfs create tank/cut; echo kept > /tank/cut/file; zfs snapshot tank/cut@before; zpool sync tank")
    guid = backup1.run(("zfs", "get", "-H", "-o", "value", "guid", "tank/cut@before")).stdout
    backup1.power_off()
    with pytest.raises(LabError, match="switched off"):
        backup1.run(("true",))
    assert pve1.run(("ping", "-c", "1", "-W", "1", "backup1"), check=False).returncode != 0
    backup1.boot()
    assert pools(backup1) == {"tank"}
    assert backup1.run(("zfs", "get", "-H", "-o", "value", "guid", "tank/cut@before")).stdout == guid
    assert backup1.read("/tank/cut/file") == "kept\n"
    assert backup1.run(("mountpoint", "-q", "/srv/box"), check=False).returncode == 0
    pve1.wait_for(("ping", "-c", "1", "-W", "1", "backup1"))
    backup1.run(("zfs", "destroy", "-r", "tank/cut"))


ORPHAN = """
from tests.lab.lab import Lab, Spec
Lab._bring_up = staticmethod(lambda host: None)
with Lab(specs=(Spec(name="tiny", number=9, memory_mib=256, cpus=1),)) as lab:
    print(lab.run, flush=True)
    input()
"""


def processes_of(run: str) -> dict[int, str]:
    """Every process on this machine whose command line mentions a run's directory."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if run in line:
            found[int(entry.parent.name)] = line
    return found


@pytest.fixture
def tiny() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a lab of one small host, and the directory of that run."""
    child = subprocess.Popen(
        (sys.executable, "-c", ORPHAN), cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        run = child.stdout.readline().strip()
        assert any("qemu-system" in line for line in processes_of(run).values())
        yield child, run
        child.kill()


def assert_all_end(run: str) -> None:
    deadline = time.monotonic() + 10
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_lab(tiny: tuple[subprocess.Popen[str], str], ending: signal.Signals) -> None:
    child, run = tiny
    child.send_signal(ending)
    assert child.wait(timeout=30) != 0
    assert_all_end(run)


def test_no_host_outlives_its_guardian(tiny: tuple[subprocess.Popen[str], str]) -> None:
    child, run = tiny
    (guardian,) = (pid for pid, line in processes_of(run).items() if "guardian.py" in line)
    os.kill(guardian, signal.SIGKILL)
    assert_all_end(run)
    assert child.poll() is None


def test_orderly_end_leaves_neither_process_nor_disk() -> None:
    done = subprocess.run(
        (sys.executable, "-c", ORPHAN), cwd=TREE, input="\n", capture_output=True, text=True, timeout=60, check=True
    )
    run = done.stdout.strip()
    assert run
    assert processes_of(run) == {}
    assert not Path(run).exists()
