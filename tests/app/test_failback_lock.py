"""While a guest's disks change places on the source, Proxmox does not start it there: and no lock stays untold."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.failback_way import prepare, source_host
from pve_zfsbackup.errors import BackupError, GuestBusyError
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.plan.failback import Failback
from tests.app.test_failback import FASTHOME, at_home, away, give, marked, second, taken_copy, traces
from tests.fakes.runner import Fault, Killed, Ran
from tests.fakes.second import FIRST, Second
from tests.fakes.world import WEB

__all__ = ["second"]
UNLOCK = "to take the lock off on pve1.example: qm unlock 100"
DOWN = "ssh: connect to host pve1.example port 22: Connection refused"


def lock(second: Second) -> str:
    return second.first.node.locked(WEB)


def plan(second: Second) -> Failback:
    with second.session() as session, source_host(session) as host:
        return prepare(session, host, Vmid(WEB)).plan


def renamed(ran: Ran) -> bool:
    return ran.host == FIRST and ran.argv[:2] == ("zfs", "rename")


def test_it_cannot_be_started_there_while_its_disks_change_places_and_can_after(second: Second) -> None:
    away(second)
    seen: dict[str, set[str]] = {"rename": set(), "send": set(), "rescan": set()}

    def look(ran: Ran) -> None:
        if renamed(ran) or ran.argv[:2] == ("zfs", "send") or "rescan" in ran.argv:
            seen[next(word for word in seen if word in ran.argv)].add(lock(second))

    second.runner.watchers.append(look)
    give(second)
    assert seen == {"rename": {"rollback"}, "send": {""}, "rescan": {""}}
    assert lock(second) == ""


def test_started_right_before_it_was_locked_it_keeps_its_disks_and_the_lock_goes(second: Second) -> None:
    away(second)
    node = second.first.guest(WEB)
    second.runner.watchers.append(lambda ran: setattr(node, "running", node.running or "--lock" in ran.argv))
    with pytest.raises(BackupError, match=r"runs on pve1\.example as well") as caught:
        give(second)
    assert not any(at_home(second).values())
    assert lock(second) == ""
    assert "unlock" not in caught.value.hint
    second.runner.watchers.clear()
    node.running = False
    give(second)
    assert all(at_home(second).values())


@pytest.mark.parametrize("error", [None, KeyboardInterrupt("SIGTERM")])
def test_what_fails_before_a_disk_lost_its_place_leaves_no_lock(second: Second, error: BaseException | None) -> None:
    away(second)
    second.runner.faults = [Fault(words=("promote",), answer=None if error else (1, "no"), error=error)]
    with pytest.raises((BackupError, KeyboardInterrupt)):
        give(second)
    assert lock(second) == ""
    second.runner.faults.clear()
    give(second)
    assert all(at_home(second).values())


@pytest.mark.parametrize("error", [None, KeyboardInterrupt("SIGTERM")])
def test_where_disks_are_of_two_times_it_stays_locked_and_is_told(second: Second, error: BaseException | None) -> None:
    """Neither the old disks nor the new ones: nobody shall start that."""
    away(second)
    second.runner.faults = [Fault(words=("rename", FASTHOME), answer=None if error else (1, "busy"), error=error)]
    with pytest.raises((BackupError, KeyboardInterrupt)) as caught:
        give(second)
    assert lock(second) == "rollback"
    text = caught.value.hint if isinstance(caught.value, BackupError) else " ".join(caught.value.__notes__)
    assert UNLOCK in text
    assert "the same command goes on" in text
    second.runner.faults.clear()
    (note,) = plan(second).notes
    assert UNLOCK in note
    give(second)
    assert all(at_home(second).values())
    assert lock(second) == ""


def test_a_lock_that_cannot_be_taken_off_is_told(second: Second) -> None:
    away(second)
    second.runner.faults = [
        Fault(words=("promote",), answer=(1, "no")), Fault(words=("qm", "unlock"), answer=(255, "no quorum")),
    ]  # fmt: skip
    with pytest.raises(BackupError) as caught:
        give(second)
    assert lock(second) == "rollback"
    assert UNLOCK in caught.value.hint
    second.runner.faults.clear()
    give(second)
    assert lock(second) == ""


def test_where_nobody_knows_whether_it_is_locked_that_is_told(second: Second) -> None:
    """The connection broke while the lock was set."""
    away(second)

    def cut(ran: Ran) -> None:
        if "--lock" in ran.argv:
            second.runner.down[FIRST] = DOWN

    second.runner.watchers.append(cut)
    second.runner.faults = [Fault(words=("set", "--lock"), answer=(255, DOWN))]
    with pytest.raises(BackupError) as caught:
        give(second)
    assert UNLOCK in caught.value.hint
    assert "may be locked" in caught.value.hint


def test_what_proxmox_locked_there_is_neither_exchanged_nor_unlocked(second: Second) -> None:
    away(second)
    second.first.node.lock(WEB, "backup")
    (conflict,) = plan(second).conflicts
    assert (conflict.kind, conflict.object) == ("locked", "guest 100")
    assert "a backup by vzdump is under way" in conflict.message
    second.first.node.lock(WEB, "rollback")
    assert [one.kind for one in plan(second).conflicts] == ["locked"], "nothing of ours is under way there"


@pytest.mark.parametrize("moment", ["send", "--lock"])
def test_locked_by_proxmox_since_it_is_left_to_that(second: Second, moment: str) -> None:
    away(second)

    def late(ran: Ran) -> None:
        if moment in ran.argv:
            second.first.node.lock(WEB, "backup")

    second.runner.watchers.append(late)
    with pytest.raises(GuestBusyError, match=r"is locked \(backup\) on pve1.example by now") as caught:
        give(second)
    assert "unlock" not in caught.value.hint
    assert lock(second) == "backup"
    assert not any(at_home(second).values())
    second.runner.watchers.clear()
    second.first.node.lock(WEB, "")
    give(second)
    assert all(at_home(second).values())


def test_a_lock_of_nobody_knows_whom_is_not_taken_off(second: Second) -> None:
    """Somebody rolls it back there in the same moment; or the answer that it is locked was lost."""
    away(second)

    def late(ran: Ran) -> None:
        if "--lock" in ran.argv:
            second.first.node.lock(WEB, "rollback")

    second.runner.watchers.append(late)
    with pytest.raises(BackupError) as caught:
        give(second)
    assert "may be locked" in caught.value.hint
    assert lock(second) == "rollback"
    assert not any(at_home(second).values())


def test_killed_with_the_lock_taken_it_is_repeated_and_leaves_none(second: Second) -> None:
    away(second)
    locked = 0
    for at in range(1, 400):
        twin = taken_copy(second)
        twin.runner.kill_at, twin.runner.kill_when = at, "after"
        try:
            give(twin)
        except Killed:
            twin.runner.revive()
        else:
            break
        if not lock(twin):
            continue
        locked += 1
        done = give(twin)
        assert any(UNLOCK in note for note in done.notes), at
        assert lock(twin) == ""
        assert (traces(twin), marked(twin, WEB)) == ([], False)
        assert all(at_home(twin).values())
    assert locked > 5


def test_a_lock_at_home_is_none_of_ours_once_the_role_is_there(second: Second) -> None:
    """Cut off while it cleaned up: a backup of the guest at home is no reason not to go on."""
    away(second)
    second.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory"))]
    assert give(second, start=True).error
    second.first.node.lock(WEB, "backup")
    assert give(second).done
    assert lock(second) == "backup"
