"""The package's cron jobs: silent before anything is configured and after the removal, and never after that."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CRON = Path(__file__).parent.parent / "debian/pve-zfsbackup.cron.d"
pytestmark = pytest.mark.processes


def jobs(place: Path) -> list[str]:
    """The commands, with every path below `place` and our program replaced by one that says that it ran."""
    lines = [line for line in CRON.read_text().splitlines() if " root " in line and not line.startswith("#")]
    commands = [line.partition(" root ")[2] for line in lines]
    moved = [re.sub(r"(?<= )(/(?:usr/bin|etc|var)/[\w./-]+)", rf"{place}\1", command) for command in commands]
    return [re.sub(r" pve-zfsbackup (run|verify)", " echo ran", command) for command in moved]


def ran(place: Path) -> list[bool]:
    """Which of them would run, after a sleep that is told instead of slept."""
    outputs = [
        subprocess.check_output(["/bin/sh", "-c", f'sleep() {{ echo "slept $1"; }}; {command}'], text=True)
        for command in jobs(place)
    ]
    for text in outputs:
        assert text == "" or 0 <= int(re.fullmatch(r"slept (\d+)\n(?:ran .*\n)+", text)[1]) <= 240  # type: ignore[index]
    return ["ran" in text for text in outputs]


def have(place: Path, *paths: str) -> None:
    for path in paths:
        file = place / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.chmod(0o755)


PROGRAM = "/usr/bin/pve-zfsbackup"


@pytest.mark.parametrize("config", ["/etc/pve-zfsbackup/config.yaml", "/etc/pve/pve-zfsbackup.yaml"])
def test_a_configuration_of_the_node_or_the_cluster_is_enough(tmp_path: Path, config: str) -> None:
    have(tmp_path, PROGRAM, config)
    assert ran(tmp_path) == [True, True, True]


def test_before_anything_is_configured_nothing_is_said(tmp_path: Path) -> None:
    have(tmp_path, PROGRAM)
    assert ran(tmp_path) == [False, False, False]


def test_without_the_package_nothing_is_said(tmp_path: Path) -> None:
    have(tmp_path, "/etc/pve-zfsbackup/config.yaml", "/var/log/pve-zfsbackup/journal.jsonl")
    assert ran(tmp_path) == [False, False, False]


def test_a_clusters_configuration_that_is_gone_is_no_silence(tmp_path: Path) -> None:
    """pmxcfs is not mounted: /etc/pve is an ordinary, empty directory then."""
    have(tmp_path, PROGRAM, "/var/log/pve-zfsbackup/journal.jsonl")
    (tmp_path / "etc/pve").mkdir(parents=True)
    assert ran(tmp_path) == [True, True, True]


DAYS = {"0": "Sun"}
WANTS = "/etc/systemd/system/timers.target.wants"


def test_a_line_gives_way_to_its_timer_and_to_no_other(tmp_path: Path) -> None:
    """Nothing runs twice, and nothing stops running because only one of the timers is enabled."""
    have(tmp_path, PROGRAM, "/etc/pve-zfsbackup/config.yaml", f"{WANTS}/pve-zfsbackup.timer")
    assert ran(tmp_path) == [False, True, True]
    have(tmp_path, f"{WANTS}/pve-zfsbackup-prune.timer")
    assert ran(tmp_path) == [False, False, True]
    have(tmp_path, f"{WANTS}/pve-zfsbackup-verify.timer")
    assert ran(tmp_path) == [False, False, False]


def test_a_timer_that_was_purged_with_its_link_left_behind_holds_nothing_back(tmp_path: Path) -> None:
    have(tmp_path, PROGRAM, "/etc/pve-zfsbackup/config.yaml")
    (tmp_path / WANTS.lstrip("/")).mkdir(parents=True)
    (tmp_path / WANTS.lstrip("/") / "pve-zfsbackup.timer").symlink_to(tmp_path / "usr/lib/gone.timer")
    assert ran(tmp_path) == [True, True, True]


VERIFY = "pve-zfsbackup.pve-zfsbackup-verify"


def started(service: str) -> str:
    """What systemd starts, as a shell would be told."""
    (command,) = re.findall(r"(?m)^ExecStart=(.*)$", service)
    if inner := re.fullmatch("/bin/sh -c '([^']*)'", command):
        for sign in "$%":  # systemd puts its own there (systemd.service, COMMAND LINES)
            assert sign not in inner[1].replace(sign * 2, "")
        return inner[1].replace("$$", "$").replace("%%", "%")
    return command.removeprefix("/usr/bin/")


RUN = (CRON.parent / "pve-zfsbackup@.service").read_text()


def test_a_run_of_the_timer_is_a_unit_of_its_own_beside_those_that_are_under_way(tmp_path: Path) -> None:
    """While a unit is active its timer starts nothing: no point would be made for as long as a replication takes."""
    for name, answer in (("systemctl", 'echo "$*"'), ("date", "echo $1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    command = started((CRON.parent / "pve-zfsbackup.service").read_text())
    said = subprocess.check_output(["dash", "-c", command], env={"PATH": f"{tmp_path}:/bin"}, text=True)
    assert said == "--no-block start pve-zfsbackup@+%H%M.service\n"
    assert not re.search("(?m)^Condition", RUN), "the unit that starts it has them"


@pytest.mark.parametrize(
    "name", ["pve-zfsbackup", "pve-zfsbackup.pve-zfsbackup-prune", VERIFY, "pve-zfsbackup-receiver"]
)
def test_the_timer_does_what_the_line_does(name: str) -> None:
    """The same commands at the same minute, spread as far."""
    debian = CRON.parent
    timer, service = ((debian / f"{name}.{kind}").read_text() for kind in ("timer", "service"))
    cron = (debian / f"{name.partition('.')[0]}.cron.d").read_text()
    proofs = "; ".join(f"pve-zfsbackup verify {what}" for what in ("pools", "points", "drill"))
    command = proofs if name == VERIFY else started(RUN if name == "pve-zfsbackup" else service)
    (line,) = [line for line in cron.splitlines() if f"; {command}; }}" in line]
    minute, hour, _, _, day = line.split()[:5]
    wanted = f"*:{minute:0>2}" if hour == "*" else f"*-*-* {hour:0>2}:{minute:0>2}"
    wanted = wanted if day == "*" else f"{DAYS[day]} {wanted}"
    assert re.findall(r"(?m)^OnCalendar=(.*)$", timer) == [wanted]
    assert "RandomizedDelaySec=4min" in timer
    assert "shuf -i 0-240" in line
    conditions = re.findall(r"(?m)^ConditionPathExists=\|?(.*)$", service)
    assert sorted(conditions) == sorted(re.findall(r"\[ ! -e (\S+) \]", line))
    unit = name.rpartition(".")[2]
    assert f"{WANTS}/{unit}.timer" in line


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("pools", 2), ("points", 2), ("drill", 2)])
def test_the_proofs_of_the_timer_are_those_of_the_line_and_one_that_fails_stops_no_other(
    tmp_path: Path, failing: str, code: int
) -> None:
    program = tmp_path / "pve-zfsbackup"
    program.write_text(f'#!/bin/sh\necho "$*"\n[ "$2" != "{failing}" ] || exit 2\n')
    program.chmod(0o755)
    command = started((CRON.parent / f"{VERIFY}.service").read_text())
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(["dash", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines() == ["verify pools", "verify points", "verify drill"]


@pytest.mark.parametrize("file", ["pve-zfsbackup.cron.d", "pve-zfsbackup-receiver.cron.d"])
def test_lines_are_ones_cron_and_a_plain_shell_take(file: str) -> None:
    for line in (CRON.parent / file).read_text().splitlines():
        if " root " in line and not line.startswith("#"):
            command = line.partition(" root ")[2]
            assert len(command) < 998, "Debian's cron takes no longer command (MAX_COMMAND)"
            assert "%" not in command, "cron makes a new line of it"
            subprocess.run(["dash", "-n", "-c", command], check=True)
