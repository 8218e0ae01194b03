"""Proxmox takes a guest away while its disks are sent: the stream gives way, the others go on (fault row 47)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.vigil import Vigil
from pve_zfsbackup.model import Guest
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CT, DB, REPLICAS, TARGET, WEB, World, assert_replicated, assert_safe

ZVOL, FAST = "rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A second goes by: who watches, looks."""
    watching: list[Vigil] = []
    opened = Session.vigil

    def vigil(session: Session, guests: Iterable[Guest]) -> Vigil:
        watching.append(opened(session, guests))
        for name in (ZVOL, FAST):
            watching[-1].gone(name)  # type: ignore[arg-type]
        return watching[-1]

    monkeypatch.setattr(Session, "vigil", vigil)
    return lambda: [made.look() for made in watching] and None


def remove(world: World, look: Callable[[], None], dataset: str) -> None:
    """Guest 100 goes while this disk of it is sent."""

    def meanwhile() -> None:
        (world.node.etc / "qemu-server/100.conf").unlink(missing_ok=True)
        look()

    world.runner.faults.append(Fault(words=("receive", REPLICAS[dataset]), slow=meanwhile))


def told(report: Report) -> list[str]:
    return [f"{result.message}" for result in report.results if result.outcome is Outcome.WARNING]


def test_the_stream_is_given_up_and_the_other_guests_go_on(world: World, look: Callable[[], None]) -> None:
    remove(world, look, ZVOL)
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK, [result.message for result in report.results]
    assert any("guest 100 was removed from this node" in text and ZVOL in text for text in told(report)), told(report)
    assert world.target.datasets[REPLICAS[ZVOL]].partial, "what arrived is kept"
    world.target.datasets[REPLICAS[ZVOL]].partial = None
    assert_replicated(world, [DB, CT])
    assert not world.complete(TARGET, WEB)
    sends = [argv for argv in world.runner.zfs(HERE, "send") if ZVOL in argv[-1]]
    assert len(sends) == 1, "it is not tried again"


def test_the_old_point_stays_and_what_is_left_of_the_guest_is_not_begun(world: World, look: Callable[[], None]) -> None:
    world.run()
    before = world.complete(TARGET, WEB)
    world.write()
    remove(world, look, FAST)  # sorted before the other
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK
    assert world.complete(TARGET, WEB) == before
    world.target.datasets[REPLICAS[FAST]].partial = None
    assert_replicated(world, [DB, CT])
    assert_safe(world)


def test_what_went_in_the_meantime_is_no_failure_either(world: World, look: Callable[[], None]) -> None:
    """Proxmox gets through: when the other disk's stream is to be finished, its snapshots are gone."""
    world.run()
    world.write()
    remove(world, look, ZVOL)

    def drop(ran: object) -> None:
        if world.target.datasets[REPLICAS[ZVOL]].partial:
            for name in (ZVOL, FAST):
                if name in world.source.datasets:
                    world.source.drop(name)

    world.runner.watchers.append(drop)  # type: ignore[arg-type]
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK, [result.message for result in report.results]
    assert told(report)
    assert_replicated_but = [DB, CT]
    world.target.datasets[REPLICAS[ZVOL]].partial = None
    assert_replicated(world, assert_replicated_but)


def test_a_guest_that_was_not_removed_after_all_is_sent_by_the_next_run(world: World, look: Callable[[], None]) -> None:
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    remove(world, look, ZVOL)
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    world.runner.faults.clear()
    (world.node.etc / "qemu-server/100.conf").write_text(text)
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)
