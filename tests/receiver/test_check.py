"""`check`: one line that is true, the right status, and no hanging."""

from __future__ import annotations

import re
import stat
import time
from pathlib import Path

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.receiver import Memory, main
from tests.receiver.conftest import ROOT, Target
from tests.receiver.world import DAY, HOUR, World

PERFDATA = re.compile(r"'[^']+'=-?[0-9]+s?(;[0-9]+;[0-9]+;0)?")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(receiver, "ask", made.ask)
    monkeypatch.setattr(time, "time", lambda: float(made.now))
    receiver.remember(made.site, Memory({}, float(made.now)))
    return made


def check(
    world: World, capfd: pytest.CaptureFixture[str], text: str = "", roots: str = f'[roots."{ROOT}"]\n'
) -> tuple[int, str]:
    """Status and line for a configuration of ROOT and this text."""
    status = receiver.check(world.site, str(configured(world, roots + text)))
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    data = out.partition(" | ")[2]
    assert all(PERFDATA.fullmatch(item) for item in re.findall(r"'[^']*'=\S+", data)), data
    return status, out.strip()


def configured(world: World, text: str) -> Path:
    path = world.place / "receiver.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_all_is_well(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 2, 0.5)
    world.days(101, 1)
    status, out = check(world, capfd)
    assert status == 0
    assert out == (
        f"RECEIVER OK - {ROOT}: 2 guests, newest point 12 h old | '{ROOT} age'=43200s;93600;180000;0 '{ROOT} guests'=2 "
        f"'{ROOT} partials'=0 '{ROOT} guest 100'=43200s;180000;691200;0 '{ROOT} guest 101'=86400s;180000;691200;0"
    )


@pytest.mark.parametrize(("age", "status"), [(25 * HOUR, 0), (27 * HOUR, 1), (51 * HOUR, 2)])
def test_a_source_that_has_gone_quiet_alarms(
    world: World, capfd: pytest.CaptureFixture[str], age: int, status: int
) -> None:
    world.point(100, age)
    found, out = check(world, capfd)
    assert found == status
    assert ("has gone quiet" in out) == (status > 0)


def test_points_that_never_get_whole_are_silence(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 5, disks=2)
    world.days(100, 1, disks=2, present=1)
    assert check(world, capfd)[0] == 2


def test_no_point_at_all_is_critical(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    status, out = check(world, capfd)
    assert (status, "no point at all" in out) == (2, True)


@pytest.mark.parametrize(("days", "status"), [(1, 0), (3, 1), (9, 2)])
def test_one_quiet_guest_among_many_alarms(
    world: World, capfd: pytest.CaptureFixture[str], days: int, status: int
) -> None:
    world.days(100, 0.1)
    world.days(101, days)
    found, out = check(world, capfd)
    assert found == status
    assert ("guest 101" in out.partition(" | ")[0]) == (status > 0)
    assert check(world, capfd, "ignore-guests = [101]")[0] == 0


def test_a_suspended_pool_is_critical_and_zfs_is_not_asked(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    state = world.place / "kstat" / "tank" / "state"
    state.parent.mkdir(parents=True)
    for word, expected in (("SUSPENDED", 2), ("DEGRADED", 1), ("FAULTED", 2), ("ONLINE", 0)):
        state.write_text(f"{word}\n")
        world.asked.clear()
        status, out = check(world, capfd)
        assert status == expected, out
        assert (word == "SUSPENDED") == (world.asked == [])
        assert word == "ONLINE" or word.lower() in out.lower()


@pytest.mark.processes
def test_a_zfs_that_never_answers_does_not_hang_it(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    program = target.place / "bin" / "zfs"
    program.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 30\n")
    monkeypatch.setattr(receiver, "CHECK_TIMEOUT", 0.3)
    config = target.place / "receiver.toml"
    config.write_text(f'[roots."{ROOT}"]\n')
    config.chmod(0o644)
    began = time.monotonic()
    options = ["--config", str(config), "--state", str(target.place / "state"), "--bin", str(target.place / "bin")]
    assert main(["check", *options]) == 2
    assert time.monotonic() - began < 10


def test_an_interrupted_receive_that_stays_is_a_warning(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    dataset = world.interrupted(100)
    assert dataset.partial is not None
    assert check(world, capfd)[0] == 0
    since = float(world.now - 3 * DAY)
    receiver.remember(world.site, Memory({dataset.name: (dataset.partial.token, since)}, float(world.now)))
    status, out = check(world, capfd)
    assert status == 1
    assert f"{dataset.name}: interrupted receive for 3 d" in out


def test_maintenance_that_does_not_run_is_a_warning(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    receiver.remember(world.site, Memory({}, world.now - 3.0 * DAY))
    assert "maintain has not finished for 3 d" in check(world, capfd)[1]
    (world.place / "state" / "maintain.json").unlink()
    status, out = check(world, capfd)
    assert (status, "maintain has not finished yet" in out) == (1, True)


def test_a_point_of_the_future_is_a_warning(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.point(100, -HOUR)
    assert check(world, capfd)[0] == 1


def test_a_failing_zfs_is_critical_and_the_other_root_is_still_told(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.days(100, 0.1)
    status, out = check(world, capfd, '[roots."tank/backups/gone"]\n')
    assert status == 2
    assert "tank/backups/gone: zfs list" in out
    assert f"'{ROOT} age'" in out


def test_what_nobody_foresaw_in_one_root_is_critical_and_the_other_is_still_told(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.days(100, 0.1)
    real = receiver.seen

    def broken(site: receiver.Site, root: receiver.Root, timeout: float) -> receiver.Seen:
        if root.name != ROOT:
            raise OverflowError("timestamp out of range")
        return real(site, root, timeout)

    monkeypatch.setattr(receiver, "seen", broken)
    status, out = check(world, capfd, '[roots."tank/backups/odd"]\n')
    assert status == 2
    assert "tank/backups/odd: timestamp out of range" in out
    assert f"'{ROOT} age'" in out


@pytest.mark.parametrize("roots", ["", "[roots]\n"])
def test_no_root_is_unknown(world: World, capfd: pytest.CaptureFixture[str], roots: str) -> None:
    assert check(world, capfd, roots=roots)[0] == 3


def test_a_broken_configuration_is_unknown(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    path = configured(world, f'[roots."{ROOT}"]\nwarn-age = 7\n')
    assert main(["check", "--config", str(path), "--state", str(world.place / "state")]) == 3
    assert capfd.readouterr().out.startswith("RECEIVER UNKNOWN - ")


def test_wrong_usage_is_unknown_not_critical() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--nonsense"])
    assert ended.value.code == 3


def test_the_memory_is_readable_for_a_monitoring_account(world: World) -> None:
    assert stat.S_IMODE((world.place / "state" / "maintain.json").stat().st_mode) == 0o644
