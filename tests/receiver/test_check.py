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

PERFDATA = re.compile(r"'[^']+'=-?[0-9]+[s%]?(;[0-9]*;[0-9]*;0(;100)?)?")


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
        f"'{ROOT} partials'=0 '{ROOT} guest 100'=43200s;180000;691200;0 '{ROOT} guest 101'=86400s;180000;691200;0 "
        "'pool tank used'=50%;85;95;0;100 'pool tank bad devices'=0;1;;0"
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


@pytest.mark.parametrize(("days", "status"), [(1, 0), (3, 1), (9, 2)])
def test_a_guest_that_never_gets_whole_alarms_among_others_that_do(
    world: World, capfd: pytest.CaptureFixture[str], days: int, status: int
) -> None:
    """One of its disks cannot be received: its points come every day, and none of them restores it."""
    world.days(100, 0.1)
    world.days(101, *range(1, days + 1), disks=2, present=1)
    found, out = check(world, capfd)
    assert found == status
    assert ("guest 101: no complete point, the first part of one" in out) == (status > 0)
    assert check(world, capfd, "ignore-guests = [101]")[0] == 0


def test_what_maintain_could_not_do_is_a_warning_of_its_root(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Its words go to whoever reads the mail of cron, which is often nobody."""
    world.days(100, 0.1)
    problems = {ROOT: "7 of 9 points would go, more than max-share of 30 %", "tank/gone": "x"}
    receiver.remember(world.site, Memory({}, float(world.now), problems))
    status, out = check(world, capfd)
    assert (status, "tank/gone" in out) == (1, False)
    assert f"{ROOT}: maintain: 7 of 9 points would go" in out
    receiver.remember(world.site, Memory({}, float(world.now)))
    assert check(world, capfd)[0] == 0


def test_a_suspended_pool_is_critical_and_zfs_is_not_asked(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    state = world.place / "kstat" / "tank" / "state"
    state.parent.mkdir(parents=True)
    for word, expected in (("SUSPENDED", 2), ("DEGRADED", 1), ("FAULTED", 2), ("ONLINE", 0)):
        state.write_text(f"{word}\n")
        world.pools.states["tank"] = word
        world.asked.clear()
        status, out = check(world, capfd)
        assert status == expected, out
        assert (word == "SUSPENDED") == (world.asked == [])
        assert word == "ONLINE" or word.lower() in out.lower()


@pytest.mark.parametrize(("free", "status"), [(151, 0), (150, 1), (51, 1), (50, 2), (0, 2), ("-", 0)])
def test_a_pool_that_is_nearly_full_alarms(
    world: World, capfd: pytest.CaptureFixture[str], free: int | str, status: int
) -> None:
    world.days(100, 0.1)
    world.pools.sizes["tank"] = (1000, free)
    found, out = check(world, capfd)
    assert found == status, out
    assert ("% full" in out) == (status > 0)


def test_the_strictest_root_of_a_pool_says_what_full_is(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    world.pools.sizes["tank"] = (1000, 400)
    other = f'warn-full = 70\n[roots."{ROOT}/local-zfs"]\ncrit-full = 55\n'
    status, out = check(world, capfd, other)
    assert "pool tank is 60 % full" in out
    assert "'pool tank used'=60%;70;55;0;100" in out
    assert status == 2
    assert sum(words[:2] == ("zpool", "list") for words in world.asked) == 1


@pytest.mark.parametrize(
    ("name", "state", "why"),
    [
        ("sdb", "FAULTED", "external device fault"),
        ("sdb", "REMOVED", ""),
        ("sdb", "UNAVAIL", "was ONLINE       0     0     0"),
        ("/x ONLINE       0     0     0", "FAULTED", ""),
        ("/mnt/büro.img", "OFFLINE", ""),
    ],
)
def test_a_device_that_is_lost_alarms_though_its_pool_is_called_online(
    world: World, capfd: pytest.CaptureFixture[str], name: str, state: str, why: str
) -> None:
    """Seen on OpenZFS 2.3.9 until `zpool reopen`."""
    world.days(100, 0.1)
    world.pools.devices["tank"] = {"sda": ("ONLINE", ""), name: (state, why)}
    status, out = check(world, capfd)
    told = receiver.shown(" ".join(f"{name} {state} 0 0 0 {why}".split()), 120)
    if "  " not in name:
        assert f"pool tank: {told}" in out
    assert (status, "'pool tank bad devices'=1;1;;0" in out) == (1, True), out


def test_spares_caches_and_rebuilding_are_no_alarm(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    world.pools.devices["tank"] = {"sda": ("ONLINE", ""), "sdb": ("ONLINE", "(resilvering)")}
    assert check(world, capfd)[0] == 0


def test_errors_of_devices_warn_and_those_of_data_are_critical(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 0.1)
    world.pools.bad_sums["tank"] = 7
    status, out = check(world, capfd)
    assert (status, "pool tank: 'vda ONLINE 0 0 7'" in out) == (1, True), out
    world.pools.errors["tank"] = "2 data errors, use '-v' for a list"
    status, out = check(world, capfd)
    assert (status, "2 data errors" in out) == (2, True), out


@pytest.mark.parametrize("verb", ["list", "status"])
def test_a_zpool_that_fails_is_critical_and_the_points_are_still_told(
    world: World, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    world.days(100, 0.1)
    world.refuse[f"zpool {verb}"] = "permission | denied\n"
    status, out = check(world, capfd)
    assert status == 2
    assert f"pool tank: zpool {verb}: 'permission / denied'" in out
    assert f"'{ROOT} guests'=1" in out


def test_an_answer_of_zpool_that_is_none_is_critical(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(receiver.TroubleError, match="not understood"):
        list(receiver._bad_devices("  pool: tank\n state: ONLINE\n"))
    world.days(100, 0.1)
    world.pools.sizes["tank"] = ("1 2", 3)
    assert check(world, capfd)[0] == 2


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


def test_a_point_of_the_future_hides_no_silence(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """A clock was a year ahead for an hour; the source is quiet since. Guest 102 has been gone since that hour."""
    world.days(100, 60, -365)
    world.days(101, 60)
    world.days(102, -365)
    status, out = check(world, capfd)
    assert (status, "newest point 60 d old: the source has gone quiet" in out) == (2, True)
    assert "a point is of the future" in out
    assert f"'{ROOT} guest 100'={60 * DAY}s" in out
    world.days(101, 0.1)
    status, out = check(world, capfd)
    assert (status, "guest 100: newest point 60 d old" in out, "guest 101:" in out) == (2, True, False)


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


def test_checkmk_reads_level_values_and_text_from_one_line(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.days(100, 2)
    world.pools.devices["tank"] = {"sda|b": ("FAULTED", "")}
    assert receiver.check(world.site, str(configured(world, f'[roots."{ROOT}"]\n')), checkmk=True) == 0
    level, name, values, text = capfd.readouterr().out.rstrip("\n").split(" ", 3)
    assert (level, name) == ("1", '"pve-zfsbackup-receiver"')
    assert dict(value.split("=") for value in values.split("|")) == {
        "tank_backups_pve1_age": "172800s;93600;180000;0", "tank_backups_pve1_guests": "1",
        "tank_backups_pve1_partials": "0", "tank_backups_pve1_guest_100": "172800s;180000;691200;0",
        "pool_tank_used": "50%;85;95;0;100", "pool_tank_bad_devices": "1;1;;0",
    }  # fmt: skip
    assert "has gone quiet" in text
    assert "'sda/b FAULTED 0 0 0'" in text


def test_checkmk_hears_of_a_broken_configuration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--checkmk", "--config", str(tmp_path / "none"), "--state", str(tmp_path)]) == 0
    assert capfd.readouterr().out.startswith('3 "pve-zfsbackup-receiver" - ')
