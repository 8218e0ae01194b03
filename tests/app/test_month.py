"""The month of tests/lab/test_month.py with the fakes: what is told, what the dead man's switch hears, what stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.app.alerts import alerted_run
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode, HostUnreachableError
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CT, TARGET, World
from tests.lab import month


@dataclass
class Happened:
    """The month after it is over; times in seconds since it began."""

    world: World
    start: int
    mails: list[tuple[int, str]] = field(default_factory=list)
    pings: list[tuple[int, str]] = field(default_factory=list)
    codes: list[tuple[month.Call, ExitCode]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)  # points here when the target was about to come back

    @property
    def now(self) -> int:
        return self.world.clock.now - self.start

    def points(self, host: str) -> list[int]:
        return [point.creation - self.start for point in self.world.points(host, CT)]


@pytest.fixture
def happened(world: World, monkeypatch: pytest.MonkeyPatch) -> Happened:
    """One guest through the whole month."""
    seen = Happened(world, world.clock.now)
    notify = "pve_zfsbackup.app.alerts.notify"
    monkeypatch.setattr(f"{notify}.mail", lambda runner, to, subject, text: seen.mails.append((seen.now, text)))
    monkeypatch.setattr(f"{notify}.ping", lambda url: seen.pings.append((seen.now, url.removeprefix("https://x.example"))))
    address = world.place / "ping.url"
    address.write_text("https://x.example\n")
    address.chmod(0o600)
    configure(world, f"alerts: {{mail: [root], ping-file: {address}}}\n")
    first = month.bases()[1]
    for call in month.calls():
        world.clock.now = seen.start + call.at
        world.write()
        world.runner.faults[:] = [gone] if call.away else []
        if call.at == first:
            seen.before = seen.points(HERE)
        with world.session() as session:
            report, untold = alerted_run(session, Scope(), [Stage(name) for name in call.stages if name != "archive"])
        assert untold == ()
        seen.codes.append((call, report.exit_code))
    return seen


gone = Fault(words=(), host=TARGET, again=True, error=HostUnreachableError("no route to host"))


def configure(world: World, more: str) -> None:
    world.impatient()
    text = world.config.read_text().replace("[all]", f"['{CT}']")
    for keep in (month.TARGET_KEEP, month.KEEP):  # in the order in which they stand there
        text = text.replace("{keep-last: 3}", month.keep_text(keep), 1)
    world.config.write_text(text + more)


def test_a_month_is_told_as_it_was_and_ends_as_the_rules_say(happened: Happened) -> None:
    lines = month.explained(happened.mails)
    assert (len(lines), len(happened.mails)) == (15, 15)
    assert sum("well again" in line for line in lines) == 2, "each recovery once"
    assert {code is ExitCode.OK for call, code in happened.codes if not call.away} == {True}
    assert {code is ExitCode.OK for call, code in happened.codes if call.away} == {False}

    assert [path for _, path in happened.pings][::2] == ["/start"] * len(happened.codes)
    assert [path for _, path in happened.pings][1::2] == ["/fail" if call.away else "" for call, _ in happened.codes]
    ((alarm, heard),) = month.silences([at for at, _ in happened.pings])
    assert month.OFF[0] < alarm < month.OFF[1] < heard, "only the dead man's switch tells of a node that is off"

    base, _ = month.bases()
    assert base in happened.before, "17 days later the base of the next increment is still there"
    here, there = month.survivors(happened.start, ZoneInfo("Europe/Berlin"))
    assert happened.points(HERE) == here
    assert happened.points(TARGET) == there
    assert len([name for name in happened.world.target.datasets if f"-{CT}-disk" in name]) == 1, "no new generation"
