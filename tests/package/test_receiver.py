"""The second package: what is in it, and its life on a host without Proxmox and without the first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.package.conftest import POLICY, PROJECT, depends, install
from tests.package.roots import Root
from tests.package.test_life import listing

NAME = "pve-zfsbackup-receiver"
WRITTEN = '[roots."tank/backups/pve1"]\nkeep-last = 1\n'  # by `setup target`


@pytest.fixture
def target(bare: Root, receiver: Path) -> Root:
    said = install(bare, receiver)
    assert "Traceback" not in said
    return bare


def test_it_is_the_one_file_and_what_belongs_to_it(receiver: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-R", receiver, tmp_path], check=True)
    program = tmp_path / "usr/bin" / NAME
    assert program.read_bytes() == (PROJECT / "pve_zfsbackup/receiver.py").read_bytes()
    assert program.stat().st_mode & 0o7777 == 0o755
    assert not (tmp_path / "usr/lib").exists()
    assert sorted((tmp_path / "DEBIAN/conffiles").read_text().split()) == [f"/etc/cron.d/{NAME}"]
    state = tmp_path / "var/lib" / NAME
    assert (state.stat().st_mode & 0o7777, (state / "spool").stat().st_mode & 0o7777) == (0o711, 0o1733)
    page = tmp_path / f"usr/share/man/man8/{NAME}.8.gz"
    shown = subprocess.run(["man", "--warnings", "-Tutf8", "-Z", "-l", page], capture_output=True, check=True)
    assert shown.stderr == b""


def test_it_needs_python_and_zfs_only(receiver: Path) -> None:
    assert depends(receiver) == ["python3", "zfsutils-linux"]


def test_it_works_on_a_host_without_proxmox(target: Root) -> None:
    assert target.run(NAME, "--version").strip()
    assert "forced command" in target.run(NAME, "--help")
    assert target.run("man", "-w", NAME).strip().endswith(".gz")
    denied = target.attempt("env", "SSH_ORIGINAL_COMMAND=zfs destroy x", NAME, "--root", "tank/x")
    assert denied.returncode == 126
    assert "denied: 'destroy' is not allowed here" in denied.stdout
    checked = target.attempt(NAME, "check")
    assert (checked.returncode, f"{POLICY}: No such file or directory" in checked.stdout) == (3, True)
    target.run("cp", f"/usr/share/doc/{NAME}/examples/{NAME}.toml", POLICY)
    checked = target.attempt(NAME, "check")
    assert (checked.returncode, "names no root" in checked.stdout) == (3, True)


def test_cron_is_silent_before_anything_is_configured(target: Root) -> None:
    (line,) = [line for line in target.run("cat", f"/etc/cron.d/{NAME}").splitlines() if " root " in line]
    target.put("/usr/local/sbin/sleep", "#!/bin/sh\n: >/tmp/slept\n", "0755")
    assert target.shell(line.partition(" root ")[2]) == ""
    assert target.attempt("test", "-e", "/tmp/slept").returncode == 1
    target.run("cp", f"/usr/share/doc/{NAME}/examples/{NAME}.toml", POLICY)
    assert target.shell(line.partition(" root ")[2]) == ""
    target.run("test", "-e", "/tmp/slept")


def test_an_account_without_rights_can_leave_requests_nobody_else_reads(target: Root) -> None:
    spool = f"/var/lib/{NAME}/spool"
    as_nobody = ("setpriv", "--reuid", "nobody", "--clear-groups", "--")
    target.run(*as_nobody, "mkdir", "-m", "700", f"{spool}/65534")
    for command in (("ls", spool), ("rmdir", f"{spool}/65534"), ("ls", f"{spool}/65534")):
        done = target.attempt("setpriv", "--reuid", "daemon", "--clear-groups", "--", *command)
        assert done.returncode != 0, command


def test_purge_leaves_nothing_behind(bare: Root, receiver: Path) -> None:
    before = listing(bare)
    install(bare, receiver)
    bare.put(POLICY, "")
    bare.run(NAME, "maintain")
    bare.run("setpriv", "--reuid", "nobody", "--clear-groups", "--", "mkdir", f"/var/lib/{NAME}/spool/65534")
    bare.put(POLICY, WRITTEN)
    said = bare.run("apt-get", "-qy", "purge", NAME)
    assert "replicas and their holds are left as they are, and so is the account with its keys" in said
    assert listing(bare) == before


def test_an_upgrade_leaves_the_policy_alone_and_asks_nothing(bare: Root, receiver: Path, older_receiver: Path) -> None:
    """Also from a package that shipped it: `setup target` adds to the file, and dpkg would ask about a conffile."""
    before = listing(bare)
    install(bare, older_receiver)
    bare.shell(f"cat >> {POLICY} <<'END'\n{WRITTEN}END")
    policy = bare.run("cat", POLICY)
    assert policy.endswith(WRITTEN)
    install(bare, receiver)
    assert bare.run("dpkg-query", "-W", "-f", "${Version}", NAME) == receiver.name.split("_")[1]
    assert bare.run("cat", POLICY) == policy
    assert bare.shell(f"ls -d {POLICY}*").split() == [POLICY]
    assert bare.attempt(NAME, "check").stdout.startswith("RECEIVER CRITICAL - tank/backups/pve1: ")
    install(bare, receiver, "--reinstall")
    assert bare.run("cat", POLICY) == policy
    bare.run("apt-get", "-qy", "purge", NAME)
    assert listing(bare) == before
