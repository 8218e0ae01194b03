"""Install, use, remove and purge on a minimal bookworm and a minimal trixie."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.package.conftest import CRON, LOGROTATE, OLD, PROJECT, Prepared, install
from tests.package.roots import Root

SECRET = "01234567-89ab-cdef-0123-456789abcdef"
UNITS = ("pve-zfsbackup.timer", "pve-zfsbackup-prune.timer", "pve-zfsbackup-verify.timer")
WANTS = "/etc/systemd/system/timers.target.wants"
TOKEN = "pve-zfsbackup@pve!backup"

# What dpkg, apt and their triggers keep of any package that ever was there.
BOOKKEEPING = re.compile(
    r"/(var/lib/(dpkg|apt|systemd)|var/cache/(apt|ldconfig|man|debconf)|var/log/(apt|dpkg\.log|alternatives\.log))(/|$)"
    r"|/tmp(/|$)"
)

# Answers as Proxmox does (pve-facts §f), keeps what it was asked, and knows the tokens in /tmp/tokens.
PVESH = """#!/bin/sh
echo "$*" >> /tmp/pvesh.log
case "$*" in
"get /access/users/pve-zfsbackup@pve/token --output-format json") cat /tmp/tokens ;;
delete*/token/*) echo '[]' > /tmp/tokens.new; [ -e /tmp/shared ] || mv /tmp/tokens.new /tmp/tokens ;;
"delete "*) ;;
*) echo "unexpected" >&2; exit 1 ;;
esac
"""


def listing(root: Root) -> set[str]:
    """Every path with type, mode, owner, link target and, for files, size and time of the last change."""
    found = root.shell(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o "
        "-type f -printf '%p %m %u:%g %s %T@\\n' -o -printf '%p %y %m %u:%g %l\\n'"
    )
    return {line for line in found.splitlines() if not BOOKKEEPING.match(line.split(" ", 1)[0])}


def purge(root: Root) -> str:
    return root.run("apt-get", "-qy", "purge", "pve-zfsbackup")


def used(root: Root) -> None:
    """What `setup` and some runs leave on a node."""
    root.put("/etc/pve-zfsbackup/config.yaml", "jobs: {}\n", "0600")
    root.put("/etc/pve-zfsbackup/api.token", f"{TOKEN}={SECRET}\n", "0600")
    for name in ("id_ed25519", "id_ed25519.pub", "known_hosts"):
        root.put(f"/etc/pve-zfsbackup/{name}", "x\n", "0600")
    root.put("/var/log/pve-zfsbackup/journal.jsonl", "{}\n")
    root.put("/var/log/pve-zfsbackup/journal.jsonl.1.gz", "")
    root.put("/var/lib/pve-zfsbackup/frozen/100", "")
    root.put("/run/pve-zfsbackup/lock", "")


def test_installed_package_works(root: Root, prepared: Prepared) -> None:
    """The autopkgtest: version, help, the clear errors without a configuration, silent cron, man page."""
    assert "Traceback" not in prepared.said
    root.put("/tmp/smoke", (PROJECT / "debian/tests/smoke").read_text(), "0755")
    assert root.run("/tmp/smoke").endswith("smoke: ok\n")
    assert "pve-zfsbackup run" in root.shell("man pve-zfsbackup-run | cat")
    assert root.run("dpkg", "--audit") == ""


def test_completion_is_loaded_on_demand_and_offers_the_commands(root: Root) -> None:
    script = """
        . /usr/share/bash-completion/bash_completion
        complete -p pve-zfsbackup 2>/dev/null && { echo "loaded at start-up"; exit 1; }
        _completion_loader pve-zfsbackup 2>/dev/null || true
        complete -p pve-zfsbackup
        COMP_WORDS=(pve-zfsbackup re) COMP_CWORD=1
        _pve_zfsbackup_completion pve-zfsbackup
        printf 'offered:%s\\n' "${COMPREPLY[@]}"
    """
    said = root.run("bash", "-c", script).splitlines()
    assert "complete -o nosort -F _pve_zfsbackup_completion pve-zfsbackup" in said
    assert "offered:replicate" in said
    assert "offered:run" not in said


def test_logrotate_takes_the_file(root: Root) -> None:
    used(root)
    said = root.shell("logrotate --force --state /tmp/state /etc/logrotate.d/pve-zfsbackup; ls /var/log/pve-zfsbackup")
    assert "journal.jsonl.1" in said.splitlines()


def test_remove_keeps_what_the_administrator_has(root: Root) -> None:
    used(root)
    root.run("apt-get", "-qy", "remove", "pve-zfsbackup")
    kept = root.shell("cat /etc/pve-zfsbackup/config.yaml /etc/pve-zfsbackup/api.token; ls /var/log/pve-zfsbackup")
    assert TOKEN in kept
    assert "journal.jsonl" in kept
    line = root.shell("sed -n 's/.* root //p' /etc/cron.d/pve-zfsbackup").splitlines()[0]
    assert root.shell(line) == ""  # cron goes on reading the file, and must not complain


def test_timers_are_there_and_off_and_take_the_lines_place_when_enabled(root: Root) -> None:
    """What `systemctl enable` makes are the links the lines look for."""
    assert root.shell(f"find {WANTS} -name 'pve-*' 2>/dev/null || :") == ""
    root.put("/etc/pve-zfsbackup/config.yaml", "jobs: {}\n", "0600")
    root.shell("dpkg -L pve-zfsbackup | grep '/system/pve-zfsbackup@.service$'")  # what the hourly one starts
    for unit in UNITS:
        root.shell(f"mkdir -p {WANTS}; ln -s $(dpkg -L pve-zfsbackup | grep /{unit}$) {WANTS}/{unit}")
    lines = root.shell("sed -n 's/^[0-9].* root //p' /etc/cron.d/pve-zfsbackup").splitlines()
    assert len(lines) == len(UNITS)
    for line in lines:
        assert root.shell(f"{line} && echo quiet") == "quiet\n"


def test_purge_leaves_nothing(root: Root, bare: Root) -> None:
    used(root)
    for one in (root, bare):
        one.run("mkdir", "-p", WANTS)  # systemd's own, where there is one
    for unit in UNITS:
        root.run("ln", "-s", f"/usr/lib/systemd/system/{unit}", WANTS)
    said = purge(root)
    assert "snapshots and replicas are left as they are" in said
    assert listing(root) == listing(bare)


def test_purge_takes_the_account_back(root: Root) -> None:
    used(root)
    root.put("/usr/bin/pvesh", PVESH, "0755")
    root.put("/tmp/tokens", '[{"tokenid":"backup"}]\n')
    said = purge(root)
    asked = root.shell("cat /tmp/pvesh.log")
    assert asked.splitlines() == [
        "delete /access/users/pve-zfsbackup@pve/token/backup",
        "get /access/users/pve-zfsbackup@pve/token --output-format json",
        "delete /access/users/pve-zfsbackup@pve",
        "delete /access/roles/PVEZFSBackup",
    ]
    assert SECRET not in said + asked


def test_purge_leaves_the_account_while_another_node_has_a_token(root: Root) -> None:
    used(root)
    root.put("/usr/bin/pvesh", PVESH, "0755")
    root.put("/tmp/shared", "")
    root.put("/tmp/tokens", '[{"tokenid":"backup-pve2"}]\n')
    purge(root)
    assert "delete /access/users/pve-zfsbackup@pve\n" not in root.shell("cat /tmp/pvesh.log")


def test_purge_without_a_token_asks_the_api_nothing(root: Root) -> None:
    root.put("/usr/bin/pvesh", PVESH, "0755")
    purge(root)
    root.shell("test ! -e /tmp/pvesh.log")


def test_purge_succeeds_when_the_api_fails_and_keeps_keys_of_others(root: Root) -> None:
    used(root)
    root.put("/usr/bin/pvesh", "#!/bin/sh\necho 'cluster not ready - no quorum?' >&2\nexit 2\n", "0755")
    root.put("/etc/pve-zfsbackup/tank.key", "raw key of an encrypted dataset", "0600")
    root.put("/etc/pve-zfsbackup/archive-signing", "made by `setup box`", "0600")
    said = purge(root)
    assert "kept in /etc/pve-zfsbackup, for what is encrypted with it is lost without: archive-signing tank.key" in said
    assert root.shell("ls -A /etc/pve-zfsbackup") == "archive-signing\ntank.key\n"


# -- upgrade and reinstallation

OWN = "/etc/pve-zfsbackup /var/lib/pve-zfsbackup /var/log/pve-zfsbackup /run/pve-zfsbackup"
KEEP = ("-o", "Dpkg::Options::=--force-confold")


def lived_in(root: Root) -> str:
    """A node in use: configuration, keys, state and journal; hourly work moved by half an hour, and a timer enabled."""
    used(root)
    root.put("/etc/pve-zfsbackup/archive-signing", "a key\n", "0600")
    root.put("/etc/pve-zfsbackup/keys/tank", "x" * 32, "0400")
    root.put("/usr/bin/pvesh", PVESH, "0755")
    root.shell(f"sed -i 's/^7  \\* /37 * /' {CRON}; mkdir -p {WANTS}; ln -s /usr/lib/systemd/system/{UNITS[1]} {WANTS}")
    return owned(root)


def owned(root: Root) -> str:
    """Everything that is the node's own: type, mode and owner of each path, time and content of each file."""
    return root.shell(
        f"find {OWN} -type f -printf '%p %m %u:%g %T@\n' -o -printf '%p %y %m %u:%g %l\n' | sort; "
        f"find {OWN} -type f -exec sha256sum {{}} + | sort -k 2; readlink {WANTS}/{UNITS[1]}"
    )


def version(root: Root) -> tuple[str, str]:
    installed = root.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", "pve-zfsbackup")
    return installed, root.run("pve-zfsbackup", "--version").split()[-1]


def test_an_upgrade_keeps_what_is_the_nodes_own(bare: Root, older: Path, deb: Path) -> None:
    new = deb.name.split("_")[1]
    assert new != OLD
    assert "Traceback" not in install(bare, older)
    assert version(bare) == (f"ii {OLD}", OLD)
    before, edited = lived_in(bare), bare.run("cat", CRON)
    assert ("37 * " in edited, "\n41 3 " in edited) == (True, True)
    said = install(bare, deb, *KEEP)
    assert not re.search(r"Traceback|dpkg: (error|warning)", said), said
    assert version(bare) == (f"ii {new}", new)
    assert owned(bare) == before
    assert bare.run("cat", CRON) == edited
    assert "\n37 3 " in bare.run("cat", f"{CRON}.dpkg-dist"), "what is new lies beside it, and cron reads no such name"
    assert "rotate 3\n" not in bare.run("cat", LOGROTATE), "nobody had changed it"
    assert bare.attempt("test", "-e", "/tmp/pvesh.log").returncode == 1, "an upgrade asks Proxmox nothing"
    assert [line.split()[-1] for line in bare.attempt("dpkg", "-V", "pve-zfsbackup").stdout.splitlines()] == [CRON]
    assert bare.run("dpkg", "--audit") == ""


@pytest.mark.long
@pytest.mark.parametrize("prepared", ["bookworm"], indirect=True)
def test_an_upgrade_of_the_release_keeps_it_all(bare: Root, deb: Path) -> None:
    """Proxmox VE 8 to 9 as far as Debian goes: another Python, libraries and OpenZFS under the same package."""
    install(bare, deb)
    before, edited = lived_in(bare), bare.run("cat", CRON)
    bare.run("sed", "-i", "s/bookworm/trixie/g", "/etc/apt/sources.list")
    bare.run("apt-get", "-q", "update", network=True)
    said = bare.run("apt-get", "-qy", *KEEP, "dist-upgrade", network=True)
    assert "Traceback" not in said
    assert bare.run("cat", "/etc/debian_version").startswith("13")
    assert bare.run("python3", "--version").startswith("Python 3.13")
    assert version(bare)[0] == f"ii {deb.name.split('_')[1]}"
    assert (owned(bare), bare.run("cat", CRON)) == (before, edited)
    assert "cpython-313" in bare.shell("ls /usr/lib/python3/dist-packages/pve_zfsbackup/__pycache__")
    assert bare.run("dpkg", "--audit") == ""
    purge(bare)
    assert bare.attempt("ls", "/usr/lib/python3/dist-packages/pve_zfsbackup").returncode != 0


def test_what_was_removed_comes_back_as_it_was(root: Root, deb: Path) -> None:
    before, edited = lived_in(root), root.run("cat", CRON)
    root.run("apt-get", "-qy", "remove", "pve-zfsbackup")
    install(root, deb)
    assert version(root)[0].startswith("ii ")
    assert (owned(root), root.run("cat", CRON)) == (before, edited)
    assert root.attempt("test", "-e", "/tmp/pvesh.log").returncode == 1, "nor does a removal"


def test_what_was_purged_comes_back_as_new(root: Root, deb: Path) -> None:
    def fresh() -> set[str]:
        return {line for line in listing(root) if "/__pycache__" not in line}

    before = fresh()
    used(root)
    root.shell(f"sed -i 's/^7  /9  /' {CRON}")
    purge(root)
    install(root, deb)
    assert version(root)[0].startswith("ii ")
    assert fresh() == before


MEETING = (  # tests of what meets Python and the libraries and programs of a release, from click to zstd
    "tests/app/test_alerts.py", "tests/app/test_metrics.py", "tests/app/test_run.py", "tests/app/test_setup_target.py",
    "tests/archive/test_restore_script.py", "tests/archive/test_store_conformance.py", "tests/config", "tests/host",
    "tests/receiver", "tests/report",
)  # fmt: skip


def unit_tests(prepared: Prepared, deb: Path, place: Path, wanted: str) -> None:
    """The autopkgtest `unit`: the installed package, Debian's Python, click, requests, proxmoxer and so on."""
    with Root.on(prepared.release, prepared.cached.with_tests, place / "root") as root:
        install(root, deb)
        (source,) = deb.parent.glob("*.tar.xz")
        (root.place / "upper/tmp/src").mkdir()
        subprocess.run(["tar", "-xJf", source, "-C", root.place / "upper/tmp/src", "--strip-components=1"], check=True)
        said = root.shell(f"cd /tmp/src; rm -r pve_zfsbackup; exec debian/tests/unit {wanted}")
    assert re.search(r"^\d+ passed", said.splitlines()[-1]), said


def test_what_meets_the_libraries_of_the_release_works(prepared: Prepared, deb: Path, tmp_path: Path) -> None:
    unit_tests(prepared, deb, tmp_path, f"tests/test_*.py {' '.join(MEETING)}")


@pytest.mark.long
def test_all_unit_tests_pass_with_the_libraries_of_the_release(prepared: Prepared, deb: Path, tmp_path: Path) -> None:
    unit_tests(prepared, deb, tmp_path, "")
