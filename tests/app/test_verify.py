"""`verify points` and `verify pools`: what can be known without reading a guest's data."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pve_zfsbackup.app.chains import Chain, as_result, verify_points
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.pools import PoolFound, verify_pools
from pve_zfsbackup.app.pools import as_result as pool_result
from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.pools import read_scan
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.report.verify import pools_json, pools_table
from tests.fakes.pools import Ds
from tests.fakes.runner import Fault
from tests.fakes.world import DB, REPLICAS, TARGET, WEB, World

WEB_DISK = REPLICAS["rpool/data/vm-100-disk-0"]
CRYPT = REPLICAS["rpool/crypt/vm-101-disk-0"]


@pytest.fixture
def old(world: World) -> World:
    for _ in range(3):
        world.write()
        world.run()
    return world


def chains(world: World) -> list[Chain | Result]:
    with world.session() as session:
        return list(verify_points(session, Scope()))


def of(found: list[Chain | Result], vmid: int) -> Chain:
    (chain,) = (one for one in found if isinstance(one, Chain) and one.vmid == vmid)
    return chain


def test_whole_points_are_noted_once_on_the_target(old: World) -> None:
    found = chains(old)
    assert [(one.problems, len(one.whole)) for one in found if isinstance(one, Chain)] == [((), 3)] * 3
    snaps = old.target.datasets[WEB_DISK].snaps.values()
    assert all(snap.props[VERIFIED].startswith("points 2026") for snap in snaps)
    old.runner.ran.clear()
    chains(old)
    assert not old.runner.changes


def another_snapshot(replica: Ds) -> None:
    newest = replica.newest
    assert newest
    newest.guid += 1


def no_hold(replica: Ds) -> None:
    assert replica.newest
    replica.newest.holds.clear()


def no_mark(replica: Ds) -> None:
    assert replica.newest
    del replica.newest.props["pve-zfsbackup:volume"]


def other_consistency(replica: Ds) -> None:
    assert replica.newest
    replica.newest.props["pve-zfsbackup:consistency"] = "quiesced!"


def damaged_conf(replica: Ds) -> None:
    assert replica.newest
    replica.newest.props["pve-zfsbackup:conf"] = replica.newest.props["pve-zfsbackup:conf"][:-8]


def gone_bases(replica: Ds) -> None:
    for snap in replica.snaps.values():
        snap.guid += 1


@pytest.mark.parametrize(
    ("wreck", "told"),
    [
        (another_snapshot, "another snapshot of the same name: guid"),
        (no_hold, "is not held, and the next increment starts from it"),
        (no_mark, "not marked with the disk it came from"),
        (other_consistency, "is called quiesced! there, and quiesced here"),
        (gone_bases, "the chain is broken"),
        (damaged_conf, "its disks do not say the same of the guest's configuration: it cannot be restored"),
    ],
)
def test_what_is_wrong_with_a_replica_is_found(old: World, wreck: Callable[[Ds], None], told: str) -> None:
    wreck(old.target.datasets[WEB_DISK])
    found = chains(old)
    web = of(found, WEB)
    assert any(told in problem for problem in web.problems), web.problems
    assert as_result(web).outcome is Outcome.FAILED
    assert of(found, DB).problems == ()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("conf", "eNqrVkr", "the guest's configuration in the point is damaged: it cannot be restored"),
        ("conf", "", "does not carry the guest's configuration: it cannot be restored"),
        ("guest", "", "does not say what kind of guest it is of: '': it cannot be restored"),
        ("props", "no JSON", "what a restore must set on its disks (props) cannot be read: it cannot be restored"),
    ],
)
def test_a_point_a_restore_would_refuse_is_not_whole(old: World, name: str, value: str, told: str) -> None:
    for dataset in (WEB_DISK, REPLICAS["fast/vm-100-disk-0"]):
        newest = old.target.datasets[dataset].newest
        assert newest
        newest.props[f"pve-zfsbackup:{name}"] = value
    newest_point = old.complete(TARGET, WEB)[-1].partition("/")[2]
    found = chains(old)
    web = of(found, WEB)
    assert web.problems == (f"{newest_point}: {told}",)
    assert len(web.whole) == 2
    newest = old.target.datasets[WEB_DISK].newest
    assert newest
    assert VERIFIED not in newest.props
    assert of(found, DB).problems == ()


def test_one_guests_datasets_that_vanish_meanwhile_fail_that_guest_alone(old: World) -> None:
    gone = (1, f"cannot open '{WEB_DISK}': dataset does not exist")
    old.runner.faults.append(Fault(words=("list", "-d", WEB_DISK), answer=gone))
    found = chains(old)
    (lost,) = (end for end in found if isinstance(end, Result))
    assert (lost.vmid, lost.host, lost.outcome) == (WEB, TARGET, Outcome.FAILED)
    assert of(found, DB).problems == ()


def test_a_foreign_snapshot_behind_the_base_is_found(old: World) -> None:
    old.target.snap(f"{WEB_DISK}@by-hand")
    assert of(chains(old), WEB).problems == (
        f"scsi0: {WEB_DISK}@by-hand is not from the source: nothing can be received behind it",
    )


def test_a_receive_that_was_not_raw_is_found(old: World) -> None:
    newest = old.target.datasets[CRYPT].newest
    assert newest
    newest.ivset += 1
    assert any("encrypted anew there" in problem for problem in of(chains(old), DB).problems)


def test_no_point_and_no_answer_are_failures(old: World) -> None:
    old.target.drop(WEB_DISK)
    assert of(chains(old), WEB).problems == ("no complete point there",)
    old.runner.down[TARGET] = "no route to host"
    (result,) = chains(old)
    assert isinstance(result, Result)
    assert (result.outcome, result.host) == (Outcome.FAILED, TARGET)


HOUR = 3600
LATER = "is not held yet: the target's own maintain does that, every hour"


def says_hello(world: World, ago: int | None) -> None:
    """Its `maintain` ran so many hours ago, or never."""
    now = int(world.clock.now)
    told: dict[str, object] = {"receiver": "0.1.0", "protocol": 1, "root": "tank/pve-zfsbackup", "time": now}
    told["maintained"] = 0 if ago is None else now - ago * HOUR
    world.runner.hello = json.dumps(told)


def test_on_an_append_only_target_nothing_is_set(old: World) -> None:
    append_only(old)
    old.runner.ran.clear()
    assert of(chains(old), WEB).problems == ()
    assert not old.runner.changes


@pytest.mark.parametrize(
    ("ago", "days", "told"),
    [
        (0, 0, ""),
        (24, 0, ""),
        (25, 0, ": the target's own maintain ran 25 h ago"),
        (None, 0, ""),  # it was set up just now
        (None, 2, ": no maintain has ever run there"),
    ],
)
def test_an_append_only_target_holds_by_itself_while_its_maintain_runs(
    old: World, ago: int | None, days: int, told: str
) -> None:
    append_only(old)
    no_hold(old.target.datasets[WEB_DISK])  # as after every replication, until `maintain` has run
    old.clock.now += days * 24 * HOUR
    says_hello(old, ago)
    web = of(chains(old), WEB)
    if told:
        assert [problem.partition(" ")[2].partition(" ")[2] for problem in web.problems] == [
            f"is not held, and the next increment starts from it{told}"
        ]
        assert as_result(web).outcome is Outcome.FAILED
    else:
        assert (web.problems, as_result(web).outcome) == ((), Outcome.OK)
        assert [note.partition(" ")[2].partition(" ")[2] for note in web.notes] == [LATER]


def test_a_receiver_that_does_not_say_is_a_failure_of_its_own(old: World) -> None:
    append_only(old)
    no_hold(old.target.datasets[WEB_DISK])
    old.runner.faults.append(Fault(words=("hello",), host=TARGET, answer=(126, "pve-zfsbackup-receiver: denied")))
    found = chains(old)
    (silent,) = (end for end in found if isinstance(end, Result))
    assert (silent.vmid, silent.host, silent.outcome) == (None, TARGET, Outcome.FAILED)
    assert of(found, WEB).problems == ()


def test_on_a_plain_append_only_account_nobody_can_tell(old: World) -> None:
    append_only(old)
    no_hold(old.target.datasets[WEB_DISK])
    assert of(chains(old), WEB).problems == ()


def test_a_point_proven_by_its_chain_alone_is_not_protected(old: World) -> None:
    chains(old)
    first = old.complete(TARGET, WEB)[0]
    for _ in range(3):
        old.write()
        old.run()
    assert first not in old.complete(TARGET, WEB)


# -- pools

SCRUBBED = "scrub repaired 0B in 00:00:01 with 0 errors on {when}"


def pools(world: World, *, follow: bool = False) -> dict[tuple[str, str], PoolFound]:
    with world.session() as session:
        found = list(verify_pools(session, follow=follow, note=lambda _: None))
    return {(one.host, one.pool): one for one in found if isinstance(one, PoolFound)}


def test_a_scrub_that_is_due_is_started_here_and_told_of_a_target(world: World) -> None:
    world.source.scrubs["fast"] = SCRUBBED.format(when="Tue Nov 17 00:00:00 2026")
    found = pools(world)
    assert (found[SOURCE, "rpool"].started, found[SOURCE, "rpool"].scan.running) == (True, True)
    assert (found[SOURCE, "fast"].started, found[SOURCE, "fast"].problems) == (False, ())
    assert found[TARGET, "tank"].problems == ("was never scrubbed",)
    assert "tank" not in world.target.scrubs
    world.source.scrubs["fast"] = SCRUBBED.format(when="Sat Oct 10 00:00:00 2026")
    assert pools(world)[SOURCE, "fast"].started


def test_a_scrub_is_followed_to_its_end(world: World) -> None:
    world.source.scrubs["fast"] = SCRUBBED.format(when="Tue Nov 17 00:00:00 2026")  # nothing to wait for there

    def ends(ran: object) -> None:
        if getattr(ran, "argv", ())[3:4] == ("status",) and "25.00%" in world.source.scrubs.get("rpool", ""):
            world.runner.watchers.append(done)

    def done(ran: object) -> None:
        world.source.scrubs["rpool"] = "scrub repaired 4K in 00:00:01 with 3 errors on Wed Nov 18 11:06:50 2026"

    world.runner.watchers.append(ends)
    found = pools(world, follow=True)[SOURCE, "rpool"]
    assert found.problems == ("the last scrub found 3 errors",)


def test_errors_and_states_are_problems(world: World) -> None:
    world.source.states["rpool"] = "DEGRADED"
    world.source.bad_sums["rpool"] = 7
    assert pools(world)[SOURCE, "rpool"].problems == ("is DEGRADED", "vda: 0 read, 0 write, 7 checksum errors")


def append_only(world: World) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("parallel: 1, keep: {keep-last: 3}", "parallel: 1, append-only: true"))


def refused(world: World, *words: str, status: int = 126) -> None:
    answer = (status, "pve-zfsbackup-receiver: denied")
    world.runner.faults.append(Fault(words=("zpool", *words), host=TARGET, answer=answer, again=True))


@pytest.mark.parametrize("configured", [True, False])
def test_what_a_receiver_does_not_let_through_is_said_and_fails_nothing(world: World, configured: bool) -> None:
    if configured:
        append_only(world)
    refused(world, "status")
    found = pools(world)[TARGET, "tank"]
    assert (found.scan.state, found.problems) == ("ONLINE", ())
    why = "its receiver is older than the question, or not configured as append-only here"
    told = f"errors and scrubs cannot be asked ({why}): `zpool status -v tank` there tells"
    result = pool_result(found)
    assert (result.outcome, result.message) == (Outcome.WARNING, f"pool tank: ONLINE; {told}")
    shown = pools_table([found], 0.0)
    assert shown.rows[0][2:] == ("ONLINE", "not known", told), "and not that it is good"
    assert pools_json([found], [])["pools"][0]["not_asked"] == told


def test_a_receiver_that_tells_nothing_of_its_pool_fails_nothing_either(world: World) -> None:
    append_only(world)
    refused(world, "status")
    refused(world, "get")
    found = pools(world)[TARGET, "tank"]
    assert found.unasked.startswith("state, errors and scrubs cannot be asked")
    result = pool_result(found)
    assert (result.outcome, found.problems) == (Outcome.WARNING, ())
    assert result.message.startswith("pool tank: UNKNOWN; state, errors")


def test_a_degraded_pool_is_a_problem_there_too_and_a_command_that_fails_is_one(world: World) -> None:
    append_only(world)
    world.target.states["tank"] = "DEGRADED"
    refused(world, "status")
    assert pools(world)[TARGET, "tank"].problems == ("is DEGRADED",)
    refused(world, "get", status=1)
    with world.session() as session:
        found = list(verify_pools(session, follow=False, note=lambda _: None))
    (result,) = (one for one in found if isinstance(one, Result))
    assert (result.host, result.pool, result.outcome) == (TARGET, "tank", Outcome.FAILED)


def test_an_append_only_target_tells_its_devices_or_at_least_its_state(world: World) -> None:
    text = world.config.read_text().replace("parallel: 1, keep: {keep-last: 3}}", "parallel: 1, append-only: true}")
    assert "append-only" in text
    world.config.write_text(text)
    world.target.devices["tank"] = {"sda": ("ONLINE", ""), "sdb": ("FAULTED", "external device fault")}
    assert pools(world)[TARGET, "tank"].problems == ("sdb FAULTED (external device fault)", "was never scrubbed")
    older = Fault(words=("zpool", "status"), host=TARGET, again=True, answer=(126, "pve-zfsbackup-receiver: denied"))
    world.runner.faults.append(older)
    found = pools(world)[TARGET, "tank"]
    assert (found.scan.state, found.problems) == ("ONLINE", ())


def test_a_scan_is_read_as_zpool_writes_it() -> None:
    text = (
        "  pool: tank\n state: DEGRADED\nstatus: One or more devices\n"
        "  scan: resilvered 1M in 00:00:01 with 0 errors on Thu Nov 26 11:15:16 2026\n"
        "config:\n\n\tNAME        STATE     READ WRITE CKSUM\n\ttank        DEGRADED     0     0     0\n"
        "\t  mirror-0  DEGRADED     0     0     0\n\t    sda     FAULTED      3     1     0  too many errors\n\n"
        "errors: 2 data errors, use '-v' for a list\n"
    )
    scan = read_scan(text)
    assert (scan.state, scan.ended, scan.running) == ("DEGRADED", None, False)
    assert scan.errors == "2 data errors, use '-v' for a list"
    (device,) = scan.devices
    assert str(device) == "sda FAULTED (too many errors): 3 read, 1 write, 0 checksum errors"
    with pytest.raises(ZfsError):
        read_scan("garbage")
