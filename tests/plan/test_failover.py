"""When a role may be taken over, and in which order guests start."""

from __future__ import annotations

import pytest

from pve_zfsbackup.host.answers import signs_of_life
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.model import Dataset, Guid, Snapshot, Vmid
from pve_zfsbackup.plan.failover import Question, already, cloned, permitted, starting_order
from pve_zfsbackup.plan.takeover import Takeover
from tests.fakes.runner import FakeRunner


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        (Question(source="", signs=(), fenced=True), "no-source"),
        (Question(source="pve1", signs=("pve1 answers ping",), fenced=True), "source-alive"),
        (Question(source="pve1", signs=("pve1 answers ping",), fenced=True, forced=True), "no-reason"),
        (Question(source="pve1", signs=("pve1 answers ping",), forced=True, reason="guests are off"), "not-fenced"),
        (Question(source="pve1", signs=()), "not-fenced"),
        (Question(source="pve1", signs=(), forced=True, reason=" "), "no-reason"),
    ],
)
def test_no_split_brain_by_accident(question: Question, kind: str) -> None:
    conflict = permitted(question)
    assert conflict is not None
    assert conflict.kind == kind
    assert conflict.resolve


def test_a_silent_source_that_is_fenced_and_an_answering_one_that_is_overruled_with_a_reason() -> None:
    assert permitted(Question(source="pve1", signs=(), fenced=True)) is None
    overruled = Question(source="pve1", signs=("x",), fenced=True, forced=True, reason="disks died, guests are off")
    assert permitted(overruled) is None


def test_the_role_another_host_has_is_not_taken() -> None:
    taken = Takeover(vmid=Vmid(100), since="20261126T120000Z", host="backup2", point="100/x", reason="r")
    conflict = already(Vmid(100), taken, "backup1")
    assert conflict is not None
    assert "backup2" in conflict.message
    assert already(Vmid(100), taken, "backup2") is None, "ours: an earlier try goes on"
    assert already(Vmid(100), None, "backup1") is None


def test_guests_start_in_proxmoxs_order() -> None:
    startups = {
        Vmid(100): "",
        Vmid(101): "order=2",
        Vmid(102): "order=1,up=30",
        Vmid(103): "3,down=9",
        Vmid(90): "up=5",
    }
    assert starting_order(startups) == ((102, 30), (101, 0), (103, 0), (90, 5), (100, 0))


def test_a_clone_only_within_one_pool() -> None:
    snapshot = Snapshot(dataset=Dataset("tank/b/x"), name="s", guid=Guid("1"), createtxg=1, creation=1)
    assert cloned(snapshot, Dataset("tank/data/vm-100-disk-0"))
    assert not cloned(snapshot, Dataset("tank2/data/vm-100-disk-0"))


# -- signs of life


class Pinger(FakeRunner):
    def __init__(self, answer: int) -> None:
        self.answer, self.asked = answer, list[tuple[str, ...]]()

    def run(self, argv, *, input=None, timeout=0.0, check=True):  # type: ignore[no-untyped-def]
        self.asked.append(tuple(argv))
        return Completed(argv=tuple(argv), returncode=self.answer, stdout="", stderr="")


@pytest.mark.parametrize(
    ("fault", "ping", "told"),
    [
        (None, 1, ["answers on ssh", "answers on the Proxmox API"]),
        (
            ConnectionRefusedError(111, "refused"),
            1,
            ["refuses connections to ssh", "refuses connections to the Proxmox"],
        ),
        (TimeoutError(), 0, ["answers ping"]),
        (OSError(113, "No route to host"), 1, []),
    ],
)
def test_any_answer_is_a_sign_of_life(fault: OSError | None, ping: int, told: list[str]) -> None:
    def connect(address: tuple[str, int], timeout: float) -> None:
        if fault:
            raise fault

    found = signs_of_life(Pinger(ping), "pve1", (22, 8006), 3.0, connect)
    assert len(found) == len(told)
    assert all(word in text for word, text in zip(told, found, strict=True))


def test_a_hostile_name_is_no_option_of_ping() -> None:
    runner = Pinger(1)
    signs_of_life(runner, "-f", (), 3.0)
    assert runner.asked[0][-2:] == ("--", "-f")
